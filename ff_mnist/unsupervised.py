"""Forward-Forward on MNIST without labels: real images against hybrids of two, Hinton's (2022) section 3.2.

Idea
    A hybrid takes the pixels of one digit inside a random mask of large regions and those of another digit outside.
    It has the short-range statistics of a digit and nonsense at long range. Layers that are active for real images and
    silent for hybrids must have learned what digits look like. Then a linear softmax on top is told the labels.

Symbols
    x    (2B, 784)     B images, then B hybrids, each row scaled to mean square 1
    y    (2B, n)       a layer's activity ReLU(x W + b)
    g    (2B,)         goodness, the sum of y^2 over the layer (eq. 1)
    L    a number      mean of softplus(-t (g - theta)), t = +1 for images and -1 for hybrids; theta = n (eq. 1)
    h    (2B, n)       y scaled to mean square 1: what the next layer sees, and, for images, the softmax
    --local            layers with local receptive fields, without weight sharing

Deviates from the paper
    It prints no learning rates, no number of blurs and no geometry of the local fields: see ff_mnist/README.md.

Run
    python ff_mnist/unsupervised.py --seed 0
    python ff_mnist/unsupervised.py --seed 0 --local
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, compilation, record, runs, split  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common.arrays import host, like, namespace
from common.evaluate import accuracy, in_batches, silent
from common.goodness import SumSquare, normalise, peers, softmax_cross_entropy, threshold_loss, unsettled
from common.labels import hybrid_images, hybrid_masks
from common.layers import Dense
from common.local2d import LocallyConnected2d
from common.optim import SCHEDULES, SGD
from common.split import Split, pixels
from common.steps import Steps


@dataclass
class Config:
    seed: int = 0  # random seed: weights, order of images, masks
    n_epochs: int = 100  # passes over the training images
    sizes: str = "2000,2000,2000,2000"  # units of the hidden layers
    local: bool = False  # local receptive fields instead: 4x4x128, 3x3x220, 2x2x512 units
    blurs: int = -1  # times that a mask is blurred (-1: what suits best, see SUITED)
    readout: int = 3  # layers below the softmax, from the top
    theta: float = 1.0  # threshold for goodness, times the number of units
    peer: float = 0.03  # strength of peer normalisation (0: off)
    lr: float = 0.0  # learning rate of the hidden layers (momentum 0.9; 0: what suits best, see SUITED)
    weight_decay: float = 0.001  # theirs
    head_lr: float = 0.01  # learning rate of the softmax
    head_decay: float = 0.003  # its weight decay
    schedule: str = "half"  # the learning rate over the run: half (constant, then to 0), linear, cosine or constant
    batch_size: int = 100  # images per step
    train_subset: int = 0  # training images, drawn by the seed (0: all that are not held out)
    validation: int = 10000  # training images held out (0: train on all of them)
    eval_subset: int = 1000  # images behind each point of the curves
    snapshot_every: int = 10  # epochs between the snapshots that figures are drawn from (0: none)


CHOICES = {"schedule": tuple(SCHEDULES)}
SUITED = {False: (0.0005, 1), True: (0.002, 6)}  # lr and blurs, with --local or not: see the tables of explore.py
FIELDS = ((128, 10, 6), (220, 2, 1), (512, 2, 1))  # channels, side of the receptive field, stride


class Net:
    """Hidden layers, softmax head, and an optimiser for each; shape: (H, W, C) of the images."""

    def __init__(self, cfg, shape, n_classes, rng):
        if cfg.local:
            self.layers = []
            for channels, rf, stride in FIELDS:
                self.layers.append(LocallyConnected2d(shape, channels, rf, rng, stride=stride, variance=1.0))
                shape = self.layers[-1].out_shape
        else:
            sizes = [int(np.prod(shape)), *runs.numbers(cfg.sizes)]
            self.layers = [Dense(n, m, rng, gain=1.0) for n, m in zip(sizes, sizes[1:], strict=False)]
        for layer in self.layers:
            layer.state["mean"] = np.full(layer.params["b"].shape, 0.5, np.float32)  # of activity: peer normalisation
        shown = sum(layer.params["b"].size for layer in self.layers[-cfg.readout :])
        self.head = Dense(shown, n_classes, rng, relu=False, gain=0.0)
        self.opts = [SGD(layer.params, cfg.lr, decay=cfg.weight_decay) for layer in self.layers]
        self.head_opt = SGD(self.head.params, cfg.head_lr, decay=cfg.head_decay)
        self.parts = {"layers": (self.layers, self.opts), "head": ([self.head], [self.head_opt])}
        self.steps = Steps()


def ff_step(net, images, labels, cfg, rng):
    """One step of all layers: uint8 images (B, H, W, C), labels (B,) for the softmax -> layer by layer loss, g+, g-."""
    B, xp = len(images), namespace(images)
    hybrids = hybrid_images(images, hybrid_masks(B, images.shape[1], cfg.blurs, rng, xp), rng)
    h = inputs(xp.concatenate([images, hybrids]), cfg)  # (2B, ...)
    log, states = [], []
    for layer, opt in zip(net.layers, net.opts, strict=True):
        y, cache = layer.forward(h)  # (2B, ...)
        g, squares = SumSquare().forward(y)
        one = xp.ones_like(g[:B])
        loss, dg = threshold_loss(g, xp.concatenate([one, -one]), cfg.theta * y[0].size)
        pull = peers(layer.state["mean"], y[:B], cfg.peer, len(y))
        if cfg.local:
            grads = layer.backward(SumSquare().backward(dg, squares), cache, pull=pull)[1]
        else:  # the rows that have anything left to learn are few
            rows = unsettled(dg)
            grads = layer.backward(SumSquare().backward(dg[rows], squares[rows]), cache, pull=pull, rows=rows)[1]
        opt.step(grads)  # nothing leaves this layer
        h = normalise(y)
        states.append(flat(h[:B]))
        log.append((loss, g[:B].mean(), g[B:].mean()))
    logits, cache = net.head.forward(xp.concatenate(states[-cfg.readout :], axis=1))
    net.head_opt.step(net.head.backward(softmax_cross_entropy(logits, labels)[1], cache)[1])  # nothing goes down
    return log  # n_layers times 3 numbers


def inputs(images, cfg):
    """uint8 (N, H, W, C) -> what the first layer sees: each image scaled to mean square 1, as a row or as a map."""
    return normalise(pixels(images).reshape(images.shape if cfg.local else (len(images), -1)))


def flat(x):
    """(B, ...) -> (B, D)."""
    return x.reshape(len(x), -1)


def predict(net, images, cfg):
    """The softmax's answer: uint8 images (N, H, W, C) -> labels (N,)."""
    found, xp = [], namespace(images)
    for some in in_batches(len(images), 500):
        h, states = inputs(images[some], cfg), []
        for layer in net.layers:
            h = normalise(layer.forward(h, train=False)[0])
            states.append(flat(h))
        found.append(net.head.forward(xp.concatenate(states[-cfg.readout :], axis=1))[0].argmax(axis=1))
    return xp.concatenate(found)


