"""Forward-Forward with top-down connections on CIFAR-10, without weight sharing: Hinton's (2022) section 4.

Idea
    The image stands below, the label above, and in between locally connected layers listen to both of their neighbours
    for ten time steps. At every step each layer learns to be more active under the right label than under a wrong one,
    or less active, the min form. No gradient goes through layers or through time.

Symbols
    x        (B, 32, 32, 3)    image, centred, scaled to mean square 1, the same at every step
    y_l(t)   (2B, 32, 32, C)   activity of hidden layer l; B rows with the right label, then B with a wrong one
    h_l(t)                     y_l(t) scaled to mean square 1, all that the neighbours see; h_0 = x
    z_l(t) = W_l * h_{l-1}(t-1) + V_l * h_{l+1}(t-1) + b_l      *: receptive fields of 11 x 11, weights of their own at
             every location; to the top layer the label sends U[label], a number for each of its units
    y_l(t) = 0.3 y_l(t-1) + 0.7 ReLU(z_l(t))
    g_l(t)   (2B,)             goodness, the mean of y_l(t)^2
    loss     softplus(-t D (g - theta)), t = +1 for right and -1 for wrong labels (min: the other way round), D units
    Start: y(0) from one bottom-up pass under a neutral label, the mean of all labels' U. Wrong labels are drawn from a
    softmax over that pass's h.
    Prediction: ten steps under each label, and the label with the most (min: least) goodness in steps 4 to 6; or the
    softmax, one pass.

Deviates from the paper
    It prints no learning rate, batch size or number of epochs, nor which steps' goodness is learnt: here all that the
    label has reached. It mentions weight decay: next to Adam's rate, the one here hardly acts, and none has been tuned.

Run
    python ff_cifar_lc/recurrent.py --seed 0
    python ff_cifar_lc/recurrent.py --seed 0 --objective max --n-layers 3
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, compilation, record, runs  # before NumPy, see common/__init__.py

# isort: split
import numpy as np
import train

from common import split as splits
from common.evaluate import accuracy, in_batches
from common.functions import relu
from common.goodness import MeanSquare, normalise, peers, softmax_cross_entropy, threshold_loss, units
from common.labels import one_hot, sampled_labels
from common.layers import Dense, Flatten
from common.local2d import LocallyConnected2d
from common.optim import SCHEDULES, Adam
from common.two_way import unreached, unroll


@dataclass
class Config:
    seed: int = 0  # random seed: weights, order of images, wrong labels
    n_epochs: int = 20  # passes over the training images
    n_layers: int = 2  # hidden layers
    channels: int = 3  # units per location
    rf: int = 11  # side of the receptive fields, below and above
    objective: str = "min"  # right labels are to have less goodness than wrong ones (min), or more (max)
    theta: float = 1.0  # threshold for goodness
    steps: int = 10  # time steps
    first: int = 4  # the first step whose goodness counts in prediction
    last: int = 6  # the last one
    damping: float = 0.3  # share of the old state in the new one
    top_down: bool = True  # layers listen to the one above, the top one to the label (off: all of them to the label)
    peer: float = 0.03  # strength of peer normalisation (0: off)
    batch_size: int = 100  # images per step of learning
    lr: float = 0.001  # learning rate of the hidden layers (Adam)
    head_lr: float = 0.001  # that of the softmax
    bp_lr: float = 0.001  # that of the BP twin
    weight_decay: float = 0.0001  # of the hidden layers, decoupled from the gradient
    head_decay: float = 0.0001  # that of the softmax
    bp_decay: float = 0.0001  # that of the BP twin
    schedule: str = "linear"  # the learning rate over the run: half (constant, then to 0), linear, cosine or constant
    flip: bool = False  # mirror training images at random
    shift: int = 0  # move training images at random by up to so many pixels
    train_subset: int = 0  # training images, drawn by the seed (0: all that are not held out)
    validation: int = 5000  # training images held out (0: train on all of them)
    eval_subset: int = 500  # images behind each point of the curves
    full_test: bool = True  # test on the whole test set, not on its first eval-subset images
    bp_baseline: bool = True  # train the backpropagation twin as well: the same layers, bottom-up only
    snapshot_every: int = 5  # epochs between the snapshots that figures are drawn from (0: none)


CHOICES = {"objective": ("min", "max"), "schedule": tuple(SCHEDULES)}


class TwoWay:
    """A map between two neighbours: W and b from below, V from above, U from the label (each (H, W, ...) at every
    location). params: W (H, W, rf, rf, C_below, C), V alike, U (H, W, K, C), b (H, W, C); W and b always."""

    def __init__(self, below, channels, rf, above, n_classes, rng, dtype=np.float32):
        """below, above: shapes (H, W, C) of the neighbours; above None: no layer there; n_classes 0: no label."""
        field = {"padding": rf // 2, "relu": False, "variance": 1.0, "dtype": dtype}
        self.below = LocallyConnected2d(below, channels, rf, rng, **field)
        self.above = LocallyConnected2d(above, channels, rf, rng, **field) if above else None
        self.out_shape, self.params = self.below.out_shape, self.below.params
        if above:
            self.params["V"] = self.above.params["W"]
        if n_classes:
            H, W, C = self.out_shape
            self.params["U"] = rng.standard_normal((H, W, n_classes, C)).astype(dtype)
        self.state = {"mean": np.full(self.out_shape, 0.5, dtype)}  # of activity: peer normalisation

    def from_below(self, h):
        """h (R, H, W, C_below) -> what it adds to z (R, H, W, C)."""
        return self.below.linear(h)

    def from_above(self, h):
        """h (R, H, W, C_above) -> what it adds to z (R, H, W, C); None if no layer above is listened to."""
        if not self.above:
            return None
        self.above.params["W"] = self.params["V"]
        return self.above.linear(h)

    def lead(self, labels):
        """labels (R,) -> what they add to z (R, H, W, C), batch innermost in memory like all maps; or None."""
        if "U" not in self.params:
            return None
        U = self.params["U"].transpose(0, 1, 3, 2)  # (H, W, C, K)
        return np.ascontiguousarray(U[..., labels]).transpose(3, 0, 1, 2)

    def neutral(self):
        """What a label that is none adds to z (H, W, C): the mean of all labels; or 0."""
        return self.params["U"].mean(axis=2) if "U" in self.params else 0

    def grads(self, x, labels, below, above, dz):
        """Gradients, from what was seen and dL/dz at all time steps, lists of (2B, H, W, C) -> as params.

        below empty: the image x (B, H, W, C), the same at every step and under both labels, so that the errors are
        added up before they meet it.
        """
        every = sum(dz) if not below or "U" in self.params else None  # (2B, H, W, C), over time
        if below:
            grads = self.below.linear_grads(np.concatenate(below), np.concatenate(dz))
        else:
            grads = self.below.linear_grads(x, every[: len(x)] + every[len(x) :])
        if self.above:
            grads["V"] = self.above.linear_grads(np.concatenate(above), np.concatenate(dz))["W"]
        if "U" in self.params:
            codes = one_hot(labels, self.params["U"].shape[2])  # (2B, K)
            grads["U"] = np.einsum("rijo,rk->ijko", every, codes)
        return grads


class Net:
    """Hidden layers from the image up, the softmax that draws wrong labels, and an optimiser for each."""

    def __init__(self, cfg, shape, n_classes, rng):
        maps = [shape, *[(*shape[:2], cfg.channels)] * cfg.n_layers]
        self.layers = []
        for i in range(cfg.n_layers):
            top = i == cfg.n_layers - 1
            above = None if top or not cfg.top_down else maps[i + 2]
            told = n_classes if top or not cfg.top_down else 0
            self.layers.append(TwoWay(maps[i], cfg.channels, cfg.rf, above, told, rng))
        shown = cfg.n_layers * int(np.prod(maps[-1]))
        self.head = Dense(shown, n_classes, rng, relu=False, gain=0.0)
        self.opts = [Adam(layer.params, cfg.lr, decay=cfg.weight_decay) for layer in self.layers]
        self.head_opt = Adam(self.head.params, cfg.head_lr, decay=cfg.head_decay)
        self.parts = {"ff": (self.layers, self.opts), "head": ([self.head], [self.head_opt])}


def bottom_up(layers, x):
    """One pass under a neutral label: x (B, H, W, C) -> the states at step 0, a list of (B, H, W, C), and W_0 * x."""
    drive, y = layers[0].from_below(x), []
    for i, layer in enumerate(layers):
        z = layer.from_below(normalise(y[-1])) if i else drive
        y.append(relu(z + (layer.params["b"] + layer.neutral())))
    return y, drive


def seen_by_head(y):
    """States (B, H, W, C) of all layers -> what the softmax sees (B, D)."""
    return np.concatenate([normalise(v).reshape(len(v), -1) for v in y], axis=1)


def ff_step(net, x, labels, cfg, rng):
    """One step of learning: x (B, H, W, C), labels (B,) -> layer by layer loss, mean g of right and of wrong labels."""
    start, drive = bottom_up(net.layers, x)
    logits, cache = net.head.forward(seen_by_head(start))
    net.head_opt.step(net.head.backward(softmax_cross_entropy(logits, labels)[1], cache)[1])
    both = np.concatenate([labels, sampled_labels(logits, labels, rng)])  # (2B,)
    grads, log = ff_grads(net.layers, x, both, start, drive, cfg)
    for opt, of_layer in zip(net.opts, grads, strict=True):
        opt.step(of_layer)
    return log


def ff_grads(layers, x, labels, y, drive, cfg):
    """Gradients of all layers over all time steps: x (B, H, W, C), labels (2B,), states at step 0 and what the image
    sends (B, H, W, C) -> grads; layer by layer loss, and mean goodness of right and of wrong labels.

    Every time step that the label has reached has a loss of its own, layer by layer; what is lowered is their mean.
    """
    B, L = len(x), len(layers)
    sign = {"max": 1, "min": -1}[cfg.objective]
    t = np.repeat(np.float32([sign, -sign]), B)
    seen = [{"below": [], "above": [], "dz": []} for _ in layers]
    log = [[] for _ in layers]
    frames = unroll(layers, drive, [layer.lead(labels) for layer in layers], y, cfg.steps, cfg.damping)
    for step, (h, new, now) in enumerate(frames):
        for i, layer in enumerate(layers):
            skipped = unreached(L, i) if cfg.top_down else 0
            n = cfg.steps - skipped
            if step < skipped:
                continue
            g, squares = MeanSquare().forward(now[i])
            loss, dg = threshold_loss(g, t, cfg.theta, units(now[i]))
            dy = MeanSquare().backward((1 - cfg.damping) / n * dg, squares)  # the old state is given
            dz = dy * (new[i] > 0) + peers(layer.state["mean"], now[i][:B], cfg.peer, 2 * B * n)
            seen[i]["dz"].append(dz)
            seen[i]["below"] += [h[i - 1]] if i else []
            seen[i]["above"] += [h[i + 1]] if i + 1 < L else []
            log[i].append((loss, g[:B].mean(), g[B:].mean()))
    grads = [layer.grads(x, labels, **one) for layer, one in zip(layers, seen, strict=True)]
    return grads, [np.mean(one, axis=0) for one in log]


def goodness_of_labels(net, x, cfg, n_classes, steps=None):
    """Goodness of every candidate label at every step: x (N, H, W, C) -> (steps, n_layers, N, K)."""
    found = []
    for rows in in_batches(len(x), 32):
        B = len(x[rows])
        labels = np.repeat(np.arange(n_classes), B)  # (K B,)
        start, drive = bottom_up(net.layers, x[rows])
        leads = [layer.lead(labels) for layer in net.layers]
        frames = unroll(net.layers, drive, leads, start, steps or cfg.steps, cfg.damping)
        found.append(
            np.stack([[MeanSquare().forward(v)[0].reshape(n_classes, B).T for v in now] for _, _, now in frames])
        )
    return np.concatenate(found, axis=2)


def vote(g, cfg):
    """Goodness (steps, n_layers, N, K) -> predicted labels (N,)."""
    total = g[cfg.first - 1 : cfg.last].sum(axis=(0, 1))
    return total.argmax(axis=1) if cfg.objective == "max" else total.argmin(axis=1)


def softmax_predict(net, x):
    """The one-pass answer: x (N, H, W, C) -> labels (N,)."""
    found = []
    for rows in in_batches(len(x), 250):
        found.append(net.head.forward(seen_by_head(bottom_up(net.layers, x[rows])[0]))[0].argmax(axis=1))
    return np.concatenate(found)


def twin(cfg, shape, n_classes, rng):
    """The same layers bottom-up, with a linear read-out, for backpropagation -> layers, optimisers."""
    layers = []
    for _ in range(cfg.n_layers):
        layers.append(LocallyConnected2d(shape, cfg.channels, cfg.rf, rng, padding=cfg.rf // 2))
        shape = layers[-1].out_shape
    layers += [Flatten(), Dense(int(np.prod(shape)), n_classes, rng, relu=False)]
    return layers, [Adam(layer.params, cfg.bp_lr, decay=cfg.bp_decay) for layer in layers]


class Split(train.Split):
    """The same images; all that are held out judge at the end, eval_subset of them behind each point of the curves."""

    def __init__(self, ds, cfg):
        super().__init__(ds, replace(cfg, eval_subset=max(cfg.eval_subset, cfg.validation)))
        if not cfg.full_test:
            self.test = tuple(part[: cfg.eval_subset] for part in self.test)


def check(cfg, ds):
    """Say in one line what cannot work, before anything is computed."""
    splits.check(ds, cfg)
    runs.at_least(cfg, 1, "n_epochs", "n_layers", "channels", "steps", "eval_subset", "batch_size")
    runs.at_least(cfg, 0, "peer", "weight_decay", "head_decay", "bp_decay", "shift", "snapshot_every")
    runs.positive(cfg, "theta", "lr", "head_lr", "bp_lr")
    if cfg.rf < 1 or cfg.rf % 2 == 0:
        raise cli.UsageError(f"--rf {cfg.rf}: an odd number, so that maps keep their size")
    if not 1 <= cfg.first <= cfg.last <= cfg.steps:
        raise cli.UsageError(f"--first {cfg.first} --last {cfg.last}: the steps go from 1 to {cfg.steps}")
    if cfg.n_layers > cfg.steps:
        raise cli.UsageError(
            f"--n-layers {cfg.n_layers}: in {cfg.steps} steps the label does not reach the lowest layer"
        )
    if not 0 <= cfg.damping < 1:
        raise cli.UsageError(f"--damping {cfg.damping}: from 0 to less than 1")


def train_epoch(net, bp, data, rngs, cfg, epoch):
    """One pass of FF over the training images, then one of BP -> two dicts of means over the epoch."""
    n = len(data.train[0])

    def batches(name, rates):
        order = rngs[name].permutation(n)
        pieces = in_batches(n, cfg.batch_size)
        for i, rows in enumerate(cli.progress(pieces, f"{name} {epoch}/{cfg.n_epochs}")):
            factor = SCHEDULES[cfg.schedule]((epoch - 1) * len(pieces) + i, cfg.n_epochs * len(pieces))
            for opts, lr in rates:
                for opt in opts:
                    opt.lr = lr * factor
            x, labels = data.batch(order[rows], cfg, rngs[name])
            yield normalise(x), labels

    start = time.perf_counter()
    rates = [(net.opts, cfg.lr), ([net.head_opt], cfg.head_lr)]
    log = [ff_step(net, x, labels, cfg, rngs["ff"]) for x, labels in batches("ff", rates)]
    loss, g_pos, g_neg = np.mean(log, axis=0).T
    found = {"loss": loss, "g_pos": g_pos, "g_neg": g_neg, "seconds": time.perf_counter() - start}
    if bp is None:
        return found, None
    start = time.perf_counter()
    losses = [train.bp_step(*bp, x, labels) for x, labels in batches("bp", [(bp[1], cfg.bp_lr)])]
    return found, {"loss": np.mean(losses), "seconds": time.perf_counter() - start}


def evaluate(net, bp, x, labels, cfg, n_classes, steps=None):
    """x (N, H, W, C), labels (N,) -> accuracies: by goodness, by each step's (of so many), by the softmax, of BP; and
    goodness."""
    x = normalise(x)
    g = goodness_of_labels(net, x, cfg, n_classes, steps)
    best = np.argmax if cfg.objective == "max" else np.argmin
    scores = {"acc": accuracy(vote(g, cfg), labels), "softmax_acc": accuracy(softmax_predict(net, x), labels)}
    scores["step_acc"] = [accuracy(best(step.sum(axis=0), axis=1), labels) for step in g]
    if bp:
        scores["bp_acc"] = accuracy(train.bp_predict(bp[0], x), labels)
    return scores, g


def snapshot(folder, epoch, g, images, labels):
    """What the figures need of this epoch: goodness of every label at every step of some images, and the images."""
    (folder / "snapshots").mkdir(exist_ok=True)
    arrays = {"goodness": g[:, :, :100], "labels": labels[:100], "images": images[:100]}
    record.save_arrays(folder / "snapshots" / f"epoch-{epoch:03d}.npz", arrays, {"epoch": epoch})


def run(cfg, options, threads):
    """One run from its start, or from its checkpoint, to its end -> the last line of its record."""
    this = runs.open_run(cfg, options, threads, "ff_cifar_lc_recurrent", runs.images("cifar10"), check, Split)
    cfg, data, shape = this.cfg, this.split, this.ds.x_train.shape[1:]
    n_classes = data.n_classes
    net = Net(cfg, shape, n_classes, np.random.default_rng([cfg.seed, 0]))
    bp = twin(cfg, shape, n_classes, np.random.default_rng([cfg.seed, 1])) if cfg.bp_baseline else None
    rngs = {"ff": np.random.default_rng([cfg.seed, 3]), "bp": np.random.default_rng([cfg.seed, 4])}
    saved = net.parts | ({"bp": bp} if bp else {})
    this.restore(saved, rngs)
    clock = runs.Clock(this.done, cfg.n_epochs)
    for epoch in range(this.done + 1, cfg.n_epochs + 1):
        log, bp_log = train_epoch(net, bp, data, rngs, cfg, epoch)
        for key, (images, labels) in data.parts("train", "val").items():
            images, labels = images[: cfg.eval_subset], labels[: cfg.eval_subset]
            log[key], g = evaluate(net, bp, data.floats(images), labels, cfg, n_classes)
        if cfg.snapshot_every and epoch % cfg.snapshot_every == 0:
            snapshot(this.folder, epoch, g, images, labels)
        record.append(this.folder, {"epoch": epoch} | log | ({"bp": bp_log} if bp else {}))
        this.checkpoint(epoch, saved, rngs)
        seconds = log["seconds"] + (bp_log["seconds"] if bp else 0)
        print(f"{runs.epoch_line(epoch, cfg, log)}  | {clock(seconds, epoch)}", flush=True)

    final = {}
    for key, (images, labels) in data.parts("test", "val").items():
        final[key], _ = evaluate(net, bp, data.floats(images), labels, cfg, n_classes, cfg.last)
    some, labels = (part[:5000] for part in data.train)  # the paper prints training errors, too
    final["train"], _ = evaluate(net, bp, data.floats(some), labels, cfg, n_classes, cfg.last)
    if bp:
        final["bp_parameters"] = sum(p.size for layer in bp[0] for p in layer.params.values())
    record.append(this.folder, {"final": final | runs.cost(clock, [*net.layers, net.head])})
    test = {k: f"{100 * (1 - v):.2f} %" for k, v in final["test"].items() if k != "step_acc"}
    print(f"test errors: {test['acc']} by goodness, {test['softmax_acc']} by the softmax, {test.get('bp_acc', '-')} BP")
    this.finish(options, [*net.layers, net.head], "viz/ff_cifar_lc_recurrent.py")
    return final


def main():
    cfg, options = cli.parse(Config, __doc__, choices=CHOICES)
    threads = runs.threads(options)
    compilation.announce("local")
    finals = []
    for seed in options.seeds:
        cfg.seed = seed
        finals.append(run(cfg, options, threads))
    runs.report("test error", [100 * (1 - final["test"]["acc"]) for final in finals])


if __name__ == "__main__":
    cli.run(main)
