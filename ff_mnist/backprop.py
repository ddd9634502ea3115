"""Backpropagation on MNIST with the network of train.py: what Forward-Forward is measured against.

Idea
    The same stack of ReLU layers and a linear softmax on top. One loss at the top, and its gradient goes down through
    all layers: every layer waits for all layers above it.

Symbols
    x    (B, 784)   pixels from 0 to 1, or standardised
    h    (B, n)     a layer's activity ReLU(h W + b)
    L    a number   -log softmax(logits)[label], mean over the batch

Run
    python ff_mnist/backprop.py --seed 0
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
from common.evaluate import accuracy, in_batches
from common.goodness import softmax_cross_entropy
from common.layers import Dense
from common.optim import SCHEDULES, SGD, Adam
from common.split import Split, pixels
from common.steps import Steps


@dataclass
class Config:
    seed: int = 0  # random seed: weights, order of images, shifts
    n_epochs: int = 20  # passes over the training images
    sizes: str = "2000,2000,2000,2000"  # units of the hidden layers
    optimiser: str = "adam"  # adam or sgd (with momentum 0.9)
    lr: float = 0.0003  # learning rate
    weight_decay: float = 0.0  # Adam's is decoupled from the gradient
    schedule: str = "linear"  # the learning rate over the run: half (constant, then to 0), linear, cosine or constant
    batch_size: int = 100  # images per step
    jitter: int = 0  # move training images at random by up to so many pixels
    flip: bool = False  # mirror half of them
    standard: bool = False  # each channel with mean 0 and standard deviation 1 (off: pixels from 0 to 1)
    train_subset: int = 0  # training images, drawn by the seed (0: all that are not held out)
    validation: int = 10000  # training images held out (0: train on all of them)
    eval_subset: int = 1000  # images behind each point of the curves


CHOICES = {"optimiser": ("adam", "sgd"), "schedule": tuple(SCHEDULES)}


class Net:
    """Hidden layers and softmax, and an optimiser for each."""

    def __init__(self, cfg, n_inputs, n_classes, rng):
        sizes = [n_inputs, *runs.numbers(cfg.sizes)]
        self.layers = [Dense(n, m, rng) for n, m in zip(sizes, sizes[1:], strict=False)]
        self.layers.append(Dense(sizes[-1], n_classes, rng, relu=False, gain=0.0))
        make = Adam if cfg.optimiser == "adam" else SGD
        self.opts = [make(layer.params, cfg.lr, decay=cfg.weight_decay) for layer in self.layers]
        self.parts = {"layers": (self.layers, self.opts)}  # what lives between steps
        self.steps = Steps()


def bp_step(layers, opts, x, labels):
    """One step of all layers: x (B, 784), labels (B,) -> loss."""
    h, caches = x, []
    for layer in layers:
        h, cache = layer.forward(h)
        caches.append(cache)
    loss, dy = softmax_cross_entropy(h, labels)
    for i in reversed(range(len(layers))):
        dy, grads = layers[i].backward(dy, caches[i], need_dx=i > 0)  # the line that Forward-Forward does without
        opts[i].step(grads)
    return loss


def inputs(x, data, cfg):
    """Pixels (N, D) from 0 to 1 -> what the first layer sees."""
    if not cfg.standard:
        return x
    mean, sd = data.mean_sd
    return (x - mean) / sd


def predict(layers, images, data, cfg):
    """uint8 images (N, H, W, C) -> labels (N,)."""
    found = []
    for rows in in_batches(len(images), 1000):
        h = inputs(pixels(images[rows]), data, cfg)
        for layer in layers:
            h, _ = layer.forward(h, train=False)
        found.append(h.argmax(axis=1))
    return namespace(images).concatenate(found)


def check(cfg, ds):
    """Say in one line what cannot work, before anything is computed."""
    split.check(ds, cfg)
    runs.check_numbers("--sizes", cfg.sizes)
    runs.at_least(cfg, 1, "n_epochs", "batch_size", "eval_subset")
    runs.at_least(cfg, 0, "weight_decay", "jitter")
    runs.positive(cfg, "lr")


def train_epoch(net, data, rng, cfg, epoch):
    """One pass over the training images -> its mean loss and its seconds."""
    n = len(data.train[0])
    order, start = rng.permutation(n), time.perf_counter()
    batches = [order[rows] for rows in in_batches(n, cfg.batch_size)]
    first, total = (epoch - 1) * len(batches), cfg.n_epochs * len(batches)
    factors = [SCHEDULES[cfg.schedule](first + i, total) for i in range(len(batches))]

    def step(rng, rows, factor):
        for opt in net.opts:
            opt.lr = cfg.lr * factor
        x, labels = data.batch(rows, cfg.jitter, rng, cfg.flip)
        return bp_step(net.layers, net.opts, inputs(x, data, cfg), labels)

    losses = net.steps(step, net.opts, rng, f"{epoch}/{cfg.n_epochs}", batches, factors)
    return {"loss": host(namespace(losses[0]).stack(losses)).mean(), "seconds": time.perf_counter() - start}


def run(cfg, options, threads):
    """One run from its start, or from its checkpoint, to its end -> the last line of its record."""
    if options.device == "cpu":
        compilation.announce("dense")
    this = runs.open_run(cfg, options, threads, "ff_mnist_backprop", runs.images("mnist"), check, Split)
    cfg, data = this.cfg, this.split
    net = Net(cfg, data.size, data.n_classes, np.random.default_rng([cfg.seed, 0]))
    saved, rng = net.parts, np.random.default_rng([cfg.seed, 3])
    this.restore(saved, {"rng": rng})
    clock = runs.Clock(this.done, cfg.n_epochs)
    for epoch in range(this.done + 1, cfg.n_epochs + 1):
        log = train_epoch(net, data, rng, cfg, epoch)
        for key, (images, labels) in data.parts("train", "val").items():
            some = predict(net.layers, images[: cfg.eval_subset], data, cfg)
            log[key] = {"acc": accuracy(some, labels[: cfg.eval_subset])}
        record.append(this.folder, {"epoch": epoch} | log)
        this.checkpoint(epoch, saved, {"rng": rng})
        print(f"{runs.epoch_line(epoch, cfg, log)}  | {clock(log['seconds'], epoch)}", flush=True)

    final = {}
    for key, (images, labels) in data.parts("test", "val").items():
        final[key] = {"acc": accuracy(predict(net.layers, images, data, cfg), labels)}
    record.append(this.folder, {"final": final | runs.cost(clock, net.layers)})
    print(f"test error {100 * (1 - final['test']['acc']):.2f} %")
    this.finish(options, net.layers, "viz/ff_mnist.py")
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
