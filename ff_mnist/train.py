"""Forward-Forward on MNIST, supervised, with the label in the input: Hinton's (2022) section 3.3 at its own scale.

Idea
    The first ten pixels of an image are black; put the label there. Every layer learns to be more active for images
    with their right label than for the same images with a wrong one, by itself: no gradient ever leaves a layer.

Symbols
    x    (B, 784)   the label's code in the first ten inputs, then pixels; each row scaled to mean square 1
    y    (B, n)     a layer's activity ReLU(x W + b)
    g    (B,)       goodness, the sum of y^2 over the layer (eq. 1)
    L    a number   mean of softplus(-t (g - theta)), t = +1 for right and -1 for wrong labels; theta = n (eq. 1)
    h    (B, n)     y scaled to mean square 1, all that the next layer sees: no goodness is left in it
    peer normalisation: each unit's mean activity, over batches, is weakly pulled towards its layer's mean
    Wrong labels are drawn from a softmax over h of all layers but the first, under a neutral label (0.1 ten times).
    Two ways to predict: the label with the most goodness in all layers but the first, or that softmax in one pass.

Deviates from the paper
    The recipe is that of Hinton's MATLAB program (3 x 1000 units); the paper prints 4 x 2000 and no recipe.

Run
    python ff_mnist/train.py --seed 0
    python ff_mnist/train.py --seed 0 --preset quick
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, compilation, record, runs, split  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common.arrays import host, namespace
from common.evaluate import accuracy, in_batches, silent
from common.goodness import (
    MeanSquare,
    SumSquare,
    label_loss,
    margin_loss,
    normalise,
    peers,
    scaled,
    softmax_cross_entropy,
    threshold_loss,
    unsettled,
)
from common.label_input import LabelInput
from common.labels import one_hot, sampled_labels, wrong_labels
from common.layers import Dense
from common.optim import SCHEDULES, SGD, Adam
from common.split import Split, pixels
from common.steps import Steps


@dataclass
class Config:
    seed: int = 0  # random seed: weights, order of images, shifts, wrong labels
    n_epochs: int = 60  # passes over the training images
    sizes: str = "2000,2000,2000,2000"  # units of the hidden layers
    goodness: str = "sum"  # of squares over a layer, or their mean
    theta: float = 1.0  # threshold for goodness, per unit: times the width for a sum
    norm: str = "rms"  # what the next layer sees: rms (mean square 1), length (sum of squares 1) or none
    loss: str = "threshold"  # threshold (eq. 1), margin (SymBa) or softmax (over all labels: --negatives all)
    beta: float = 1.0  # sharpness: the losses multiply goodness by it
    collaborate: float = 0.0  # gamma, layer collaboration: a layer's loss adds this much of the others' goodness
    negatives: str = "hard"  # wrong labels: hard (drawn from the one-pass softmax), uniform, or all nine
    peer: float = 0.03  # strength of peer normalisation (0: off)
    optimiser: str = "sgd"  # sgd (with momentum 0.9) or adam
    lr: float = 0.001  # learning rate of the hidden layers
    weight_decay: float = 0.003  # theirs
    head_lr: float = 0.01  # learning rate of the softmax
    head_decay: float = 0.003  # its weight decay
    schedule: str = "half"  # the learning rate over the run: half (constant, then to 0), linear, cosine or constant
    batch_size: int = 100  # images per step
    jitter: int = 0  # move training images at random by up to so many pixels
    train_subset: int = 0  # training images, drawn by the seed (0: all that are not held out)
    validation: int = 10000  # training images held out (0: train on all of them)
    eval_subset: int = 1000  # images behind each point of the curves
    snapshot_every: int = 10  # epochs between the snapshots that figures and the GIF are drawn from (0: none)


PRESETS = {"quick": {"sizes": "500,500,500", "n_epochs": 10, "snapshot_every": 2}}
CHOICES = {
    "goodness": ("sum", "mean"),
    "norm": ("rms", "length", "none"),
    "loss": ("threshold", "margin", "softmax"),
    "negatives": ("hard", "uniform", "all"),
    "optimiser": ("sgd", "adam"),
    "schedule": tuple(SCHEDULES),
}
NEUTRAL = 0.1  # of every label unit, when no label is meant
GOODNESS = {"sum": SumSquare, "mean": MeanSquare}


class Net:
    """Hidden layers, softmax head, and an optimiser for each."""

    def __init__(self, cfg, n_inputs, n_classes, rng):
        sizes = runs.numbers(cfg.sizes)
        self.layers = [LabelInput(n_inputs, sizes[0], n_classes, rng, gain=1.0)]
        self.layers += [Dense(n, m, rng, gain=1.0) for n, m in zip(sizes, sizes[1:], strict=False)]
        for layer, n in zip(self.layers, sizes, strict=True):
            layer.state["mean"] = np.full(n, 0.5, np.float32)  # of each unit's activity, for peer normalisation
        self.head = Dense(sum(sizes[1:]) or sizes[0], n_classes, rng, relu=False, gain=0.0)
        make = Adam if cfg.optimiser == "adam" else SGD
        self.opts = [make(layer.params, cfg.lr, decay=cfg.weight_decay) for layer in self.layers]
        self.head_opt = SGD(self.head.params, cfg.head_lr, decay=cfg.head_decay)
        self.parts = {"layers": (self.layers, self.opts), "head": ([self.head], [self.head_opt])}  # what lives on
        self.steps = Steps()


def ff_step(net, pixels, labels, cfg, rng, n_classes):
    """One step of all layers: pixels (B, 774), labels (B,) -> what `means` reads, layer by layer."""
    B = len(labels)
    part = net.layers[0].image_part(pixels)  # the same under every label
    logits = head_step(net, part, labels, cfg, n_classes)
    wrong = wrong_of(labels, logits, cfg, rng, n_classes)  # (n, B)
    codes = one_hot(namespace(labels).concatenate([labels, wrong.ravel()]), n_classes)  # (B + nB, 10)
    h, seen = None, []
    for i, layer in enumerate(net.layers):
        y, cache = layer.forward(h) if i else layer.forward(part, codes)
        seen.append((y, cache, *GOODNESS[cfg.goodness]().forward(y)))  # right labels first
        h = scaled(y, cfg.norm)
    log = []
    for layer, opt, (y, cache, g, squares) in zip(net.layers, net.opts, seen, strict=True):
        total = g + others(g, seen, cfg) if cfg.collaborate else g
        loss, dg = ff_loss(total.reshape(-1, B), labels, wrong, threshold(y, cfg), cfg)
        rows = unsettled(dg.ravel())  # after a few epochs, few rows have anything left to learn
        dy = GOODNESS[cfg.goodness]().backward(dg.ravel()[rows], squares[rows])
        pull = peers(layer.state["mean"], y[:B], peer_strength(y, cfg), len(y))
        opt.step(layer.backward(dy, cache, pull=pull, rows=rows)[1])  # nothing leaves this layer
        log.append((loss, g.reshape(-1, B), len(dy) / len(y)))
    return log


def threshold(y, cfg):
    """theta of a layer with activities y (B, n)."""
    return cfg.theta * (y.shape[1] if cfg.goodness == "sum" else 1)


def others(g, seen, cfg):
    """Layer collaboration: gamma times the other layers' goodness above their thresholds, taken as given (B + nB,).

    (Lorberbom et al. 2023, arXiv 2305.12393)
    """
    return cfg.collaborate * sum(each - threshold(y, cfg) for y, _, each, _ in seen if each is not g)


def ff_loss(g, labels, wrong, theta, cfg):
    """Goodness of the right labels g[0] (B,) and of n wrong ones g[1:] (n, B) -> loss, dL/dg (1 + n, B)."""
    n, B, xp = len(g) - 1, len(labels), namespace(g)
    if cfg.loss == "softmax":  # over all labels
        where = xp.arange(B), xp.concatenate([labels[None], wrong])  # (B,), (10, B): which label a row has
        by_label = xp.empty((B, n + 1), dtype=g.dtype)
        by_label[where] = g
        loss, d = label_loss(by_label, labels, cfg.beta)
        return loss, d[where]
    if cfg.loss == "margin":
        loss, d_pos, d_neg = margin_loss(xp.concatenate([g[0]] * n), g[1:].ravel(), cfg.beta)
        return loss, xp.concatenate([d_pos.reshape(n, B).sum(axis=0)[None], d_neg.reshape(n, B)])
    t = xp.ones_like(g)
    t[1:] = -1
    if n == 1:
        loss, dg = threshold_loss(g.ravel(), t.ravel(), theta, cfg.beta)
        return loss, dg.reshape(g.shape)
    halves = (g[:1], t[:1]), (g[1:], t[1:])  # right rows and wrong ones count the same
    loss, dg = zip(*[threshold_loss(some.ravel(), sign.ravel(), theta, cfg.beta) for some, sign in halves], strict=True)
    return sum(loss) / 2, xp.concatenate(dg).reshape(g.shape) / 2


def head_step(net, part, labels, cfg, n_classes):
    """One step of the softmax on top, from the states under the neutral label -> its logits (B, 10) before the step."""
    h = neutral_states(net.layers, part, cfg, n_classes)
    logits, cache = net.head.forward(h)
    _, dlogits = softmax_cross_entropy(logits, labels)
    net.head_opt.step(net.head.backward(dlogits, cache)[1])  # not handed to the layers below
    return logits


def neutral_states(layers, part, cfg, n_classes):
    """What the head sees: scaled states of all layers but the first, under the neutral label (B, their widths)."""
    xp = namespace(part[0])
    codes = xp.full((len(part[0]), n_classes), NEUTRAL, dtype=np.float32)
    h, states = None, []
    for i, layer in enumerate(layers):
        y, _ = layer.forward(h, train=False) if i else layer.forward(part, codes, train=False)
        h = scaled(y, cfg.norm)
        states.append(h if cfg.norm == "rms" else normalise(y))  # the head always sees mean square 1
    return xp.concatenate(states[1:] or states, axis=1)


def wrong_of(labels, logits, cfg, rng, n_classes):
    """Wrong labels (n, B) for right ones (B,): one row, or all nine."""
    if cfg.negatives == "all":
        return (labels + namespace(labels).arange(1, n_classes)[:, None]) % n_classes
    if cfg.negatives == "hard":
        return sampled_labels(logits, labels, rng)[None]
    return wrong_labels(labels, n_classes, rng)[None]


def peer_strength(y, cfg):
    """Of peer normalisation, in the size of the loss's gradient: a mean of n squares has one n times smaller."""
    return cfg.peer * cfg.beta / (1 if cfg.goodness == "sum" else y.shape[1])