def check(cfg, ds):
    """Say in one line what cannot work, before anything is computed."""
    split.check(ds, cfg)
    runs.check_numbers("--sizes", cfg.sizes)
    runs.at_least(cfg, 1, "n_epochs", "readout", "eval_subset")
    runs.at_least(cfg, 2, "batch_size")
    runs.at_least(cfg, 0, "blurs", "peer", "weight_decay", "head_decay", "snapshot_every")
    runs.positive(cfg, "theta", "lr", "head_lr")
    if (cfg.train_subset or len(ds.x_train) - cfg.validation) % cfg.batch_size == 1:
        raise cli.UsageError(f"--batch-size {cfg.batch_size} leaves one image over, without a partner for a hybrid")
    H, W, _ = ds.x_train.shape[1:]
    if H != W:
        raise cli.UsageError(f"{ds.name}'s images are {H}x{W}: masks are square")
    if cfg.local:
        try:
            Net(cfg, ds.x_train.shape[1:], len(ds.class_names), np.random.default_rng(0))
        except ValueError as error:
            raise cli.UsageError(f"--local is made for 28x28 images: {error}") from None


def train_epoch(net, data, rng, cfg, epoch):
    """One pass over the training images -> means over the epoch."""
    n = len(data.train[0])
    order, start = rng.permutation(n), time.perf_counter()
    batches = [order[rows] for rows in in_batches(n, cfg.batch_size)]
    first, total = (epoch - 1) * len(batches), cfg.n_epochs * len(batches)
    factors = [float(SCHEDULES[cfg.schedule](first + i, total)) for i in range(len(batches))]

    def step(rng, rows, factor):
        for opt in net.opts:
            opt.lr = cfg.lr * factor
        net.head_opt.lr = cfg.head_lr * factor
        images, labels = (part[like(part, rows)] for part in data.train)
        return ff_step(net, images, labels, cfg, rng)

    log = net.steps(step, [*net.opts, net.head_opt], rng, f"{epoch}/{cfg.n_epochs}", batches, factors)
    log = [[[float(host(v)) for v in layer] for layer in each] for each in log]  # (steps, n_layers, 3)
    loss, g_pos, g_neg = np.mean(log, axis=0).T
    return {"loss": loss, "g_pos": g_pos, "g_neg": g_neg, "silent": silent(net.layers)} | {
        "seconds": time.perf_counter() - start
    }


