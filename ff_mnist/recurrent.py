"""Forward-Forward with top-down connections on MNIST: Hinton's (2022) section 3.4, the still image as a boring video.

Idea
    The image stays below, the label above, and in between every layer listens to both of its neighbours for eight
    time steps. Each layer learns at every step to be more active under the right label than under a wrong one: what
    the layers above believe reaches the layers below as an input, not as a gradient, neither through layers nor time.

Symbols
    x        (B, 784)     image, scaled to mean square 1, the same at every step
    y_l(t)   (2B, n)      activity of hidden layer l; B rows with the right label, then B with a wrong one
    h_l(t)   (2B, n)      y_l(t) scaled to mean square 1, all that the neighbours see; h_0 = x, h_{L+1} = the label,
                          one-hot and scaled like the other layers
    z_l(t) = h_{l-1}(t-1) W_l + h_{l+1}(t-1) V_l + b_l                    all layers at once
    y_l(t) = 0.3 y_l(t-1) + 0.7 ReLU(z_l(t))
    g_l(t)   (2B,)        goodness, the sum of y_l(t)^2; loss softplus(-t (g - theta)), mean over steps; theta = n
    The label comes down a layer a step. Before it has reached a layer, right and wrong rows are the same there, and the
    loss can only pull both to theta: those steps do not count.
    Start: y(0) from one bottom-up pass without a label. Wrong labels are drawn from a softmax over that pass's h.
    Prediction: eight steps under each label; the label with the most goodness in steps 3 to 5.

Deviates from the paper
    It prints no layer sizes, learning rates or batch size: see ff_mnist/README.md.

Run
    python ff_mnist/recurrent.py --seed 0
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, compilation, record, runs, split, two_way  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common.arrays import host, namespace
from common.evaluate import accuracy, in_batches, silent
from common.goodness import SumSquare, normalise, peers, softmax_cross_entropy, threshold_loss, unsettled
from common.labels import one_hot, sampled_labels
from common.layers import Dense, activate, relu_grad, stack
from common.optim import SCHEDULES, SGD, Adam
from common.product import gradient
from common.sparse import times
from common.split import Split, pixels
from common.steps import Steps


@dataclass
class Config:
    seed: int = 0  # random seed: weights, order of images, wrong labels
    n_epochs: int = 60  # passes over the training images
    sizes: str = "1000,1000"  # units of the hidden layers
    steps: int = 8  # time steps
    first: int = 3  # the first step whose goodness counts in prediction
    last: int = 5  # the last one
    damping: float = 0.3  # share of the old state in the new one
    blind: bool = False  # a layer learns also before the label, coming down a layer a step, has reached it
    label: float = 1.0  # mean square of the label on top: 1 like every other layer (0.1: one-hot as it is)
    theta: float = 1.0  # threshold for goodness, times the number of units
    peer: float = 0.03  # strength of peer normalisation (0: off)
    optimiser: str = "sgd"  # sgd (with momentum 0.9) or adam
    lr: float = 0.002  # learning rate of the hidden layers
    weight_decay: float = 0.003  # theirs
    head_lr: float = 0.01  # learning rate of the softmax
    head_decay: float = 0.003  # its weight decay
    schedule: str = "half"  # the learning rate over the run: half (constant, then to 0), linear, cosine or constant
    batch_size: int = 100  # images per step of learning
    train_subset: int = 0  # training images, drawn by the seed (0: all that are not held out)
    validation: int = 10000  # training images held out (0: train on all of them)
    eval_subset: int = 1000  # images behind each point of the curves
    snapshot_every: int = 10  # epochs between the snapshots that figures are drawn from (0: none)


CHOICES = {"optimiser": ("sgd", "adam"), "schedule": tuple(SCHEDULES)}


class TwoWay:
    """A layer between two neighbours: z = below W + above V + b. params W (n_below, n), V (n_above, n), b (n,)."""

    def __init__(self, n_below, n, n_above, rng, dtype=np.float32):
        self.params = {
            "W": (rng.standard_normal((n_below, n)) / np.sqrt(n_below)).astype(dtype),
            "V": (rng.standard_normal((n_above, n)) / np.sqrt(n_above)).astype(dtype),
            "b": np.zeros(n, dtype),
        }
        self.state = {"mean": np.full(n, 0.5, dtype)}  # of each unit's activity, for peer normalisation

    def from_below(self, h):
        """h (R, n_below) -> what it adds to z (R, n)."""
        return times(h, self.params["W"])

    def from_above(self, h):
        """h (R, n_above) -> what it adds to z (R, n)."""
        return times(h, self.params["V"])


class Net:
    """Hidden layers from the image up, the softmax that draws wrong labels, and an optimiser for each."""

    def __init__(self, cfg, n_inputs, n_classes, rng):
        sizes = [n_inputs, *runs.numbers(cfg.sizes), n_classes]
        self.layers = [TwoWay(*three, rng) for three in zip(sizes, sizes[1:], sizes[2:], strict=False)]
        self.head = Dense(sum(sizes[1:-1]), n_classes, rng, relu=False, gain=0.0)
        make = Adam if cfg.optimiser == "adam" else SGD
        self.opts = [make(layer.params, cfg.lr, decay=cfg.weight_decay) for layer in self.layers]
        self.head_opt = SGD(self.head.params, cfg.head_lr, decay=cfg.head_decay)
        self.parts = {"layers": (self.layers, self.opts), "head": ([self.head], [self.head_opt])}  # what lives on
        self.steps = Steps()


def bottom_up(layers, x):
    """One pass without a label: x (B, D) -> the states at step 0, a list of (B, n)."""
    h, y = x, []
    for layer in layers:
        y.append(activate(times(h, layer.params["W"]), layer.params["b"]))
        h = normalise(y[-1])
    return y


def unroll(layers, x, labels, y, cfg):
    """Yield, step by step, what every layer saw below and above, its ReLU(z) and its new y: four lists of (R, n).

    x (B, D) images, labels (R, K) one-hot rows, y: the states at step 0, a list of (B, n). Row r shows image r mod B.
    """
    drive = times(x, layers[0].params["W"])  # (B, n)
    leads = [None] * (len(layers) - 1) + [layers[-1].from_above(labels)]
    for h, new, states in two_way.unroll(layers, drive, leads, y, cfg.steps, cfg.damping):
        yield [None, *h[:-1]], [*h[1:], labels], new, states


def ff_step(net, x, labels, cfg, rng, n_classes):
    """One step of learning: x (B, 784), labels (B,) -> layer by layer loss, and g (2, B) of right and wrong labels."""
    start, xp = bottom_up(net.layers, x), namespace(x)
    logits, cache = net.head.forward(xp.concatenate([normalise(y) for y in start], axis=1))
    net.head_opt.step(net.head.backward(softmax_cross_entropy(logits, labels)[1], cache)[1])
    both = code(xp.concatenate([labels, sampled_labels(logits, labels, rng)]), cfg, n_classes)  # (2B, 10)
    grads, log = ff_grads(net.layers, x, both, start, cfg)
    for opt, of_layer in zip(net.opts, grads, strict=True):
        opt.step(of_layer)
    return log


def code(labels, cfg, n_classes):
    """What stands above the top layer: labels (R,) -> (R, K)."""
    return one_hot(labels, n_classes) * (cfg.label * n_classes) ** 0.5


def ff_grads(layers, x, labels, y, cfg):
    """Gradients of all layers over all time steps: x (B, D), labels (2B, K), states at step 0 -> grads; layer by layer
    loss, and goodness (2, B) of right and wrong labels, means over these steps.

    Every time step that the label has reached has a loss of its own, layer by layer; what is lowered is their mean.
    """
    B, L, xp = len(x), len(layers), namespace(x)
    t = xp.concatenate([xp.ones_like(x[:, 0]), -xp.ones_like(x[:, 0])])
    seen = [{"below": [], "above": [], "dz": [], "b": []} for _ in layers]
    log = [[] for _ in layers]
    blind = [0 if cfg.blind else two_way.unreached(L, i) for i in range(L)]
    for step, (below, above, new, now) in enumerate(unroll(layers, x, labels, y, cfg)):
        below[0] = xp.concatenate([x, x])
        for i, layer in enumerate(layers):
            n = cfg.steps - blind[i]
            if step < blind[i]:
                continue
            part = (1 - cfg.damping) / n  # of dL/dy: the old state is given, nothing goes back in time
            g, squares = SumSquare().forward(now[i])
            loss, dg = threshold_loss(g, t, cfg.theta * now[i].shape[1])
            rows = unsettled(dg)  # after a few epochs, few rows have anything left to learn
            dz = relu_grad(SumSquare().backward(part * dg[rows], squares[rows]), new[i][rows])
            pull = peers(layer.state["mean"], now[i][:B], cfg.peer, 2 * B * n)  # the same for all 2B rows:
            seen[i]["b"].append(dz.sum(axis=0) + 2 * B * pull)
            seen[i]["dz"].append(stack(dz, pull))
            for key, each in (("below", below[i]), ("above", above[i])):  # one row, their sum, stands for them
                seen[i][key].append(stack(each[rows], each.sum(axis=0)))
            log[i].append((loss, g))
    grads = []
    for one in seen:
        below, above, dz = (xp.concatenate(one[key]) for key in ("below", "above", "dz"))  # (rows, ...)
        grads.append({"W": gradient((below, dz)), "V": gradient((above, dz)), "b": sum(one["b"])})
    means = [[sum(each) / len(each) for each in zip(*of_layer, strict=True)] for of_layer in log]
    return grads, [(loss, g.reshape(2, B)) for loss, g in means]


def goodness_of_labels(net, x, cfg, n_classes):
    """Goodness of every candidate label at every step: x (N, 784) -> (steps, n_layers, N, 10)."""
    found, xp = [], namespace(x)
    for rows in in_batches(len(x), 100):
        B = len(x[rows])
        codes = code(xp.repeat(xp.arange(n_classes), B), cfg, n_classes)  # (10 B, 10)
        y = bottom_up(net.layers, x[rows])
        per_step = [
            xp.stack([SumSquare().forward(v)[0].reshape(n_classes, B).T for v in now])
            for _, _, _, now in unroll(net.layers, x[rows], codes, y, cfg)
        ]
        found.append(xp.stack(per_step))
    return xp.concatenate(found, axis=2)


def vote(g, cfg):
    """Goodness (steps, n_layers, N, 10) -> predicted labels (N,)."""
    return g[cfg.first - 1 : cfg.last].sum(axis=(0, 1)).argmax(axis=1)


def check(cfg, ds):
    """Say in one line what cannot work, before anything is computed."""
    split.check(ds, cfg)
    runs.check_numbers("--sizes", cfg.sizes)
    runs.at_least(cfg, 1, "n_epochs", "steps", "batch_size", "eval_subset")
    runs.at_least(cfg, 0, "snapshot_every", "weight_decay", "head_decay", "peer")
    runs.positive(cfg, "theta", "lr", "head_lr", "label")
    if not 1 <= cfg.first <= cfg.last <= cfg.steps:
        raise cli.UsageError(f"--first {cfg.first} --last {cfg.last}: the steps go from 1 to {cfg.steps}")
    if len(runs.numbers(cfg.sizes)) > cfg.steps:
        raise cli.UsageError(f"--sizes {cfg.sizes}: in {cfg.steps} steps the label does not reach the lowest layer")
    if not 0 <= cfg.damping < 1:
        raise cli.UsageError(f"--damping {cfg.damping}: from 0 to less than 1")


def train_epoch(net, data, rng, cfg, epoch):
    """One pass over the training images -> means over the epoch."""
    n = len(data.train[0])
    order, start = rng.permutation(n), time.perf_counter()
    batches = [order[rows] for rows in in_batches(n, cfg.batch_size)]
    first, total = (epoch - 1) * len(batches), cfg.n_epochs * len(batches)
    factors = [SCHEDULES[cfg.schedule](first + i, total) for i in range(len(batches))]

    def step(rng, rows, factor):
        for opt in net.opts:
            opt.lr = cfg.lr * factor
        net.head_opt.lr = cfg.head_lr * factor
        x, labels = data.batch(rows, 0, rng)
        return ff_step(net, normalise(x), labels, cfg, rng, data.n_classes)

    log = net.steps(step, [*net.opts, net.head_opt], rng, f"{epoch}/{cfg.n_epochs}", batches, factors)
    found = {name: [] for name in ("loss", "g_pos", "g_neg")}
    for of_layer in zip(*log, strict=True):
        loss, g = zip(*of_layer, strict=True)
        xp = namespace(g[0])
        for name, values in zip(found, (xp.stack(loss), *xp.concatenate(g, axis=1)), strict=True):
            found[name].append(host(values).mean())
    return found | {"silent": silent(net.layers), "seconds": time.perf_counter() - start}


def evaluate(net, images, labels, cfg, n_classes):
    """Accuracy on uint8 images: by goodness, and by each step's goodness alone -> dict, goodness of every label."""
    g = host(goodness_of_labels(net, normalise(pixels(images)), cfg, n_classes))
    steps = [accuracy(step.sum(axis=0).argmax(axis=1), labels) for step in g]
    return {"acc": accuracy(vote(g, cfg), labels), "step_acc": steps}, g


