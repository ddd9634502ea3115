"""Teacher and student: does Forward-Forward gain on backpropagation as the number of classes grows?

Idea
    A random network, the teacher, labels Gaussian noise. Students of one shape learn from its labels in different ways,
    and everything but the way is the same: data, first weights, optimiser, steps. Nobody has to download anything, and
    the whole study takes minutes: the paper's Tables 4 and 5, and the cells between its two corners.

Symbols
    x    (B, 50)    Gaussian noise;  labels: argmax of the teacher's K scores
    h    (B, 128)   what a layer sees: x, then z of the layer below, as it is
    z    (B, 128)   ReLU(h W + b), four layers
    u    (B, 128)   what its head reads: z^2 / T, T learned (DTG-FF, eq. 1 and 2; App. E), or z
    psi  (B, K)     u R + c; R and c fixed and random, N(0, 1/K), or learned
    loss            the sum over layers of cross-entropy of softmax(psi); for bp that of the last layer's learned head
    Prediction: the largest sum of psi over the layers (bp: the head's); an ensemble's mean of softmax.

Methods
    dtg         each layer learns from its own loss alone (detached), z^2 / T, random heads
    deepsup     backpropagation of all losses through all layers, z, learned heads
    bp          one head on top;   ensemble: four of these
    cells       detached or not x z^2 / T or z x random or learned heads: all eight, dtg and deepsup two of them

Run
    python ff_synthetic/train.py                                # the paper's four methods, five seeds, six K
    python ff_synthetic/train.py --methods cells                # the eight cells
    python ff_synthetic/train.py --teacher he                   # another teacher
    python ff_synthetic/train.py --resume runs/ff_synthetic/RUN      # go on after the last cell
"""

import multiprocessing
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import ROOT, cli, record, runs  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common.evaluate import accuracy, mean_sd
from common.functions import softmax
from common.goodness import softmax_cross_entropy
from common.layers import Dense
from common.optim import Adam
from common.readouts import RandomMap, Temperature

D_IN, HIDDEN, LAYERS = 50, 128, 4  # App. E


@dataclass
class Config:
    seed: int = 0  # of nothing: the paper names its seeds, see --draws
    methods: str = "dtg,deepsup,bp,ensemble"  # or cells, or names of cells like local-squares-learned
    classes: str = "5,10,15,20,30,50"  # K
    draws: str = "42,123,456,789,1024"  # seeds: of teacher, data, weights and batches
    steps: int = 8000  # of each student
    batch_size: int = 256  # rows per step
    lr: float = 0.001  # Adam's
    train_rows: int = 20000  # noise with labels to learn from
    test_rows: int = 5000  # and to test on
    teacher: str = "default"  # its weights: default (uniform, as PyTorch's layers), he (normal) or orthogonal
    jobs: int = 0  # cells at a time, each in a process with one thread (0: as many as processors)


CHOICES = {"teacher": ("default", "he", "orthogonal")}
CELLS = {
    f"{credit}-{what}-{head}": {"local": credit == "local", "squares": what == "squares", "learned": head == "learned"}
    for credit in ("local", "through")
    for what in ("squares", "plain")
    for head in ("random", "learned")
}
NAMES = {"dtg": "local-squares-random", "deepsup": "through-plain-learned"}  # the paper's corners


def linear(n_in, n_out, rng, relu=False):
    """A dense layer whose weights and biases are uniform within 1 / sqrt(n_in): PyTorch's default."""
    layer = Dense(n_in, n_out, rng, relu=relu)
    for p in layer.params.values():
        p[...] = rng.uniform(-1, 1, p.shape) / np.sqrt(n_in)
    return layer


def teacher_labels(K, cfg, rng):
    """-> x (N, D_IN), labels (N,) of training and of test rows, by a ReLU network of three layers."""
    sizes = (D_IN, HIDDEN, HIDDEN, K)
    layers = [linear(n, m, rng, relu=m != K) for n, m in zip(sizes, sizes[1:], strict=False)]
    layers[-1].relu = False
    for layer in layers:
        W, b = layer.params["W"], layer.params["b"]
        if cfg.teacher != "default":
            b[:] = 0
            W[...] = rng.standard_normal(W.shape) * np.sqrt(2 / len(W))
        if cfg.teacher == "orthogonal":
            q, r = np.linalg.qr(rng.standard_normal((max(W.shape), min(W.shape))))
            q *= np.sign(np.diag(r))  # uniform over all of them
            W[...] = q if W.shape[0] >= W.shape[1] else q.T
    x = rng.standard_normal((cfg.train_rows + cfg.test_rows, D_IN)).astype(np.float32)
    h = x
    for layer in layers:
        h, _ = layer.forward(h)
    labels, n = h.argmax(axis=1), cfg.train_rows
    return (x[:n], labels[:n]), (x[n:], labels[n:])