def snapshot(folder, epoch, net, data, cfg):
    """What the figures need of this epoch: first-layer weights of 64 units, images, masks and hybrids."""
    rng = np.random.default_rng([cfg.seed, 5])
    images = host(data.train[0][:8])
    masks = hybrid_masks(8, images.shape[1], cfg.blurs, rng)
    arrays = {"images": images, "masks": masks, "hybrids": hybrid_images(images, masks, rng)}
    W = host(net.layers[0].params["W"])
    arrays["filters"] = W[W.shape[0] // 2, W.shape[1] // 2, :, :, 0, :64] if cfg.local else W[:, :64]
    (folder / "snapshots").mkdir(exist_ok=True)
    record.save_arrays(folder / "snapshots" / f"epoch-{epoch:03d}.npz", arrays, {"epoch": epoch})


def run(cfg, options, threads):
    """One run from its start, or from its checkpoint, to its end -> the last line of its record."""
    if options.device == "cpu":
        compilation.announce("dense", *(["local"] if cfg.local else []))
    this = runs.open_run(cfg, options, threads, "ff_mnist_unsupervised", runs.images("mnist"), check, Split)
    cfg, data = this.cfg, this.split
    net = Net(cfg, this.ds.x_train.shape[1:], data.n_classes, np.random.default_rng([cfg.seed, 0]))
    saved, rng = net.parts, np.random.default_rng([cfg.seed, 3])
    this.restore(saved, {"rng": rng})
    clock = runs.Clock(this.done, cfg.n_epochs)
    for epoch in range(this.done + 1, cfg.n_epochs + 1):
        log = train_epoch(net, data, rng, cfg, epoch)
        for key, (images, labels) in data.parts("train", "val").items():
            log[key] = {"acc": accuracy(predict(net, images[: cfg.eval_subset], cfg), labels[: cfg.eval_subset])}
        if cfg.snapshot_every and epoch % cfg.snapshot_every == 0:
            snapshot(this.folder, epoch, net, data, cfg)
        record.append(this.folder, {"epoch": epoch} | log)
        this.checkpoint(epoch, saved, {"rng": rng})
        print(f"{runs.epoch_line(epoch, cfg, log)}  | {clock(log['seconds'], epoch)}", flush=True)

    final = {}
    for key, (images, labels) in data.parts("test", "val").items():
        final[key] = {"acc": accuracy(predict(net, images, cfg), labels)}
    record.append(this.folder, {"final": final | runs.cost(clock, [*net.layers, net.head])})
    print(f"test error {100 * (1 - final['test']['acc']):.2f} %")
    this.finish(options, [*net.layers, net.head], "viz/ff_mnist.py")
    return final


def main():
    cfg, options = cli.parse(Config, __doc__, choices=CHOICES, device=True)
    threads = runs.threads(options)
    lr, blurs = SUITED[cfg.local]
    cfg.lr, cfg.blurs = cfg.lr or lr, blurs if cfg.blurs == -1 else cfg.blurs  # a record must say what was used
    finals = []
    for seed in options.seeds:
        cfg.seed = seed
        finals.append(run(cfg, options, threads))
    runs.report("test error", [100 * (1 - final["test"]["acc"]) for final in finals])


if __name__ == "__main__":
    cli.run(main)