def goodness_of_labels(net, pixels, cfg, n_classes):
    """Goodness of every candidate label: pixels (N, 774) -> (n_layers, N, 10)."""
    xp, found = namespace(pixels), []
    for rows in in_batches(len(pixels), 200):
        part = net.layers[0].image_part(pixels[rows])
        B = len(part[0])
        codes = one_hot(xp.repeat(xp.arange(n_classes), B), n_classes)  # (10 B, 10)
        h, g = None, []
        for i, layer in enumerate(net.layers):
            y, _ = layer.forward(h, train=False) if i else layer.forward(part, codes, train=False)
            g.append(GOODNESS[cfg.goodness]().forward(y)[0].reshape(n_classes, B).T)
            h = scaled(y, cfg.norm)
        found.append(xp.stack(g))
    return xp.concatenate(found, axis=1)


def vote(g):
    """Goodness (n_layers, N, 10) -> predicted labels (N,): the first layer, which sees the label, has no vote."""
    return (g[1:] if len(g) > 1 else g).sum(axis=0).argmax(axis=1)


def one_pass(net, pixels, cfg, n_classes):
    """The softmax's answer: pixels (N, 774) -> predicted labels (N,)."""
    found = []
    for rows in in_batches(len(pixels), 1000):
        part = net.layers[0].image_part(pixels[rows])
        found.append(net.head.forward(neutral_states(net.layers, part, cfg, n_classes))[0].argmax(axis=1))
    return namespace(pixels).concatenate(found)


