"""Forward-Forward with the four parts of AMSGA (Beigzad & Verma 2026, arXiv 2605.18804), each with its own switch.

Idea
    Goodness is measured at three scales, the wrong labels to learn from are chosen by how hard they are, the threshold
    grows with depth and with time, and the learning rate warms up and then falls. Everything else is plain
    Forward-Forward with the label in the first ten pixels: each layer learns alone.

Symbols
    x    (B, 784)   image with a label in its first ten pixels
    h    (B, D)     a layer's activity ReLU(x W + b); l = 0 ... L-1 its number, s = l/(L-1) its depth, from 0 to 1
    p    a number   progress e/E: epoch e of E
    g    (B,)       goodness of --scales, all of it means of squares:                                     (eq. 2-6)
                    g = (0.4 - 0.15 s) local + 0.35 inter + (0.25 + 0.15 s) global
                    local_b = mean of h_bj^2 over the layer, inter_b = mean over K groups of the groups' means,
                    global = mean over layer and batch, the same for all rows: its gradient is shared by them
    S    rows       wrong labels that --mining lets a step learn from: near theta_0, and some above it    (eq. 7-10)
    theta(l, p)     theta_0 (1 + 0.15 s) (1 + 0.3 p) with --adapt                                         (eq. 11)
    eta(e)          learning rate, up for a tenth of the epochs, then a cosine to a tenth, with --anneal  (eq. 12-13)
    loss a number   mean over right rows of softplus(theta - g), plus mean over S of softplus(g - theta)
    Prediction: the label with the most goodness, summed over layers, without the global part, which is no row's own.

Deviates from the paper
    It does not say what a layer does to its input. Its algorithm hands on h as it is (--norm none, the default). The
    public program whose sizes, threshold, batch and epochs its baseline has (mpezeshki/pytorch_forward_forward) scales
    every layer's input to length 1 (--norm length). What else it leaves open (how a label is predicted, whose goodness
    decides what is hard, l/L) is a setting; python ff_mnist/explore.py --table amsga compares them on held-out images.
    Wrong labels are never the right one, unless --negatives shuffle. No gradient crosses a layer, but with
    --mining-layer mean or last all layers choose the rows that the first one learns from. The baseline's goodness is a
    sum (eq. 1), AMSGA's a mean: here both are means, unless --goodness sum.

Run
    python ff_mnist/amsga.py --seed 0
    python ff_mnist/amsga.py --seed 0 --preset paper                           # full batch, as in the paper
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, compilation, record, runs, split  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common.arrays import host, like, namespace
from common.evaluate import accuracy, in_batches
from common.goodness import SumSquare, scaled, threshold_loss
from common.label_input import LabelInput
from common.labels import one_hot, wrong_labels
from common.layers import Dense
from common.optim import Adam, clip
from common.split import Split, pixels


@dataclass
class Config:
    seed: int = 0  # random seed: weights, order of images, wrong labels, what is mined
    n_epochs: int = 30  # passes over the training images
    sizes: str = "600,600,500"  # units of the hidden layers
    scales: bool = True  # goodness at three scales (off: mean of squares)
    mining: bool = True  # wrong labels chosen by a curriculum (off: all that were drawn)
    adapt: bool = True  # threshold that grows with depth and progress (off: theta everywhere)
    anneal: bool = True  # learning rate with warm-up and cosine (off: constant)
    goodness: str = "mean"  # of squares, at every scale, or their sum (that times the layer's width)
    theta: float = 2.0  # threshold for goodness, before it grows
    depth: str = "text"  # l/L in eq. 5 and 11: from 0 to 1 (text), or from 1/L to 1 (algorithm: the loop 1 ... L)
    local_mean: str = "row"  # eq. 2: a mean over each row, or over the batch as well
    mining_layer: str = "mean"  # whose goodness says which wrong labels are hard: mean (of all layers), first or last
    negatives: str = "uniform"  # wrong labels: uniform, or shuffle (the batch's labels: a tenth of them are right)
    norm: str = "none"  # what a layer sees: activity as it is (none), rms (mean square 1) or length (sum of squares 1)
    vote: str = "all"  # layers that vote: all, or upper (all but the first)
    lr: float = 0.03  # learning rate (Adam)
    clip: float = 0.3  # largest norm of a layer's gradient
    batch_size: int = 500  # images per step (0: all of them, the paper's full batch)
    train_subset: int = 0  # training images, drawn by the seed (0: all that are not held out)
    validation: int = 10000  # training images held out (0: train on all of them)
    eval_subset: int = 1000  # images behind each point of the curves
    snapshot_every: int = 5  # epochs between the snapshots that figures are drawn from (0: none)


BASELINE = {"scales": False, "mining": False, "adapt": False, "anneal": False}
FULL = {"batch_size": 0, "snapshot_every": 100}
PRESETS = {  # the paper's, full batch
    "paper": FULL | {"n_epochs": 1500, "lr": 0.04},
    "paper-fashion": FULL | {"n_epochs": 2500, "lr": 0.05, "theta": 2.5, "sizes": "700,700,600"},
    "baseline": FULL | BASELINE | {"n_epochs": 1000, "lr": 0.04, "sizes": "500,500"},
    "baseline-fashion": FULL | BASELINE | {"n_epochs": 1500, "lr": 0.05, "theta": 2.5, "sizes": "500,500"},
}
CHOICES = {
    "goodness": ("mean", "sum"),
    "depth": ("text", "algorithm"),
    "local_mean": ("row", "batch"),
    "mining_layer": ("mean", "first", "last"),
    "negatives": ("uniform", "shuffle"),
    "norm": ("rms", "length", "none"),
    "vote": ("all", "upper"),
}


class MultiScale:
    """Goodness at three scales, eq. 2-6, of a layer with D units at depth s.

    Every row's own part is a weighted sum of its squares, sum_j a_j h_bj^2; the batch's part, its mean square, is one
    number for all rows:

        g_b = sum_j a_j h_bj^2 + c (1 / (B D)) sum_ij h_ij^2
        dL/dh_bj = 2 h_bj (a_j dL/dg_b + c (1 / (B D)) sum_i dL/dg_i)

    With groups of equal size a_j is the same for all units, (w_local + w_inter) / D: the two scales are one.
    """

    def __init__(self, D, s, local_mean="row", on=True, goodness="mean"):
        K = max(1, min(8, D // 10))  # eq. 3; where D is too small for groups, inter is local
        groups = [len(part) for part in np.array_split(np.arange(D), K)]
        inter = np.concatenate([np.full(n, 1 / (K * n)) for n in groups])
        w_local, w_inter, w_global = (0.4 - 0.15 * s, 0.35, 0.25 + 0.15 * s) if on else (1.0, 0.0, 0.0)  # eq. 5
        if local_mean == "batch" and on:  # eq. 2 as its text has it
            w_local, w_global = 0.0, w_global + w_local
        factor = D if goodness == "sum" else 1
        row_weights, self.batch_weight = factor * (w_local / D + w_inter * inter), factor * w_global  # eq. 6
        edges = [0, *(np.flatnonzero(np.diff(row_weights)) + 1), D]  # larger groups come first: one piece or two
        self.pieces = [(slice(a, b), row_weights[a]) for a, b in zip(edges, edges[1:], strict=False)]

    def squares(self, h):
        """h (N, D) -> sums of the squares of each piece, of units that weigh the same [(N,), ...]."""
        if len(self.pieces) == 1:
            return [SumSquare().forward(h)[0]]
        return [namespace(h).einsum("bi,bi->b", h[:, piece], h[:, piece]) for piece, _ in self.pieces]

    def own(self, squares):
        """-> each row's own part (N,)."""
        return sum(s * s.dtype.type(weight) for s, (_, weight) in zip(squares, self.pieces, strict=True))

    def per_row(self, h):
        """h (N, D) -> each row's own part (N,)."""
        return self.own(self.squares(h))

    def forward(self, h, batch=None, squares=None):
        """h (N, D) -> g (N,), cache. batch (M,): the rows that eq. 4 is a mean over (default: all); squares: of h, if
        they are known already."""
        squares = squares or self.squares(h)
        total = sum(squares)
        of_batch = (total if batch is None else total[batch]).mean() / h.shape[1]  # eq. 4: all neurons, all samples
        return self.own(squares) + of_batch * h.dtype.type(self.batch_weight), (h, batch)

    def backward(self, dg, cache):
        """dL/dg (N,), 0 outside the batch -> dL/dh (N, D)."""
        return self.scale(cache[0], self.factors(dg, cache))

    def factors(self, dg, cache):
        """-> dL/dh / 2h of every row, which is the same for all units of a piece: [(N,), ...]."""
        h, batch = cache
        xp, M = namespace(h), len(h) if batch is None else len(batch)
        shared = dg.sum() * h.dtype.type(self.batch_weight / (M * h.shape[1]))
        if batch is not None:
            of_rows = xp.zeros_like(dg)
            of_rows[batch] = shared
            shared = of_rows
        return [dg * h.dtype.type(weight) + shared for _, weight in self.pieces]

    def scale(self, h, factors):
        """2h (N, D), each piece times its factors."""
        if len(factors) == 1:
            return SumSquare().backward(factors[0], h)
        dh = namespace(h).empty_like(h)
        for factor, (piece, _) in zip(factors, self.pieces, strict=True):
            namespace(h).multiply(h[:, piece], (2 * factor)[:, None], out=dh[:, piece])
        return dh


