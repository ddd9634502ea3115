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

Deviates from the paper (Chen 2026, arXiv 2606.06539, section 3.2 and App. E), which does not say how the teacher's and
the students' weights are drawn (here as PyTorch draws them; --teacher has others), the range of T (0.5 to 2, as in its
convolutional networks), its learning rate (everybody's), or whether a layer normalises what it hands on (here not). The
noise and the teacher's hidden layers belong to a seed, so that along K nothing but the output layer is new.
The networks of an ensemble see the same batches. --heads random starts learned heads where the random ones stay: drawn
as PyTorch does, they are 3 to 9 times smaller, in a proportion that changes with K.

Run
    python ff_synthetic/train.py                                # the paper's four methods, five seeds, six K
    python ff_synthetic/train.py --methods cells                # the eight cells
    python ff_synthetic/train.py --methods cells --heads random # the same, all heads drawn alike
    python ff_synthetic/train.py --teacher he                   # another teacher
    python ff_synthetic/train.py --resume runs/ff_synthetic/RUN      # go on after the last cell
"""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

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
    seed: int = 0  # of teacher, data, weights and batches
    methods: str = "dtg,deepsup,bp,ensemble"  # or cells, or names of cells like local-squares-learned
    classes: str = "5,10,15,20,30,50"  # K
    steps: int = 8000  # of each student
    batch_size: int = 256  # rows per step
    lr: float = 0.001  # Adam's
    train_rows: int = 20000  # noise with labels to learn from
    test_rows: int = 5000  # and to test on
    teacher: str = "default"  # its weights: default (uniform, as PyTorch's layers), he (normal) or orthogonal
    heads: str = "default"  # learned heads start: default (as PyTorch's layers) or random (where the random ones stay)
    jobs: int = 0  # cells at a time, each in a process with one thread (0: as many as --threads)


SEEDS = (42, 123, 456, 789, 1024)  # the paper's
CHOICES = {"teacher": ("default", "he", "orthogonal"), "heads": ("default", "random")}
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


def teacher_labels(K, cfg, seed):
    """-> x (N, D_IN), labels (N,) of training and of test rows, by a ReLU network of three layers."""
    sizes, rng = (D_IN, HIDDEN, HIDDEN, K), np.random.default_rng([seed, 0])
    x = rng.standard_normal((cfg.train_rows + cfg.test_rows, D_IN)).astype(np.float32)
    layers = []
    for i, (n, m) in enumerate(zip(sizes, sizes[1:], strict=False)):
        last = i == len(sizes) - 2
        rng = np.random.default_rng([seed, K, 1]) if last else rng
        layer = linear(n, m, rng, relu=not last)
        layers.append(layer)
        W, b = layer.params["W"], layer.params["b"]
        if cfg.teacher != "default":
            b[:] = 0
            W[...] = rng.standard_normal(W.shape) * np.sqrt(2 / len(W))
        if cfg.teacher == "orthogonal":
            q, r = np.linalg.qr(rng.standard_normal((max(W.shape), min(W.shape))))
            q *= np.sign(np.diag(r))  # uniform over all of them
            W[...] = q if W.shape[0] >= W.shape[1] else q.T
    h = x
    for layer in layers:
        h, _ = layer.forward(h)
    labels, n = h.argmax(axis=1), cfg.train_rows
    return (x[:n], labels[:n]), (x[n:], labels[n:])


def head(K, learned, cfg, rng):
    """u (B, HIDDEN) -> psi (B, K), learned or random."""
    if not learned:
        return RandomMap(HIDDEN, K, rng)
    if cfg.heads == "default":
        return linear(HIDDEN, K, rng)
    layer, start = Dense(HIDDEN, K, np.random.default_rng(0), relu=False), RandomMap(HIDDEN, K, rng).state
    layer.params = {"W": start["R"], "b": start["b"]}
    return layer


class Student:
    """Four layers, each with a head (bp: only the last one), and an optimiser for each part."""

    def __init__(self, K, cfg, rng, local=False, squares=False, learned=True, one_head=False):
        sizes = [D_IN] + [HIDDEN] * LAYERS
        self.layers = [linear(n, m, rng, relu=True) for n, m in zip(sizes, sizes[1:], strict=False)]
        self.read = [i for i in range(LAYERS) if not one_head or i == LAYERS - 1]
        self.heads = {i: head(K, learned, cfg, rng) for i in self.read}
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
    """One method, one K, one seed -> its line in the record."""
    method, K, seed, cfg = job
    cfg = Config(**cfg)
    (x, y), (x_test, y_test) = teacher_labels(K, cfg, seed)
    students = students_of(method, K, cfg, np.random.default_rng([seed, K, 2]))
    rng, start, order = np.random.default_rng([seed, K, 3]), perf_counter(), np.empty(0, int)
    for _ in range(cfg.steps):  # whole epochs one after the other, each in a new order
        if len(order) < cfg.batch_size:
            order = rng.permutation(len(x))
        rows, order = order[: cfg.batch_size], order[cfg.batch_size :]
        for student in students:
            student.step(x[rows], y[rows])
    seconds = perf_counter() - start
    found = {  # softmax changes no single student's answer
        name: accuracy(sum(softmax(student.scores(part)) for student in students).argmax(axis=1), labels)
        for name, part, labels in (("train_acc", x, y), ("test_acc", x_test, y_test))
    }
    sizes = {"learned": sum(s.learned_numbers() for s in students), "fixed": sum(s.fixed_numbers() for s in students)}
    work = cfg.steps * sum(flop(student, cfg.batch_size) for student in students)
    share = {"majority": float(np.bincount(y_test, minlength=K).max() / len(y_test))}
    return {"method": method, "K": K, "seed": seed} | found | sizes | share | {"flop": work, "seconds": seconds}


def one_thread():
    """Every worker has one, and compiles before anything is timed: cells are what runs in parallel."""
    cli.set_threads(1)
    for method in NAMES:
        students_of(method, 2, Config(), np.random.default_rng(0))[0].step(np.ones((2, D_IN), np.float32), np.arange(2))


def check(cfg):
    """Say in one line what cannot work, before anything is computed."""
    runs.check_numbers("--classes", cfg.classes)
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
    """Their names, each once; two names of one cell are one method."""
    found = {}
    for part in cfg.methods.split(","):
        for name in CELLS if part == "cells" else [part]:
            found.setdefault(NAMES.get(name, name), name)
    return list(found.values())


def in_processes(jobs, n):
    """The lines of these cells, as they come, n at a time."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n, mp_context=context, initializer=one_thread)
    try:
        for future in as_completed([pool.submit(cell, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool:
        raise cli.UsageError(
            "a process was killed, for memory perhaps: go on with --resume, with fewer --jobs"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def main():
    cfg, options = cli.parse(Config, __doc__, choices=CHOICES, seeds=SEEDS)
    if options.save or options.data_dir or options.dataset != "auto":
        raise cli.UsageError("the data are drawn, and no weights kept: leave out --dataset, --data-dir and --save")
    done, seeds = set(), options.seeds
    if options.resume:
        folder = Path(options.resume)
        lines = record.read(folder)
        if set(lines[0].get("config", ())) != set(asdict(cfg)):
            raise cli.UsageError(f"{folder} is no run of this script in this version: it cannot be resumed")
        if "final" in lines[-1]:
            raise cli.UsageError(f"{folder} is finished: nothing to resume")
        jobs, cfg, seeds = cfg.jobs, Config(**lines[0]["config"]), lines[0]["seeds"]
        cfg.jobs = jobs or cfg.jobs
        done = {(line["method"], line["K"], line["seed"]) for line in lines if "method" in line}
        record.cut(folder, len(lines))  # a line that was not written whole goes
    check(cfg)
    every = [(m, K, seed) for seed in seeds for K in runs.numbers(cfg.classes) for m in methods(cfg)]
    n = min(cfg.jobs or cli.set_threads(options.threads), len(every))
    about = {"machine": record.machine(1), "commit": record.commit()}
    if options.resume:
        record.append(folder, {"resumed_after_cells": len(done)} | about)
    else:
        folder = record.new_run(options.out or ROOT / "runs" / "ff_synthetic", seeds[0])
        first = {"command": record.command(), "config": asdict(cfg), "seeds": seeds, "dataset": {"name": "synthetic"}}
        record.append(folder, first | about)
    print(f"{len(every)} cells, {len(done)} of them done, {n} at a time -> {folder}", flush=True)
    for line in in_processes([(*key, asdict(cfg)) for key in every if key not in done], n):
        record.append(folder, line)
        print(
            f"K {line['K']:3d}  seed {line['seed']:5d}  {line['method']:24s} train {100 * line['train_acc']:5.1f} %"
            f"  test {100 * line['test_acc']:5.1f} %  {line['seconds']:.0f} s",
            flush=True,
        )
    lines, test = [line for line in record.read(folder) if "method" in line], {}
    for method in methods(cfg):
        for K in runs.numbers(cfg.classes):
            own = [line for line in lines if (line["method"], line["K"]) == (method, K)]
            mean, sd = mean_sd([100 * line["test_acc"] for line in own])
            test[f"{method}-{K}_acc"] = mean / 100
            size = f"{own[0]['learned']:,} learned and {own[0]['fixed']:,} fixed numbers"
            work = f"{own[0]['flop'] / 1e12:.2f} TFLOP"
            print(f"{method:24s} K {K:3d}  test {mean:5.1f} ± {sd:.1f} %  {size}, {work}")
    seconds = sum(line["seconds"] for line in lines)
    print(f"{sum(line['flop'] for line in lines) / seconds / 1e9:.0f} GFLOP/s in each of {n} processes")
    record.append(folder, {"final": {"cells": len(lines), "seconds": seconds, "test": test}})
    if options.figures:
        cli.draw("viz/ff_synthetic.py", folder)


if __name__ == "__main__":
    cli.run(main)