class Student:
    """Four layers, each with a head (bp: only the last one), and an optimiser for each part."""

    def __init__(self, K, cfg, rng, local=False, squares=False, learned=True, one_head=False):
        sizes = [D_IN] + [HIDDEN] * LAYERS
        self.layers = [linear(n, m, rng, relu=True) for n, m in zip(sizes, sizes[1:], strict=False)]
        make = linear if learned else RandomMap
        self.read = [i for i in range(LAYERS) if not one_head or i == LAYERS - 1]
        self.heads = {i: make(HIDDEN, K, rng) for i in self.read}
        self.temperatures = {i: Temperature() for i in self.read} if squares else {}
        self.local = local
        self.parts = [*self.layers, *self.heads.values(), *self.temperatures.values()]
        self.opts = {id(part): Adam(part.params, cfg.lr) for part in self.parts}

    def learned_numbers(self):
        return sum(p.size for part in self.parts for p in part.params.values())

    def fixed_numbers(self):
        return sum(p.size for head in self.heads.values() for p in head.state.values())

    def forward(self, x):
        """x (B, D_IN) -> psi of every head {layer: (B, K)}, and what the gradients need."""
        h, psis, caches = x, {}, []
        for i, layer in enumerate(self.layers):
            z, cache = layer.forward(h)
            seen = heat = None
            if i in self.heads:
                u = z
                if self.temperatures:
                    u, heat = self.temperatures[i].forward(z * z)
                psis[i], seen = self.heads[i].forward(u)
            caches.append((z, cache, heat, seen))
            h = z
        return psis, caches

    def step(self, x, labels):
        """One step of all parts: x (B, D_IN), labels (B,)."""
        psis, caches = self.forward(x)
        dh = None
        for i in reversed(range(LAYERS)):
            z, cache, heat, seen = caches[i]
            dz = 0 if dh is None else dh
            if i in self.heads:
                _, dpsi = softmax_cross_entropy(psis[i], labels)
                du, grads = self.heads[i].backward(dpsi, seen, need_dx=True)
                self.take(self.heads[i], grads)
                if self.temperatures:
                    du, grads = self.temperatures[i].backward(du, heat)
                    self.take(self.temperatures[i], grads)
                    du = 2 * z * du
                dz = dz + du
            through = not self.local and i > 0
            dh, grads = self.layers[i].backward(dz, cache, need_dx=through)  # detached: nothing leaves a layer
            self.take(self.layers[i], grads)

    def take(self, part, grads):
        if grads:
            self.opts[id(part)].step(grads)

    def scores(self, x):
        """x (N, D_IN) -> the sum of psi over the heads (N, K)."""
        return sum(self.forward(x)[0].values())


def flop(student, batch):
    """Floating-point operations of one step's products: forward, weight gradients, and what is handed down."""
    total = 0
    for i, layer in enumerate(student.layers):
        total += (2 if student.local or i == 0 else 3) * 2 * batch * layer.params["W"].size
    for head in student.heads.values():
        W = head.params.get("W", head.state.get("R"))
        total += (3 if head.params else 2) * 2 * batch * W.size
    return total


def students_of(method, K, cfg, rng):
    """The networks of one method."""
    if method in ("bp", "ensemble"):
        return [Student(K, cfg, rng, one_head=True) for _ in range(4 if method == "ensemble" else 1)]
    return [Student(K, cfg, rng, **CELLS[NAMES.get(method, method)])]


