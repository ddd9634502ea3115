"""Forward-Forward on text, where the network's own guesses are the negative data: Hinton's (2022) fables.

Idea
    Ten characters of a fable are real data. The same ten with the last one replaced by what the network itself
    predicted there are negative data; so are ten characters of a string that the network generated on its own. Layers
    that are active for real and silent for generated windows come to know how words go on, and a softmax on top, which
    predicts the next character, reads it from them. No label is needed, and nothing but the network makes negatives.

Symbols
    x    (B, 300)     a window of 10 characters, one of 30 symbols each, one-hot; scaled to mean square 1
    y    (B, n)       a layer's activity ReLU(x W + b)
    g    (B,)         goodness, the sum of y^2 over the layer (eq. 1)
    L    a number     mean of softplus(-t (g - theta)), t = +1 for real, -1 for generated windows; theta = n (eq. 1)
    h    (B, n)       y scaled to mean square 1: what the next layer and the softmax see
    A string has 100 characters; 11 to 100 are predicted, each from the ten before it.

Variants (flags)
    --negatives teacher     the last character replaced by the softmax's guess (never the right one)
    --negatives self        windows of strings that the network continues on its own from their first ten characters
    --negatives none        the hidden layers stay as they were drawn: what is a softmax on random features worth?
    --readout 0             a softmax on the window itself, without hidden layers

Deviates from the paper
    Our own retelling of 50 fables (fables.txt) as text, unless --text names another one; it prints no learning rates.

Run
    python ff_mnist/sequence.py --seed 0
"""

import hashlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, compilation, record, runs  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common.evaluate import in_batches, silent
from common.functions import softmax
from common.goodness import SumSquare, normalise, peers, softmax_cross_entropy, threshold_loss, unsettled
from common.labels import one_hot, sampled_labels
from common.layers import Dense
from common.optim import SCHEDULES, SGD

SYMBOLS = "abcdefghijklmnopqrstuvwxyz ,.'"
WINDOW, LENGTH = 10, 100  # characters of a window, and of a string


@dataclass
class Config:
    seed: int = 0  # random seed: weights, order of windows, guesses
    negatives: str = "teacher"  # teacher, self, or none: random hidden layers
    n_epochs: int = 60  # passes over the windows
    sizes: str = "2000,2000,2000"  # units of the hidden layers
    readout: int = 2  # layers below the softmax, from the top (0: it sees the window itself)
    strings: int = 248  # strings of 100 characters, from the beginning of the text
    validation: int = 0  # of these, how many are held out: the last ones
    theta: float = 1.0  # threshold for goodness, times the number of units
    peer: float = 0.03  # strength of peer normalisation (0: off)
    lr: float = 0.001  # learning rate of the hidden layers (momentum 0.9)
    weight_decay: float = 0.001  # theirs
    head_lr: float = 0.003  # learning rate of the softmax
    head_decay: float = 0.003  # its weight decay
    schedule: str = "half"  # the learning rate over the run: half (constant, then to 0), linear, cosine or constant
    batch_size: int = 100  # windows per step
    text: str = ""  # a text file of your own (default: fables.txt beside this script)


CHOICES = {"negatives": ("teacher", "self", "none"), "schedule": tuple(SCHEDULES)}


def symbols_of(text):
    """Any text -> its symbols as numbers from 0 to 29: small letters, single spaces, and . , ' of the punctuation."""
    text = text.lower().translate(str.maketrans("’‘;:!?-—", "'',,.. ".ljust(8)))
    kept = "".join(c for c in " ".join(text.split()) if c in SYMBOLS)
    return np.array([SYMBOLS.index(c) for c in " ".join(kept.split())], np.int64)


@dataclass
class Text:
    """A text as strings of symbols (S, 100), and where it comes from."""

    name: str
    x_train: np.ndarray
    sha256: str
    source: str
    note: str = ""
    class_names: tuple = tuple(SYMBOLS)


class Split:
    """train and val: strings (S, 100), the last cfg.validation held out."""

    unit = "strings"

    def __init__(self, text, cfg):
        n = len(text.x_train) - cfg.validation
        self.parts = {"train": text.x_train[:n]} | ({"val": text.x_train[n:]} if cfg.validation else {})
        self.about = {"train": n}