def depth(i, n_layers, cfg):
    """s of layer i: what eq. 5 and 11 call l/L."""
    return (i + 1) / n_layers if cfg.depth == "algorithm" else i / max(1, n_layers - 1)


def threshold(i, n_layers, p, cfg):
    """theta of layer i at progress p, eq. 11."""
    return cfg.theta * ((1 + 0.15 * depth(i, n_layers, cfg)) * (1 + 0.3 * p) if cfg.adapt else 1)


def learning_rate(epoch, cfg):
    """eta at epoch e = 1 ... E, eq. 12 and 13."""
    E, least = cfg.n_epochs, 0.1 * cfg.lr
    if not cfg.anneal:
        return cfg.lr
    if epoch <= 0.1 * E:
        return cfg.lr * epoch / (0.1 * E)
    return least + 0.5 * (cfg.lr - least) * (1 + np.cos(np.pi * (epoch - 0.1 * E) / (0.9 * E)))


def band(p):
    """r(p): how far from theta_0 the goodness of a wrong label may be, to be learnt from at progress p."""
    if p < 0.3:
        return 0.3 + 0.2 * p / 0.3  # eq. 7
    if p < 0.7:
        return 0.5 + 0.5 * (p - 0.3) / 0.4  # eq. 8
    return 1.0 + 0.5 * (p - 0.7) / 0.3  # section III.B.1 c