def check(cfg, ds):
    """Say in one line what cannot work, before anything is computed."""
    split.check(ds, cfg)
    runs.check_numbers("--sizes", cfg.sizes)
    runs.at_least(cfg, 1, "n_epochs", "batch_size", "eval_subset")
    runs.at_least(cfg, 0, "jitter", "snapshot_every", "weight_decay", "head_decay", "peer", "collaborate")
    runs.positive(cfg, "theta", "beta", "lr", "head_lr")
    if cfg.loss == "softmax" and cfg.negatives != "all":
        raise cli.UsageError("--loss softmax compares all labels: add --negatives all")
    if np.prod(ds.x_train.shape[1:]) <= len(ds.class_names):
        raise cli.UsageError(f"{ds.name}'s images are too small for a label of {len(ds.class_names)} pixels")


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
        x, labels = data.batch(rows, cfg.jitter, rng)
        return ff_step(net, x[:, data.n_classes :], labels, cfg, rng, data.n_classes)

    log = net.steps(step, [*net.opts, net.head_opt], rng, f"{epoch}/{cfg.n_epochs}", batches, factors)
    return means(log) | {"silent": silent(net.layers), "seconds": time.perf_counter() - start}


def means(log):
    """Means over the epoch of what `ff_step` left: name -> a number for each layer."""
    found = {name: [] for name in ("loss", "g_pos", "g_neg", "pairs_wrong", "unsettled")}
    for of_layer in zip(*log, strict=True):
        loss, g, share = zip(*of_layer, strict=True)
        g = host(namespace(g[0]).concatenate(g, axis=1))  # (1 + n, images)
        values = host(namespace(loss[0]).stack(loss)).mean(), g[0].mean(), g[1:].mean(), (g[1:] >= g[0]).mean()
        for name, value in zip(found, (*values, np.mean(share)), strict=True):
            found[name].append(value)
    return found