def load(name, cfg, options):
    """The text that cfg names, cut into strings."""
    if options.dataset != "auto":
        raise cli.UsageError(f"--dataset {options.dataset}: this script reads a text, --text FILE")
    path = Path(cfg.text or Path(__file__).with_name("fables.txt"))
    try:
        found = symbols_of(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise cli.UsageError(f"--text {path}: {getattr(error, 'strerror', None) or 'is no UTF-8 text'}") from None
    if len(found) < cfg.strings * LENGTH:
        need = f"--strings {cfg.strings} needs {cfg.strings * LENGTH} characters"
        raise cli.UsageError(f"{need}, and {path} has {len(found)}: name a longer text or fewer strings")
    strings = found[: cfg.strings * LENGTH].reshape(cfg.strings, LENGTH)
    return Text(path.stem, strings, hashlib.sha256(strings.astype(np.uint8).tobytes()).hexdigest(), str(path))


def windows(strings):
    """Strings (S, T) -> every window of ten symbols (S, T - 9, 10)."""
    return np.lib.stride_tricks.sliding_window_view(strings, WINDOW, axis=1)


def inputs(some):
    """Windows (B, 10) -> x (B, 300), one-hot and of mean square 1."""
    return normalise(one_hot(some.ravel(), len(SYMBOLS)).reshape(len(some), -1))


class Net:
    """Hidden layers, softmax over the next symbol, and an optimiser for each."""

    def __init__(self, cfg, rng):
        sizes = [WINDOW * len(SYMBOLS), *runs.numbers(cfg.sizes)]
        self.layers = [Dense(n, m, rng, gain=1.0) for n, m in zip(sizes, sizes[1:], strict=False)]
        for layer, n in zip(self.layers, sizes[1:], strict=True):
            layer.state["mean"] = np.full(n, 0.5, np.float32)  # of each unit's activity, for peer normalisation
        seen = sizes[1:][-cfg.readout :] if cfg.readout else sizes[:1]
        self.head = Dense(sum(seen), len(SYMBOLS), rng, relu=False, gain=0.0)
        self.opts = [SGD(layer.params, cfg.lr, decay=cfg.weight_decay) for layer in self.layers]
        self.head_opt = SGD(self.head.params, cfg.head_lr, decay=cfg.head_decay)


def states(layers, some, readout):
    """Windows (B, 10) -> what the softmax sees of them: the last `readout` layers' h, side by side."""
    h, found = inputs(some), []
    if readout == 0:
        return h
    for layer in layers:
        h = normalise(layer.forward(h, train=False)[0])
        found.append(h)
    return np.concatenate(found[-readout:], axis=1)


def head_step(net, before, following, cfg):
    """One step of the softmax: windows (B, 10), the symbols that follow them (B,) -> its logits (B, 30) before it."""
    logits, cache = net.head.forward(states(net.layers, before, cfg.readout))
    _, dlogits = softmax_cross_entropy(logits, following)
    net.head_opt.step(net.head.backward(dlogits, cache)[1])  # nothing is handed to the layers below
    return logits


def ff_step(net, real, generated, cfg):
    """One step of the hidden layers: windows (B, 10), real and generated -> layer by layer loss, mean g+, mean g-."""
    B = len(real)
    t = np.repeat(np.float32([1, -1]), B)
    h, log = inputs(np.concatenate([real, generated])), []  # (2B, 300)
    for layer, opt in zip(net.layers, net.opts, strict=True):
        y, cache = layer.forward(h)
        g, squares = SumSquare().forward(y)
        loss, dg = threshold_loss(g, t, cfg.theta * y.shape[1])
        pull = peers(layer.state["mean"], y[:B], cfg.peer, len(y))
        rows = unsettled(dg)
        grads = layer.backward(SumSquare().backward(dg[rows], squares[rows]), cache, pull=pull, rows=rows)[1]
        opt.step(grads)  # nothing leaves this layer
        h = normalise(y)
        log.append((loss, g[:B].mean(), g[B:].mean()))
    return np.array(log)  # (n_layers, 3)


def rollout(net, beginnings, cfg, rng):
    """First ten symbols (S, 10) -> whole strings (S, 100) that the network generated, drawn from its softmax."""
    strings = np.empty((len(beginnings), LENGTH), np.int64)
    strings[:, :WINDOW] = beginnings
    for i in range(WINDOW, LENGTH):
        logits, _ = net.head.forward(states(net.layers, strings[:, i - WINDOW : i], cfg.readout))
        p = softmax(logits.astype(np.float64)).cumsum(axis=1)
        strings[:, i] = (p < rng.random((len(p), 1)) * p[:, -1:]).sum(axis=1)
    return strings


def accuracy_by_position(net, strings, cfg):
    """Strings (S, 100) -> how often the next symbol is predicted, at each place 11 to 100 (90,)."""
    before = windows(strings)[:, :-1].reshape(-1, WINDOW)
    right = np.empty(len(before), bool)
    following = strings[:, WINDOW:].ravel()
    for rows in in_batches(len(before), 1000):
        logits, _ = net.head.forward(states(net.layers, before[rows], cfg.readout))
        right[rows] = logits.argmax(axis=1) == following[rows]
    return right.reshape(len(strings), -1).mean(axis=0)


def train_epoch(net, strings, rng, cfg, epoch):
    """One pass over all windows -> means over the epoch."""
    start = time.perf_counter()
    every = windows(strings)
    before, real = (part.reshape(-1, WINDOW) for part in (every[:, :-1], every[:, 1:]))
    if cfg.negatives == "self":
        generated = windows(rollout(net, strings[:, :WINDOW], cfg, rng))[:, 1:].reshape(-1, WINDOW)
    batches = in_batches(len(real), cfg.batch_size)
    order, log, same = rng.permutation(len(real)), [], []
    for i, rows in enumerate(cli.progress(batches, f"{epoch}/{cfg.n_epochs}"), start=(epoch - 1) * len(batches)):
        factor = SCHEDULES[cfg.schedule](i, cfg.n_epochs * len(batches))
        for opt in net.opts:
            opt.lr = cfg.lr * factor
        net.head_opt.lr = cfg.head_lr * factor
        rows = order[rows]
        logits = head_step(net, before[rows], real[rows, -1], cfg)
        if cfg.negatives == "none":
            continue
        if cfg.negatives == "teacher":
            wrong = real[rows].copy()
            wrong[:, -1] = sampled_labels(logits, real[rows, -1], rng)
        else:
            wrong = generated[rows]
        false = (wrong != real[rows]).any(axis=1)  # a string that the network knows by heart is no negative
        same.append(1 - false.mean())
        if false.any():
            log.append(ff_step(net, real[rows][false], wrong[false], cfg))
    loss, g_pos, g_neg = np.mean(log, axis=0).T if log else np.zeros((3, 0))
    line = {"loss": loss, "g_pos": g_pos, "g_neg": g_neg, "false_negatives": np.mean(same) if same else 0.0}
    line["silent"] = silent(net.layers)
    return line | {"seconds": time.perf_counter() - start}


def check(cfg, text):
    """Say in one line what cannot work, before anything is computed."""
    runs.check_numbers("--sizes", cfg.sizes)
    runs.at_least(cfg, 1, "n_epochs", "strings", "batch_size")
    runs.at_least(cfg, 0, "readout", "peer", "weight_decay", "head_decay")
    runs.positive(cfg, "theta", "lr", "head_lr")
    if not 0 <= cfg.validation < cfg.strings:
        raise cli.UsageError(f"--validation {cfg.validation}: there are {cfg.strings} strings")


def unigram(strings, train):
    """How often the commonest symbol of the training strings is right, at each place 11 to 100 (90,)."""
    commonest = np.bincount(train[:, WINDOW:].ravel()).argmax()
    return (strings[:, WINDOW:] == commonest).mean(axis=0)


def run(cfg, options, threads):
    """One run from its start, or from its checkpoint, to its end -> the last line of its record."""
    cfg.text = cfg.text and str(Path(cfg.text).resolve())  # a run may be resumed from another folder
    compilation.announce("dense")
    this = runs.open_run(cfg, options, threads, "ff_mnist_sequence", load, check, Split)
    cfg, parts = this.cfg, this.split.parts
    net = Net(cfg, np.random.default_rng([cfg.seed, 0]))
    saved = {"layers": (net.layers, net.opts), "head": ([net.head], [net.head_opt])}
    rng = np.random.default_rng([cfg.seed, 3])
    this.restore(saved, {"rng": rng})
    clock = runs.Clock(this.done, cfg.n_epochs)
    for epoch in range(this.done + 1, cfg.n_epochs + 1):
        log = train_epoch(net, parts["train"], rng, cfg, epoch)
        for key, some in parts.items():
            log[key] = {"acc": accuracy_by_position(net, some, cfg).mean()}
        record.append(this.folder, {"epoch": epoch} | log)
        this.checkpoint(epoch, saved, {"rng": rng})
        print(f"{runs.epoch_line(epoch, cfg, log)}  | {clock(log['seconds'], epoch)}", flush=True)

    final = {}
    for key, some in parts.items():
        by_position = accuracy_by_position(net, some, cfg)
        final[key] = {"acc": by_position.mean(), "by_position": by_position}
        final[key]["unigram_by_position"] = unigram(some, parts["train"])
    generated = rollout(net, parts["train"][:3, :WINDOW], cfg, np.random.default_rng([cfg.seed, 5]))
    final["generated"] = ["".join(SYMBOLS[i] for i in row) for row in generated]
    record.append(this.folder, {"final": final | runs.cost(clock, [*net.layers, net.head])})
    for key in parts:
        guess = 100 * final[key]["unigram_by_position"].mean()
        print(f"{key}: {100 * final[key]['acc']:.2f} % of the characters predicted (the commonest one: {guess:.2f} %)")
    print("what the network generates:", *final["generated"], sep="\n  ")
    this.finish(options, [*net.layers, net.head], "viz/ff_mnist.py")
    return final


def main():
    cfg, options = cli.parse(Config, __doc__, choices=CHOICES)
    threads = runs.threads(options)
    finals = []
    for seed in options.seeds:
        cfg.seed = seed
        finals.append(run(cfg, options, threads))
    for key in [key for key in ("train", "val") if key in finals[0]]:
        runs.report(f"{key}: characters predicted", [100 * final[key]["acc"] for final in finals])


if __name__ == "__main__":
    cli.run(main)