def mined(g, theta, p, rng):
    """Rows of wrong labels to learn from: their goodness g (N,), theta_0, progress p -> sorted numbers (M,), and the
    share of all rows that eq. 7-10 took by themselves."""
    xp = namespace(g)
    U, taken = like(g, rng.random(len(g))), abs(g - theta) <= band(p)  # eq. 7
    if 0.3 <= p < 0.7:
        taken |= (g > theta + 0.5) & (U < 0.4)  # eq. 9
    elif p >= 0.7:
        taken |= (g > theta) & (U < 0.5)  # eq. 10
    share = float(taken.mean())
    missing = int(np.ceil(0.6 * len(g))) - round(share * len(g))  # section III.B.1 d: the hardest of the rest
    if missing > 0:
        rest = xp.flatnonzero(~taken)
        taken[rest[xp.argsort(-g[rest], kind="stable")[:missing]]] = True
    return xp.flatnonzero(taken), share


class Net:
    """Hidden layers, their goodness, and an optimiser for each."""

    def __init__(self, cfg, n_inputs, n_classes, rng):
        sizes = runs.numbers(cfg.sizes)
        self.layers = [LabelInput(n_inputs, sizes[0], n_classes, rng, norm=cfg.norm)]  # Kaiming, as Dense
        self.layers += [Dense(n, m, rng) for n, m in zip(sizes, sizes[1:], strict=False)]
        L = len(sizes)
        self.goodness = [
            MultiScale(n, depth(i, L, cfg), cfg.local_mean, cfg.scales, cfg.goodness) for i, n in enumerate(sizes)
        ]
        self.opts = [Adam(layer.params, cfg.lr) for layer in self.layers]
        self.parts = {"layers": (self.layers, self.opts)}  # what lives between steps


def ff_step(net, pixels, labels, cfg, rng, n_classes, p):
    """One step of all layers: pixels (B, 774), labels (B,), progress p -> what `train_epoch` logs, per layer (7)."""
    B, L, xp = len(labels), len(net.layers), namespace(pixels)
    if cfg.negatives == "shuffle":
        wrong = labels[like(labels, rng.permutation(B))]
    else:
        wrong = wrong_labels(labels, n_classes, rng)
    seen = forward(net, pixels, xp.concatenate([labels, wrong]), cfg, n_classes)
    squares = [of.squares(y) for of, (y, _) in zip(net.goodness, seen, strict=True)]  # for mining and for the losses
    taken, share = mined(judged(net, seen, squares, cfg), cfg.theta, p, rng) if cfg.mining else (xp.arange(B), 1.0)
    log = []
    for i, (layer, of, opt) in enumerate(zip(net.layers, net.goodness, net.opts, strict=True)):
        y, cache = seen[i]
        loss, dy, g_pos, g_neg = objective(of, y, taken, threshold(i, L, p, cfg), squares[i])
        _, grads = layer.backward(dy, cache)  # nothing leaves this layer
        opt.step(clip(grads, cfg.clip))
        dead = (y[:B].max(axis=0) <= 0).mean()  # units that no right row excites
        log.append((loss, g_pos, g_neg, dead, len(taken) / B, share, (wrong == labels)[taken].mean()))
    return log  # n_layers times 7 numbers


