"""Hyperspherical Forward-Forward on dense layers: every layer compares its activity with a prototype of each class.

Idea
    A layer's activity is a direction. Every class has a direction too, its prototype, learnt by the same layer; the
    layer learns to point at the right one, and away from all others. So the wrong prototypes are the negatives: no
    label goes into the network, no wrong label is ever shown, and one pass answers for all classes at once.

Symbols
    x     (B, D)     image, each channel with mean 0 and standard deviation 1 over the training set
    y     (B, n)     a layer's activity ReLU(x W + b)
    u     (B, n)     y / |y|, on the unit sphere
    P     (K, M, n)  M prototypes of length 1 for each of K classes
    score (B, K)     log sum_m exp(scale u . P_km): one prototype, scale times the cosine
    loss  a number   softmax cross-entropy of the scores, the right one's lowered by scale times margin
    h     (B, n)     y scaled to mean square 1: what the next layer sees
    Prediction: the class with the largest sum of scores over the layers that vote; one pass.

Deviates from the paper (Sarode et al. 2026, arXiv 2605.00082)
    Its public pages give the idea and the results, but no scale, margin, number of prototypes or recipe. Those here
    were chosen on held-out images of MNIST and of CIFAR-10 (README.md).

Run
    python ff_mnist/hff.py --seed 0
    python ff_mnist/hff.py --seed 0 --preset cifar10
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, compilation, record, runs, split  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common.arrays import host, namespace
from common.evaluate import accuracy, in_batches
from common.goodness import normalise, softmax_cross_entropy
from common.layers import Dense, dropout
from common.optim import SCHEDULES, Adam
from common.prototypes import Prototypes
from common.split import Split, pixels
from common.steps import Steps


@dataclass
class Config:
    seed: int = 0  # random seed: weights, prototypes, order of images, their changes
    n_epochs: int = 20  # passes over the training images
    sizes: str = "1000,1000,1000"  # units of the hidden layers
    per_class: int = 1  # prototypes of each class
    scale: float = 40.0  # by which cosines are multiplied
    margin: float = 0.0  # by which the right class's cosine is lowered while it learns
    vote: str = "all"  # layers whose scores are summed: all, upper (all but the first) or last
    dropout: float = 0.0  # share of its inputs that a layer does not see while it learns, image excepted
    lr: float = 0.001  # learning rate (Adam)
    weight_decay: float = 0.0  # of the weights, decoupled from the gradient
    schedule: str = "cosine"  # the learning rate over the run: half (constant, then to 0), linear, cosine or constant
    batch_size: int = 100  # images per step
    jitter: int = 0  # move training images at random by up to so many pixels
    flip: bool = False  # mirror half of them
    train_subset: int = 0  # training images, drawn by the seed (0: all that are not held out)
    validation: int = 10000  # training images held out (0: train on all of them)
    eval_subset: int = 1000  # images behind each point of the curves
    snapshot_every: int = 0  # epochs between the snapshots that figures are drawn from (0: after the last one only)
    features: str = ""  # a file of another run's --save: its hidden layers stay, and only prototypes are learnt


CIFAR10 = {"sizes": "2000,2000,2000", "n_epochs": 60, "batch_size": 250, "lr": 0.002}
CIFAR10 |= {"dropout": 0.3, "jitter": 1, "flip": True}
PRESETS = {"cifar10": CIFAR10}
CHOICES = {"vote": ("all", "upper", "last"), "schedule": tuple(SCHEDULES)}


class Block:
    """A hidden layer, its prototypes, and an optimiser for each. params: W (n_in, n), b (n,), P (K, M, n)."""

    def __init__(self, n_in, n, n_classes, cfg, rng):
        self.dense = Dense(n_in, n, rng)
        self.prototypes = Prototypes(n, n_classes, rng, cfg.per_class, cfg.scale)
        self.opts = [Adam(layer.params, cfg.lr, decay=cfg.weight_decay) for layer in (self.dense, self.prototypes)]
        self.state = {}

    @property
    def params(self):
        return self.dense.params | self.prototypes.params


class Net:
    """Blocks; with cfg.features their hidden layers come from a file, and stay as they are."""

    def __init__(self, cfg, n_inputs, n_classes, rng):
        sizes = [n_inputs, *runs.numbers(cfg.sizes)]
        self.blocks = [Block(n, m, n_classes, cfg, rng) for n, m in zip(sizes, sizes[1:], strict=False)]
        if cfg.features:
            arrays, _ = record.load_arrays(cfg.features)
            for i, block in enumerate(self.blocks):
                for k in ("W", "b"):
                    block.params[k][...] = arrays[f"{i}/{k}"]
        self.steps = Steps()

    @property
    def parts(self):
        """What lives between steps: name -> layers, an optimiser for each."""
        pairs = list(zip(*([(b.dense, b.prototypes), b.opts] for b in self.blocks), strict=True))
        layers, opts = ([each for pair in part for each in pair] for part in pairs)
        return {"blocks": (layers, opts)}


def hff_step(net, x, labels, cfg, rng):
    """One step of all layers: x (B, D), labels (B,) -> per layer: loss, scores of right and of other classes."""
    log, h, rows = [], x, namespace(x).arange(len(x))
    keys = rng.integers(2**32, size=len(net.blocks), dtype=np.uint32)
    for i, block in enumerate(net.blocks):
        y, cache = block.dense.forward(dropout(h, cfg.dropout, keys[i]) if i and cfg.dropout else h)
        scores, seen = block.prototypes.forward(y)
        right, every = scores[rows, labels].mean(), scores.mean() * scores.shape[1]
        scores[rows, labels] -= np.float32(cfg.scale * cfg.margin)
        loss, dscore = softmax_cross_entropy(scores, labels)
        dy, grads = block.prototypes.backward(dscore, seen, need_dx=not cfg.features)
        if not cfg.features:
            block.opts[0].step(block.dense.backward(dy, cache)[1])  # nothing leaves this layer
        block.opts[1].step(grads)
        block.prototypes.renormalise()
        log.append((loss, right, (every - right) / (scores.shape[1] - 1)))
        h = normalise(y)
    return log  # n_layers times 3 numbers


def scores_of(net, x):
    """x (N, D) -> scores of all classes, (n_layers, N, K), in one pass."""
    found = []
    for rows in in_batches(len(x), 200):  # the fastest: activities stay in the cache
        h, scores = x[rows], []
        for block in net.blocks:
            y, _ = block.dense.forward(h, train=False)
            scores.append(block.prototypes.forward(y, train=False)[0])
            h = normalise(y)
        found.append(host(namespace(x).stack(scores)))
    return np.concatenate(found, axis=1)


def vote(scores, cfg):
    """Scores (n_layers, N, K) -> predicted labels (N,)."""
    some = {"all": scores, "upper": scores[1:] if len(scores) > 1 else scores, "last": scores[-1:]}[cfg.vote]
    return some.sum(axis=0).argmax(axis=1)


def inputs(x, mean_sd):
    """Pixels (N, D) from 0 to 1 -> what the first layer sees."""
    mean, sd = mean_sd
    return (x - mean) / sd


def check(cfg, ds):
    """Say in one line what cannot work, before anything is computed."""
    split.check(ds, cfg)
    runs.check_numbers("--sizes", cfg.sizes)
    runs.at_least(cfg, 1, "n_epochs", "per_class", "batch_size", "eval_subset")
    runs.at_least(cfg, 0, "margin", "weight_decay", "jitter", "snapshot_every")
    runs.positive(cfg, "scale", "lr")
    if not 0 <= cfg.dropout < 1:
        raise cli.UsageError(f"--dropout {cfg.dropout}: from 0 to less than 1")
    if cfg.features:
        arrays, _ = record.load_arrays(cfg.features)
        sizes = [int(np.prod(ds.x_train.shape[1:])), *runs.numbers(cfg.sizes)]
        for i, shape in enumerate(zip(sizes, sizes[1:], strict=False)):
            if getattr(arrays.get(f"{i}/W"), "shape", None) != shape or f"{i}/P" not in arrays:
                raise cli.UsageError(f"--features {cfg.features}: no hff.py layer {i} of {shape[0]} x {shape[1]} in it")
        if f"{len(sizes) - 1}/W" in arrays:
            raise cli.UsageError(f"--features {cfg.features}: it has more layers than --sizes {cfg.sizes}")


def train_epoch(net, data, rng, cfg, epoch):
    """One pass over the training images -> means over the epoch."""
    n, mean_sd = len(data.train[0]), data.mean_sd
    order, start = rng.permutation(n), time.perf_counter()
    batches, opts = [order[rows] for rows in in_batches(n, cfg.batch_size)], net.parts["blocks"][1]
    first, total = (epoch - 1) * len(batches), cfg.n_epochs * len(batches)
    rates = [float(cfg.lr * SCHEDULES[cfg.schedule](first + i, total)) for i in range(len(batches))]

    def step(rng, rows, rate):
        for opt in opts:
            opt.lr = rate
        x, labels = data.batch(rows, cfg.jitter, rng, cfg.flip)
        return hff_step(net, inputs(x, mean_sd), labels, cfg, rng)

    log = net.steps(step, opts, rng, f"{epoch}/{cfg.n_epochs}", batches, rates)
    log = np.array([[[float(host(v)) for v in layer] for layer in each] for each in log])  # (steps, n_layers, 3)
    line = dict(zip(("loss", "score_right", "score_other"), log.mean(axis=0).T, strict=True))
    return line | {"seconds": time.perf_counter() - start}


def evaluate(net, images, labels, cfg, mean_sd):
    """Accuracy, and that of each layer alone, on uint8 images -> dict, scores (n_layers, N, K)."""
    start = time.perf_counter()
    found = [scores_of(net, inputs(pixels(images[rows]), mean_sd)) for rows in in_batches(len(images), 2000)]
    scores, labels = np.concatenate(found, axis=1), host(labels)
    seconds = time.perf_counter() - start
    layer_acc = [accuracy(layer.argmax(axis=1), labels) for layer in scores]
    votes = {kind: accuracy(vote(scores, replace(cfg, vote=kind)), labels) for kind in CHOICES["vote"]}
    return {"acc": votes[cfg.vote], "votes": votes, "layer_acc": layer_acc, "seconds": seconds}, scores


def snapshot(folder, epoch, net, scores, labels):
    """What the figures need of this epoch: prototypes of each layer, scores, right labels."""
    (folder / "snapshots").mkdir(exist_ok=True)
    arrays = {f"prototypes-{i}": host(block.params["P"]) for i, block in enumerate(net.blocks)}
    arrays |= {"scores": scores, "labels": host(labels)}
    record.save_arrays(folder / "snapshots" / f"epoch-{epoch:03d}.npz", arrays, {"epoch": epoch})


def run(cfg, options, threads):
    """One run from its start, or from its checkpoint, to its end -> the last line of its record."""
    cfg.features = cfg.features and str(Path(cfg.features).resolve())  # a run may be resumed from another folder
    if options.device == "cpu":
        compilation.announce("dense")
    auto = "cifar10" if options.preset == "cifar10" else "mnist"
    this = runs.open_run(cfg, options, threads, "ff_mnist_hff", runs.images(auto), check, Split)
    cfg, data = this.cfg, this.split
    net = Net(cfg, data.size, data.n_classes, np.random.default_rng([cfg.seed, 0]))
    saved, rng = net.parts, np.random.default_rng([cfg.seed, 3])
    this.restore(saved, {"rng": rng})
    clock = runs.Clock(this.done, cfg.n_epochs)
    for epoch in range(this.done + 1, cfg.n_epochs + 1):
        log = train_epoch(net, data, rng, cfg, epoch)
        for key, (images, labels) in data.parts("train", "val").items():
            images, labels = images[: cfg.eval_subset], labels[: cfg.eval_subset]
            log[key], scores = evaluate(net, images, labels, cfg, data.mean_sd)
        if epoch == cfg.n_epochs or (cfg.snapshot_every and epoch % cfg.snapshot_every == 0):
            snapshot(this.folder, epoch, net, scores, labels)
        record.append(this.folder, {"epoch": epoch} | log)
        this.checkpoint(epoch, saved, {"rng": rng})
        print(f"{runs.epoch_line(epoch, cfg, log)}  | {clock(log['seconds'], epoch)}", flush=True)

    parts = data.parts("test", "val")
    final = {key: evaluate(net, *part, cfg, data.mean_sd)[0] for key, part in parts.items()}
    cost = runs.cost(clock, net.blocks)
    if cfg.features:
        cost["parameters"] = sum(block.params["P"].size for block in net.blocks)  # that were learnt here
    record.append(this.folder, {"final": final | cost})
    print(f"test accuracy {100 * final['test']['acc']:.2f} %")
    this.finish(options, net.blocks, "viz/ff_mnist_descendants.py")
    return final


def main():
    cfg, options = cli.parse(Config, __doc__, choices=CHOICES, presets=PRESETS, device=True)
    threads = runs.threads(options)
    finals = []
    for seed in options.seeds:
        cfg.seed = seed
        finals.append(run(cfg, options, threads))
    runs.report("test accuracy", [100 * final["test"]["acc"] for final in finals])


if __name__ == "__main__":
    cli.run(main)