def evaluate(net, images, labels, cfg, n_classes):
    """Accuracy by both ways to predict and of each layer, on uint8 images -> dict, goodness (n_layers, N, 10)."""
    x = pixels(images)[:, n_classes:]
    start = time.perf_counter()
    g = host(goodness_of_labels(net, x, cfg, n_classes))
    seconds = time.perf_counter() - start
    scores = {"acc": accuracy(vote(g), labels), "softmax_acc": accuracy(one_pass(net, x, cfg, n_classes), labels)}
    return scores | {"layer_acc": [accuracy(layer.argmax(axis=1), labels) for layer in g], "seconds": seconds}, g


def snapshot(folder, epoch, net, g, labels):
    """What the figures need: first-layer weights of 64 units, goodness of every label, right labels."""
    W = net.layers[0].params["W"]
    (folder / "snapshots").mkdir(exist_ok=True)
    arrays = {"filters": host(W[:, :64]), "goodness": g, "labels": host(labels)}
    record.save_arrays(folder / "snapshots" / f"epoch-{epoch:03d}.npz", arrays, {"epoch": epoch})


def run(cfg, options, threads):
    """One run from its start, or from its checkpoint, to its end -> the last line of its record."""
    if options.device == "cpu":
        compilation.announce("dense")
    this = runs.open_run(cfg, options, threads, "ff_mnist", runs.images("mnist"), check, Split)
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
            snapshot(this.folder, epoch, net, g, labels)
        record.append(this.folder, {"epoch": epoch} | log)
        this.checkpoint(epoch, saved, {"rng": rng})
        print(f"{runs.epoch_line(epoch, cfg, log)}  | {clock(log['seconds'], epoch)}", flush=True)

    final = {key: evaluate(net, *part, cfg, data.n_classes)[0] for key, part in data.parts("test", "val").items()}
    record.append(this.folder, {"final": final | runs.cost(clock, [*net.layers, net.head])})
    by_goodness, by_softmax = (100 * (1 - final["test"][key]) for key in ("acc", "softmax_acc"))
    print(f"test error {by_goodness:.2f} % by goodness, {by_softmax:.2f} % by the softmax")
    this.finish(options, [*net.layers, net.head], "viz/ff_mnist.py")
    return final


def main():
    cfg, options = cli.parse(Config, __doc__, choices=CHOICES, presets=PRESETS, device=True)
    threads = runs.threads(options)
    finals = []
    for seed in options.seeds:
        cfg.seed = seed
        finals.append(run(cfg, options, threads)["test"])
    for key, name in (("acc", "goodness"), ("softmax_acc", "the softmax")):
        runs.report(f"test error by {name}", [100 * (1 - final[key]) for final in finals])


if __name__ == "__main__":
    cli.run(main)