def forward(net, pixels, labels, cfg, n_classes):
    """All rows through all layers: pixels (B, 774), labels (nB,), row r shows image r mod B -> [(y (nB, D), cache)]."""
    part, codes = net.layers[0].image_part(pixels), one_hot(labels, n_classes)
    h, seen = None, []
    for i, layer in enumerate(net.layers):
        y, cache = layer.forward(h) if i else layer.forward(part, codes)
        seen.append((y, cache))
        h = scaled(y, cfg.norm)
    return seen


def judged(net, seen, squares, cfg):
    """The goodness by which wrong labels are chosen: that of the second half of the rows -> (B,)."""
    half = slice(len(seen[0][0]) // 2, None)
    g = [
        of.forward(y[half], squares=[s[half] for s in own])[0]
        for of, (y, _), own in zip(net.goodness, seen, squares, strict=True)
    ]
    return {"mean": sum(g) / len(g), "first": g[0], "last": g[-1]}[cfg.mining_layer]


def objective(goodness, y, taken, theta, squares):
    """One layer's loss from its activities y (2B, D), and their squares: B right rows and B wrong ones, of which rows
    taken (M,) count -> loss, dL/dy (2B, D), mean g+, mean g-.

    Rows that do not count keep their place, with gradients of 0: to pick out the others costs more than it saves.
    """
    B = len(y) // 2
    g_pos, cache_pos = goodness.forward(y[:B], squares=[s[:B] for s in squares])
    g_neg, cache_neg = goodness.forward(y[B:], taken, [s[B:] for s in squares])
    xp, g_taken = namespace(y), g_neg[taken]
    loss_pos, d_pos = threshold_loss(g_pos, xp.ones_like(g_pos), theta)
    loss_neg, d_taken = threshold_loss(g_taken, -xp.ones_like(g_taken), theta)
    d_neg = xp.zeros_like(g_neg)
    d_neg[taken] = d_taken
    factors = zip(goodness.factors(d_pos, cache_pos), goodness.factors(d_neg, cache_neg), strict=True)
    dy = goodness.scale(y, [xp.concatenate(both) for both in factors])
    return loss_pos + loss_neg, dy, g_pos.mean(), g_taken.mean()


def goodness_of_labels(net, pixels, cfg, n_classes):
    """Each row's own goodness under every candidate label: pixels (N, 774) -> (n_layers, N, 10)."""
    found = []
    for rows in in_batches(len(pixels), 500):
        B = len(pixels[rows])
        xp = namespace(pixels)
        every = xp.repeat(xp.arange(n_classes), B)  # (10 B,)
        seen = forward(net, pixels[rows], every, cfg, n_classes)
        g = [of.per_row(y).reshape(n_classes, B).T for of, (y, _) in zip(net.goodness, seen, strict=True)]
        found.append(host(xp.stack(g)))
    return np.concatenate(found, axis=1)


def vote(g, cfg):
    """Goodness (n_layers, N, 10) -> predicted labels (N,)."""
    return (g[1:] if cfg.vote == "upper" and len(g) > 1 else g).sum(axis=0).argmax(axis=1)


def check(cfg, ds):
    """Say in one line what cannot work, before anything is computed."""
    split.check(ds, cfg)
    runs.check_numbers("--sizes", cfg.sizes)
    runs.at_least(cfg, 1, "n_epochs", "eval_subset")
    runs.at_least(cfg, 0, "batch_size", "snapshot_every")
    runs.positive(cfg, "theta", "lr", "clip")
    if np.prod(ds.x_train.shape[1:]) <= len(ds.class_names):
        raise cli.UsageError(f"{ds.name}'s images are too small for a label of {len(ds.class_names)} pixels")


def train_epoch(net, data, rng, cfg, epoch):
    """One pass over the training images -> means over the epoch."""
    n, p = len(data.train[0]), epoch / cfg.n_epochs
    order = rng.permutation(n)
    start, log = time.perf_counter(), []
    for opt in net.opts:
        opt.lr = float(learning_rate(epoch, cfg))
    for rows in cli.progress(in_batches(n, cfg.batch_size or n), f"{epoch}/{cfg.n_epochs}"):
        x, labels = data.batch(order[rows], 0, rng)
        log.append(ff_step(net, x[:, data.n_classes :], labels, cfg, rng, data.n_classes, p))
    keys = ("loss", "g_pos", "g_neg", "silent", "mined", "by_the_rules", "false_negatives")
    log = np.array([[[float(host(v)) for v in layer] for layer in each] for each in log])  # (steps, n_layers, 7)
    line = dict(zip(keys, log.mean(axis=0).T, strict=True))
    thetas = [threshold(i, len(net.layers), p, cfg) for i in range(len(net.layers))]
    return line | {"theta": thetas, "lr": learning_rate(epoch, cfg), "seconds": time.perf_counter() - start}


def evaluate(net, images, labels, cfg, n_classes):
    """Accuracy, and that of each layer alone, on uint8 images -> dict, goodness (n_layers, N, 10)."""
    g = goodness_of_labels(net, pixels(images)[:, n_classes:], cfg, n_classes)
    labels = host(labels)
    layer_acc = [accuracy(layer.argmax(axis=1), labels) for layer in g]
    votes = {kind: accuracy(vote(g, replace(cfg, vote=kind)), labels) for kind in CHOICES["vote"]}
    return {"acc": votes[cfg.vote], "votes": votes, "layer_acc": layer_acc}, g


def snapshot(folder, epoch, net, data, g, labels, cfg):
    """What the figures need: goodness of every label, right labels; and on training images what would be mined now."""
    rng = np.random.default_rng([cfg.seed, 5])
    images, right = (part[:1000] for part in data.train)
    xp, x = namespace(images), pixels(images)[:, data.n_classes :]
    both = xp.concatenate([right, wrong_labels(right, data.n_classes, rng)])
    seen = forward(net, x, both, cfg, data.n_classes)
    of_wrong = judged(net, seen, [of.squares(y) for of, (y, _) in zip(net.goodness, seen, strict=True)], cfg)
    taken, _ = mined(of_wrong, cfg.theta, epoch / cfg.n_epochs, rng)
    (folder / "snapshots").mkdir(exist_ok=True)
    arrays = {"goodness": g, "labels": host(labels), "wrong_goodness": host(of_wrong), "mined": host(taken)}
    arrays["band"] = np.array(band(epoch / cfg.n_epochs))
    record.save_arrays(folder / "snapshots" / f"epoch-{epoch:04d}.npz", arrays, {"epoch": epoch})


def run(cfg, options, threads):
    """One run from its start, or from its checkpoint, to its end -> the last line of its record."""
    if options.device == "cpu":
        compilation.announce("dense")
    auto = "fashion-mnist" if "fashion" in (options.preset or "") else "mnist"
    this = runs.open_run(cfg, options, threads, "ff_mnist_amsga", runs.images(auto), check, Split)
    cfg, data = this.cfg, this.split
    net = Net(cfg, data.size, data.n_classes, np.random.default_rng([cfg.seed, 0]))
    saved, rng = net.parts, np.random.default_rng([cfg.seed, 3])
    this.restore(saved, {"rng": rng})
    clock = runs.Clock(this.done, cfg.n_epochs)
    for epoch in range(this.done + 1, cfg.n_epochs + 1):
        log = train_epoch(net, data, rng, cfg, epoch)
        for key, (images, labels) in data.parts("train", "val").items():
            images, labels = images[: cfg.eval_subset], labels[: cfg.eval_subset]
            log[key], g = evaluate(net, images, labels, cfg, data.n_classes)
        if cfg.snapshot_every and epoch % cfg.snapshot_every == 0:
            snapshot(this.folder, epoch, net, data, g, labels, cfg)
        record.append(this.folder, {"epoch": epoch} | log)
        this.checkpoint(epoch, saved, {"rng": rng})
        print(f"{runs.epoch_line(epoch, cfg, log)}  | {clock(log['seconds'], epoch)}", flush=True)

    parts = data.parts("test", "val", "train")  # the paper prints training accuracy too
    final = {key: evaluate(net, *part, cfg, data.n_classes)[0] for key, part in parts.items()}
    record.append(this.folder, {"final": final | runs.cost(clock, net.layers)})
    print(f"accuracy: {100 * final['train']['acc']:.2f} % training, {100 * final['test']['acc']:.2f} % test")
    this.finish(options, net.layers, "viz/ff_mnist_descendants.py")
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