def cell(job):
    """One method, one K, one draw -> its line in the record."""
    method, K, draw, cfg = job
    cfg = Config(**cfg)
    (x, y), (x_test, y_test) = teacher_labels(K, cfg, np.random.default_rng([draw, K, 0]))
    students = students_of(method, K, cfg, np.random.default_rng([draw, K, 1]))
    rng, start, order = np.random.default_rng([draw, K, 2]), time.perf_counter(), np.empty(0, int)
    for _ in range(cfg.steps):  # whole epochs one after the other, each in a new order
        if len(order) < cfg.batch_size:
            order = rng.permutation(len(x))
        rows, order = order[: cfg.batch_size], order[cfg.batch_size :]
        for student in students:
            student.step(x[rows], y[rows])
    seconds = time.perf_counter() - start
    found = {  # softmax changes no single student's answer
        name: accuracy(sum(softmax(student.scores(part)) for student in students).argmax(axis=1), labels)
        for name, part, labels in (("train_acc", x, y), ("test_acc", x_test, y_test))
    }
    sizes = {"learned": sum(s.learned_numbers() for s in students), "fixed": sum(s.fixed_numbers() for s in students)}
    work = cfg.steps * sum(flop(student, cfg.batch_size) for student in students)
    share = {"majority": float(np.bincount(y_test, minlength=K).max() / len(y_test))}
    return {"method": method, "K": K, "draw": draw} | found | sizes | share | {"flop": work, "seconds": seconds}


def one_thread():
    """Every worker has one: cells are what runs in parallel."""
    cli.set_threads(1)


def check(cfg):
    """Say in one line what cannot work, before anything is computed."""
    for name in ("classes", "draws"):
        runs.check_numbers(f"--{name}", getattr(cfg, name))
    known = [*NAMES, "bp", "ensemble", *CELLS]
    for method in methods(cfg):
        if method not in known:
            raise cli.UsageError(f"--methods {method}: choose from cells, {', '.join(known)}")
    runs.at_least(cfg, 1, "steps", "batch_size", "train_rows", "test_rows")
    runs.at_least(cfg, 0, "jobs")
    runs.positive(cfg, "lr")
    if cfg.batch_size > cfg.train_rows:
        raise cli.UsageError(f"--batch-size {cfg.batch_size}: more than the {cfg.train_rows} rows to learn from")
    if min(runs.numbers(cfg.classes)) < 2:
        raise cli.UsageError(f"--classes {cfg.classes}: at least 2")


def methods(cfg):
    return [name for part in cfg.methods.split(",") for name in (CELLS if part == "cells" else [part])]


def main():
    cfg, options = cli.parse(Config, __doc__, choices=CHOICES)
    if options.save or options.dataset != "auto":
        raise cli.UsageError("the data are drawn, and nothing is kept: leave out --dataset and --save")
    done = set()
    if options.resume:
        folder = Path(options.resume)
        lines = record.read(folder)
        if set(lines[0].get("config", ())) != set(asdict(cfg)):
            raise cli.UsageError(f"{folder} is no run of this script in this version: it cannot be resumed")
        if "final" in lines[-1]:
            raise cli.UsageError(f"{folder} is finished: nothing to resume")
        jobs, cfg = cfg.jobs, Config(**lines[0]["config"])
        cfg.jobs = jobs or cfg.jobs
        done = {(line["method"], line["K"], line["draw"]) for line in lines if "method" in line}
        record.cut(folder, len(lines))  # a line that was not written whole goes
    check(cfg)
    every = [(m, K, draw) for draw in runs.numbers(cfg.draws) for K in runs.numbers(cfg.classes) for m in methods(cfg)]
    if not options.resume:
        folder = record.new_run(options.out or ROOT / "runs" / "ff_synthetic", 0)
        first = {"command": record.command(), "config": asdict(cfg), "dataset": {"name": "synthetic"}}
        record.append(folder, first | {"machine": record.machine(1), "commit": record.commit()})
    n = min(cfg.jobs or multiprocessing.cpu_count(), len(every))
    print(f"{len(every)} cells, {len(done)} of them done, {n} at a time -> {folder}", flush=True)
    left = [(*key, asdict(cfg)) for key in every if key not in done]
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(n, initializer=one_thread) as pool:
        for line in pool.imap_unordered(cell, left):
            record.append(folder, line)
            print(
                f"K {line['K']:3d}  draw {line['draw']:5d}  {line['method']:24s} train {100 * line['train_acc']:5.1f} %"
                f"  test {100 * line['test_acc']:5.1f} %  {line['seconds']:.0f} s",
                flush=True,
            )
    lines = [line for line in record.read(folder) if "method" in line]
    record.append(folder, {"final": {"cells": len(lines), "seconds": time.perf_counter() - start}})
    for method in methods(cfg):
        for K in runs.numbers(cfg.classes):
            mean, sd = mean_sd([100 * v["test_acc"] for v in lines if (v["method"], v["K"]) == (method, K)])
            print(f"{method:24s} K {K:3d}  test {mean:5.1f} ± {sd:.1f} %")


if __name__ == "__main__":
    cli.run(main)