def snapshot(folder, epoch, g, labels):
    """What the figures need of this epoch: goodness of every label at every step, right labels."""
    (folder / "snapshots").mkdir(exist_ok=True)
    arrays = {"goodness": g[:, :, :100], "labels": host(labels[:100])}
    record.save_arrays(folder / "snapshots" / f"epoch-{epoch:03d}.npz", arrays, {"epoch": epoch})


def run(cfg, options, threads):
    """One run from its start, or from its checkpoint, to its end -> the last line of its record."""
    if options.device == "cpu":
        compilation.announce("dense")
    this = runs.open_run(cfg, options, threads, "ff_mnist_recurrent", runs.images("mnist"), check, Split)
    cfg, data = this.cfg, this.split
    net = Net(cfg, data.size, data.n_classes, np.random.default_rng([cfg.seed, 0]))
    saved = net.parts
    rng = np.random.default_rng([cfg.seed, 3])
    this.restore(saved, {"rng": rng})
    clock = runs.Clock(this.done, cfg.n_epochs)
    for epoch in range(this.done + 1, cfg.n_epochs + 1):
        log = train_epoch(net, data, rng, cfg, epoch)
        for key, (images, labels) in data.parts("train", "val").items():
            images, labels = images[: cfg.eval_subset], labels[: cfg.eval_subset]
            log[key], g = evaluate(net, images, labels, cfg, data.n_classes)
        if cfg.snapshot_every and epoch % cfg.snapshot_every == 0:
            snapshot(this.folder, epoch, g, labels)
        record.append(this.folder, {"epoch": epoch} | log)
        this.checkpoint(epoch, saved, {"rng": rng})
        print(f"{runs.epoch_line(epoch, cfg, log)}  | {clock(log['seconds'], epoch)}", flush=True)

    final = {key: evaluate(net, *part, cfg, data.n_classes)[0] for key, part in data.parts("test", "val").items()}
    record.append(this.folder, {"final": final | runs.cost(clock, [*net.layers, net.head])})
    print(f"test error {100 * (1 - final['test']['acc']):.2f} %")
    this.finish(options, [*net.layers, net.head], "viz/ff_mnist.py")
    return final


def main():
    cfg, options = cli.parse(Config, __doc__, choices=CHOICES, device=True)
    threads = runs.threads(options)
    finals = []
    for seed in options.seeds:
        cfg.seed = seed
        finals.append(run(cfg, options, threads))
    runs.report("test error", [100 * (1 - final["test"]["acc"]) for final in finals])


if __name__ == "__main__":
    cli.run(main)
