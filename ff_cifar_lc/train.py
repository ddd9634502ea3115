"""Forward-Forward on CIFAR-10 with locally connected layers, and its backpropagation twin beside it.

Idea
    Each layer learns to be more active for an image under its right label than under any other. The ten label units
    reach every location of every layer, so a layer needs nothing but its own input and output to learn: no gradient
    ever leaves a layer. To classify, try all ten labels and take the one that excites the layers most.

Symbols
    x    (B, 32, 32, 3)    images, pixels in [0, 1] minus the channel's mean
    a    (B, H, W, C)      a layer's weighted input, without a label; every location has weights of its own
    y_k  like a            activity under label k: ReLU(a + U_k), U_k the weights of label unit k
    g_k  (B,)              goodness of label k, mean over the layer of y_k^2
    L    a number          -log softmax(beta g)[right label]: one loss per layer, over the goodness of all ten labels
    h    like a            what the next layer sees: ReLU(a), no label in it, scaled so that the mean of h^2 is 1
    pull (H, W, C)         peer normalisation: added to dL/da, it keeps units from falling silent for ever
    Prediction: the label with the largest sum of g over the layers.

Variants (flags)
    --negatives uniform, hard, sampled     pairs instead of all labels: the right label against one wrong label
    --no-neutral                           pairs in which each row hands on its own y_k, as in the papers
    --preset write-up                      a public write-up of Hinton's experiment (README.md, "The write-up"): the
                                           label painted into a corner of the image, pairs, Hinton's loss
Run                                                    on two cores, test accuracy of FF and BP (ff_cifar_lc/README.md)
    python ff_cifar_lc/train.py --seed 0               3 minutes, 69 and 68 %
    python ff_cifar_lc/train.py --preset quick         30 seconds, 60 and 58 %
    python ff_cifar_lc/train.py --preset write-up      30 seconds, 25 and 38 %
"""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, compilation, record, runs  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common import augment
from common import split as splits
from common.arrays import host, like, namespace
from common.evaluate import accuracy, in_batches, per_class_accuracy, rank_correlation
from common.functions import relu
from common.goodness import (
    MeanSquare,
    label_loss,
    margin_loss,
    normalise,
    peer_pull,
    softmax_cross_entropy,
    threshold_loss,
)
from common.label_map import LabelMap
from common.label_sharing import SharedPair, goodness_of_labels
from common.labels import hardest_labels, sampled_labels, write_slot, wrong_labels
from common.layers import Dense, Flatten
from common.local2d import LocallyConnected2d
from common.optim import SCHEDULES, Adam
from common.steps import Steps


@dataclass
class Config:
    seed: int = 0  # random seed: weights, choice and order of images, flips, shifts, wrong labels
    n_epochs: int = 8  # passes over the training images
    n_layers: int = 2  # locally connected layers
    channels: int = 16  # units per location
    rf: str = "7,5"  # side of the receptive fields, layer by layer; the last one counts for all further layers
    label: str = "map"  # how FF sees a label: map (label units at every location) or slot (painted into the image)
    negatives: str = "all"  # wrong labels: all of them, or one per image: uniform, hard, sampled
    neutral: bool = True  # hand on activities without any label (--no-neutral: pairs of rows that keep their label)
    loss: str = "margin"  # of a pair: margin or threshold (with --negatives all: softmax cross-entropy)
    beta: float = 1024.0  # sharpness: FF's losses multiply goodness by it
    peer: float = 0.001  # strength of peer normalisation, which keeps units from falling silent for ever (0: off)
    threshold: float = 2.0  # theta of the threshold loss, the goodness that separates right from wrong
    batch_size: int = 64  # images per step
    lr: float = 0.003  # Adam's learning rate for FF
    bp_lr: float = 0.001  # the same for BP
    schedule: str = "linear"  # the learning rate over the run: linear or cosine to 0, or constant
    weight_decay: float = 0.0  # AdamW's, of FF and BP
    flip: bool = True  # mirror training images at random
    shift: int = 2  # move training images at random by up to so many pixels
    train_subset: int = 0  # training images, drawn by the seed (0: all that are not held out)
    validation: int = 5000  # training images held out (0: train on all of them, no validation accuracy)
    eval_subset: int = 1000  # images behind each point of the curves, and of the test without --full-test
    slot_rows: int = 3  # rows of the label slot
    skip_first: bool = False  # the first layer has no vote
    bp_baseline: bool = True  # train the backpropagation twin as well
    full_test: bool = True  # test on the whole test set, not on its first eval-subset images
    snapshot_every: int = 1  # epochs between the snapshots that figures and the GIF are drawn from (0: none)


CHOICES = {
    "label": ("map", "slot"),
    "negatives": ("all", "uniform", "hard", "sampled"),
    "loss": ("margin", "threshold"),
    "schedule": tuple(SCHEDULES),
}
PRESETS = {
    "quick": {"n_epochs": 5, "channels": 8, "train_subset": 20000},
    "long": {"n_epochs": 50, "channels": 32, "rf": "5,5", "beta": 2048.0},
    "write-up": {"label": "slot", "negatives": "uniform", "neutral": False, "loss": "threshold", "beta": 1.0}
    | {"n_epochs": 10, "channels": 8, "rf": "11,5", "train_subset": 10000, "lr": 0.01, "bp_lr": 0.01}
    | {"schedule": "constant", "flip": False, "shift": 0, "skip_first": True, "peer": 0.0},
}


def ff_step(layers, opts, images, labels, cfg, rng, n_classes):
    """One Forward-Forward step of all layers. images (B, H, W, C) -> per layer: loss, mean g+, mean g-."""
    h, log = images, []
    for layer, opt in zip(layers, opts, strict=True):
        a, cache = layer.image_part(h)  # (B, H, W, C), whatever the label
        g = layer.goodness(a)  # (B, K), goodness of this layer alone
        loss, dg, g_neg = compare(g, labels, cfg, rng)
        y = relu(a)
        # peer normalisation is measured in the size of goodness's gradient, which is 2 beta / y.size
        pull = peer_pull(y.mean(axis=0), cfg.peer * 2 * cfg.beta / y.size)
        opt.step(layer.backward_goodness(dg, a, cache, pull))  # nothing leaves this layer
        h = normalise(y)  # no label, and no goodness, for the next layer to read
        log.append((loss, g[namespace(g).arange(len(g)), labels].mean(), g_neg))
    return log  # n_layers times 3 numbers


def compare(g, labels, cfg, rng):
    """Goodness of every label (B, K), right labels (B,) -> loss, dL/dg (B, K), mean goodness of the wrong ones."""
    B, K = g.shape
    xp = namespace(g)
    rows = xp.arange(B)
    if cfg.negatives == "all":
        loss, dg = label_loss(g, labels, cfg.beta)
        return loss, dg, (g.sum() - g[rows, labels].sum()) / (B * (K - 1))
    wrong = pick(g, labels, cfg, rng)
    loss, d = pair_loss(xp.concatenate([g[rows, labels], g[rows, wrong]]), cfg)
    dg = xp.zeros_like(g)
    dg[rows, labels], dg[rows, wrong] = d[:B], d[B:]
    return loss, dg, g[rows, wrong].mean()


def pick(g, labels, cfg, rng):
    """One wrong label per image, from the goodness of every label g (B, K) -> (B,)."""
    if cfg.negatives == "hard":
        return hardest_labels(g, labels)
    if cfg.negatives == "sampled":
        return sampled_labels(cfg.beta * g, labels, rng)
    return wrong_labels(labels, g.shape[1], rng)


def pair_loss(g, cfg):
    """Goodness (2B,) of B right rows, then of the same images' wrong ones -> loss, dL/dg (2B,)."""
    B, xp = len(g) // 2, namespace(g)
    if cfg.loss == "margin":
        loss, d_pos, d_neg = margin_loss(g[:B], g[B:], cfg.beta)
        return loss, xp.concatenate([d_pos, d_neg])
    one = xp.ones_like(g[:B])
    return threshold_loss(g, xp.concatenate([one, -one]), cfg.threshold, cfg.beta)


def ff_step_pairs(layers, opts, images, labels, cfg, rng, n_classes):
    """The same with rows that keep their label: B images with the right one, then the same B with a wrong one."""
    B, xp = len(images), namespace(images)
    if cfg.negatives == "uniform":
        wrong = wrong_labels(labels, n_classes, rng)
    else:  # the voters' goodness of every label: what prediction would compare
        wrong = pick(votes(ff_goodness(layers, images, cfg, n_classes), cfg), labels, cfg, rng)
    both = xp.concatenate([labels, wrong])  # (2B,)
    h = images
    if cfg.label == "slot":
        h = write_slot(xp.concatenate([images, images]), both, cfg.slot_rows, n_classes)  # (2B, H, W, C)
        layers = [SharedPair(layers[0], (0, cfg.slot_rows, 0, n_classes)), *layers[1:]]
    log = []
    for layer, opt in zip(layers, opts, strict=True):
        y, cache = layer.forward(h) if cfg.label == "slot" else layer.forward(h, both)  # (2B, H, W, C)
        g, squares = MeanSquare().forward(y)
        loss, dg = pair_loss(g, cfg)
        pull = {} if cfg.label == "slot" else {"pull": peer_pull(y.mean(axis=0), cfg.peer * 4 * cfg.beta / y.size)}
        _, grads = layer.backward(MeanSquare().backward(dg, squares), cache, need_dx=False, **pull)
        opt.step(grads)
        h = normalise(y, g)
        log.append((loss, g[:B].mean(), g[B:].mean()))
    return log  # n_layers times 3 numbers


def bp_step(layers, opts, images, labels):
    """One step of backpropagation through the same layers and a linear readout. images (B, H, W, C) -> loss."""
    h, caches = images, []
    for layer in layers:
        h, cache = layer.forward(h)
        caches.append(cache)
    loss, dy = softmax_cross_entropy(h, labels)
    for i in reversed(range(len(layers))):
        dy, grads = layers[i].backward(dy, caches[i], need_dx=i > 0)  # the line that Forward-Forward does without
        opts[i].step(grads)
    return loss


def ff_goodness(layers, images, cfg, n_classes):
    """Goodness of every candidate label: centred float images (N, H, W, C) -> (n_layers, N, n_classes)."""
    g = []
    for rows in in_batches(len(images), 128):
        if cfg.label == "slot":
            g.append(goodness_of_labels(layers, images[rows], cfg.slot_rows, n_classes))
        elif cfg.neutral:
            g.append(ff_goodness_neutral(layers, images[rows]))
        else:
            g.append(ff_goodness_rows(layers, images[rows], n_classes))
    return namespace(images).concatenate(g, axis=1)


def ff_goodness_neutral(layers, images):
    """One pass for all labels: no activity that is handed on depends on a label. (B, H, W, C) -> (n_layers, B, K)."""
    h, g = images, []
    for layer in layers:
        a, _ = layer.image_part(h, train=False)
        g.append(layer.goodness(a))
        h = normalise(relu(a))
    return namespace(images).stack(g)


def ff_goodness_rows(layers, images, n_classes):
    """Ten rows per image, one per label, of which the first layer shares the image part."""
    B, xp = len(images), namespace(images)
    labels = xp.repeat(xp.arange(n_classes), B)  # (K*B,)
    a, _ = layers[0].image_part(images, train=False)
    g = [layers[0].goodness(a)]  # (B, K)
    y = layers[0].with_labels(a, labels)  # (K*B, H, W, C)
    for layer in layers[1:]:
        y, _ = layer.forward(normalise(y, g[-1].T.ravel()), labels, train=False)
        g.append(MeanSquare().forward(y)[0].reshape(n_classes, B).T)
    return xp.stack(g)


def votes(g, cfg):
    """Goodness (n_layers, N, n_classes) -> its sum over the layers that vote (N, n_classes)."""
    return (g[1:] if cfg.skip_first and len(g) > 1 else g).sum(axis=0)


def ff_vote(g, cfg):
    """Goodness (n_layers, N, n_classes) -> predicted labels (N,)."""
    return votes(g, cfg).argmax(axis=1)


def bp_predict(layers, images):
    """Images (N, H, W, C) -> predicted labels (N,)."""
    predicted = []
    for rows in in_batches(len(images), 128):
        h = images[rows]
        for layer in layers:
            h, _ = layer.forward(h, train=False)
        predicted.append(h.argmax(axis=1))
    return namespace(images).concatenate(predicted)


def build(cfg, shape, n_classes, rng, label_units):
    """The stack of locally connected layers for images of `shape` (H, W, C), with or without label units."""
    fields = [int(n) for n in cfg.rf.split(",")]
    layers = []
    for i in range(cfg.n_layers):
        rf = fields[min(i, len(fields) - 1)]
        if label_units:
            layers.append(LabelMap(shape, cfg.channels, rf, n_classes, rng))
        else:
            layers.append(LocallyConnected2d(shape, cfg.channels, rf, rng))
        shape = layers[-1].out_shape
    return layers


def networks(cfg, shape, n_classes):
    """-> FF and its BP twin (or None), each as layers and optimisers, and the generator that each draws from."""
    layers = build(cfg, shape, n_classes, np.random.default_rng([cfg.seed, 0]), label_units=cfg.label == "map")
    ff = layers, [Adam(layer.params, cfg.lr, decay=cfg.weight_decay) for layer in layers]
    bp = None
    if cfg.bp_baseline:
        rng = np.random.default_rng([cfg.seed, 1])
        stack = build(cfg, shape, n_classes, rng, label_units=False)
        stack += [Flatten(), Dense(int(np.prod(stack[-1].out_shape)), n_classes, rng, relu=False)]
        bp = stack, [Adam(layer.params, cfg.bp_lr, decay=cfg.weight_decay) for layer in stack]
    return ff, bp, {"ff": np.random.default_rng([cfg.seed, 3]), "bp": np.random.default_rng([cfg.seed, 4])}


class Split(splits.Split):
    """The images of one run (common/split.py), cut to what is looked at, and as centred float32 on request."""

    def __init__(self, ds, cfg):
        super().__init__(ds, cfg)
        self.val = tuple(part[: cfg.eval_subset] for part in self.val)
        if not cfg.full_test:
            self.test = tuple(part[: cfg.eval_subset] for part in self.test)
        mean = (self.train[0].mean(axis=(0, 1, 2)) / 255).astype(np.float32)  # (C,)
        self.about["mean"] = mean
        self.mean = np.broadcast_to(mean, self.train[0].shape[1:]).copy()  # a whole image: three numbers would be slow
        self.steps = {"ff": Steps(), "bp": Steps()}

    def to(self, xp):
        """Everything as arrays of the module xp."""
        super().to(xp)
        self.mean = xp.asarray(self.mean)

    def floats(self, images):
        """uint8 (N, H, W, C) -> float32, pixels in [0, 1] minus the training images' channel means."""
        x = images.astype(np.float32)
        x *= np.float32(1 / 255)
        x -= self.mean
        return x

    def batch(self, rows, cfg, rng):
        """Training images of these rows, changed at random as cfg says -> float32 (B, H, W, C), labels (B,)."""
        rows = like(self.train[0], rows)
        x = self.floats(self.train[0][rows])
        if cfg.flip:
            x = augment.flip(x, rng)
        if cfg.shift:
            x = augment.shift(x, cfg.shift, rng)
        return x, self.train[1][rows]


def check(cfg, ds):
    """Say in one line what cannot work, before anything is computed."""
    splits.check(ds, cfg)
    rules = [
        (min(cfg.n_epochs, cfg.n_layers, cfg.channels, cfg.batch_size) < 1,
         "--n-epochs, --n-layers, --channels and --batch-size must be at least 1"),
        (min(cfg.eval_subset, cfg.slot_rows) < 1, "--eval-subset and --slot-rows must be at least 1"),
        (min(cfg.snapshot_every, cfg.shift) < 0, "--snapshot-every and --shift: 0 or more"),
        (cfg.validation and cfg.eval_subset > cfg.validation,
         f"--eval-subset {cfg.eval_subset} is larger than --validation {cfg.validation}"),
        (cfg.eval_subset > len(ds.x_test),
         f"--eval-subset {cfg.eval_subset}: {ds.name} has {len(ds.x_test)} test images"),
        (not all(0 < rate < np.inf for rate in (cfg.lr, cfg.bp_lr, cfg.beta)),
         "--lr, --bp-lr and --beta must be positive numbers"),
        (not 0 <= cfg.weight_decay < np.inf or not 0 <= cfg.peer < np.inf,
         f"--weight-decay {cfg.weight_decay} and --peer {cfg.peer}: 0 or more"),
        (not np.isfinite(cfg.threshold), f"--threshold {cfg.threshold} is no number"),
        (cfg.label == "slot" and cfg.peer, "--label slot has no peer normalisation: add --peer 0"),
        (not all(part.isdigit() for part in cfg.rf.split(",")), f"--rf {cfg.rf}: give sides like 11,5"),
        (cfg.label == "slot" and (cfg.negatives == "all" or cfg.neutral),
         "--label slot: a painted label is in all that is handed on, so add --no-neutral --negatives uniform"),
        (cfg.negatives == "all" and not cfg.neutral, "--no-neutral is for pairs: add --negatives uniform"),
        (cfg.negatives == "all" and cfg.loss != "margin", f"--loss {cfg.loss} is for pairs: add --negatives uniform"),
    ]  # fmt: skip
    for wrong, message in rules:
        if wrong:
            raise cli.UsageError(message)
    try:
        shape, n_classes = ds.x_train.shape[1:], len(ds.class_names)
        build(cfg, shape, n_classes, np.random.default_rng(0), label_units=False)
        if cfg.label == "slot":
            write_slot(np.zeros((1, *shape)), np.zeros(1, int), cfg.slot_rows, n_classes)
    except ValueError as error:
        raise cli.UsageError(str(error)) from None


def train_epoch(ff, bp, split, rngs, cfg, n_classes, epoch, step=None):
    """One pass of FF over the training images, then one of BP -> two dicts of means over the epoch.

    step: what to do with a batch in place of ff_step, or ff_step_pairs.
    """
    step = step or (ff_step if cfg.neutral else ff_step_pairs)
    n = len(split.train[0])
    batches = in_batches(n, cfg.batch_size)

    def steps(name, opts, lr, step):  # random batches, each under its learning rate
        order = rngs[name].permutation(n)
        first, total = (epoch - 1) * len(batches), cfg.n_epochs * len(batches)
        factors = [float(SCHEDULES[cfg.schedule](first + i, total)) for i in range(len(batches))]

        def one(rng, rows, factor):
            for opt in opts:
                opt.lr = lr * factor
            return step(*split.batch(rows, cfg, rng), rng)

        label = f"{name.upper()} {epoch}/{cfg.n_epochs}"
        return split.steps[name](one, opts, rngs[name], label, [order[rows] for rows in batches], factors)

    start = time.perf_counter()
    log = steps("ff", ff[1], cfg.lr, lambda x, labels, rng: step(*ff, x, labels, cfg, rng, n_classes))
    log = [[[float(host(v)) for v in layer] for layer in each] for each in log]  # (steps, n_layers, 3)
    loss, g_pos, g_neg = np.mean(log, axis=0).T
    ff_log = {"loss": loss, "g_pos": g_pos, "g_neg": g_neg, "seconds": time.perf_counter() - start}
    if bp is None:
        return ff_log, None
    start = time.perf_counter()
    losses = steps("bp", bp[1], cfg.bp_lr, lambda x, labels, _: [(bp_step(*bp, x, labels),)])
    losses = [float(host(loss)) for ((loss,),) in losses]
    return ff_log, {"loss": np.mean(losses), "seconds": time.perf_counter() - start}


def evaluate(ff, bp, split, cfg, n_classes):
    """Accuracies on the first eval-subset training and validation images, and the goodness behind the latter."""
    x, y = (part[: cfg.eval_subset] for part in split.train)
    x = split.floats(x)
    g_train = ff_goodness(ff[0], x, cfg, n_classes)
    scores = {"ff": {"train_acc": accuracy(ff_vote(g_train, cfg), y)}, "bp": {}}
    if bp:
        scores["bp"]["train_acc"] = accuracy(bp_predict(bp[0], x), y)
    if cfg.validation:
        x, y = split.floats(split.val[0]), split.val[1]
        g = ff_goodness(ff[0], x, cfg, n_classes)
        scores["ff"]["val_acc"] = accuracy(ff_vote(g, cfg), y)
        if bp:
            scores["bp"]["val_acc"] = accuracy(bp_predict(bp[0], x), y)
        return scores, host(g), host(y)
    return scores, host(g_train), host(y)


def test(folder, ff, bp, split, cfg, n_classes):
    """The one look at the test set -> the record's last line."""
    x, y = split.floats(split.test[0]), host(split.test[1])
    start = time.perf_counter()
    g = host(ff_goodness(ff[0], x, cfg, n_classes))
    seconds = time.perf_counter() - start
    predicted = {"ff": ff_vote(g, cfg)}
    if bp:
        predicted["bp"] = host(bp_predict(bp[0], x))
    final = {"test_images": len(y)}
    for name, p in predicted.items():
        final[name] = {"test_acc": accuracy(p, y), "per_class": per_class_accuracy(p, y, n_classes)}
    final["ff"] |= {"layer_acc": [accuracy(layer.argmax(axis=1), y) for layer in g], "test_seconds": seconds}
    if cfg.neutral and cfg.snapshot_every:
        where(folder, ff[0], split, x, predicted["ff"])
    if bp:
        final["rank_correlation"] = rank_correlation(final["ff"]["per_class"], final["bp"]["per_class"])
    return final


def snapshot(folder, epoch, ff, g, labels):
    """What the figures need of this epoch: first-layer filters at six places, goodness of every label on validation."""
    W = host(ff[0][0].params["W"])  # (OH, OW, rf, rf, C, O)
    h, w = W.shape[0] - 1, W.shape[1] - 1
    places = np.array([(0, 0), (0, w), (h // 2, w // 4), (h // 2, w - w // 4), (h, 0), (h, w)])
    arrays = {"filters": W[places[:, 0], places[:, 1]], "places": places, "goodness": g, "labels": labels}
    (folder / "snapshots").mkdir(exist_ok=True)
    record.save_arrays(folder / "snapshots" / f"epoch-{epoch:03d}.npz", arrays, {"epoch": epoch})


def where(folder, layers, split, x, predicted):
    """Goodness of every label at every location, of the first six test images recognised and six mistaken."""
    images, labels = map(host, split.test)
    right, wrong = np.flatnonzero(predicted == labels)[:6], np.flatnonzero(predicted != labels)[:6]
    some = np.concatenate([right, wrong])
    arrays = {"images": images[some], "labels": labels[some], "predicted": predicted[some]}
    h = x[like(x, some)]
    for i, layer in enumerate(layers):
        a, _ = layer.image_part(h, train=False)
        arrays[f"goodness{i}"] = host(layer.goodness_map(a))  # (N, H, W, K)
        h = normalise(relu(a))
    record.save_arrays(
        folder / "snapshots" / "where.npz", arrays, {"rf": [layer.params["W"].shape[2] for layer in layers]}
    )


def progress_line(epoch, cfg, ff, bp, n, clock):
    """One line per epoch, for people."""

    def goodness(right, wrong):
        if cfg.loss == "threshold":
            return f"g {right:.2f}/{wrong:.2f}"
        return f"margin {cfg.beta * (right - wrong):.2f}"  # all that the loss sees; g+ and g- differ in late digits

    layers = "  ".join(
        f"L{i} loss {loss:.3f} {goodness(p, m)}"
        for i, (loss, p, m) in enumerate(zip(ff["loss"], ff["g_pos"], ff["g_neg"], strict=True))
    )

    def accuracies(log):
        val = f" val {100 * log['val_acc']:.1f} %" if "val_acc" in log else ""
        return f"train {100 * log['train_acc']:.1f} %{val}"

    line = f"epoch {epoch:3d}/{cfg.n_epochs}  FF {layers}  {accuracies(ff)}  {n / ff['seconds']:.0f} images/s"
    if bp:
        line += f"  | BP loss {bp['loss']:.3f}  {accuracies(bp)}  {n / bp['seconds']:.0f} images/s"
    seconds = ff["seconds"] + (bp["seconds"] if bp else 0)
    print(f"{line}  | {clock(seconds, epoch)}", flush=True)


def first_snapshots(run, ff):
    """What figures need of a run before its first step: goodness and filters, one image per class."""
    ds, n_classes = run.ds, len(run.ds.class_names)
    _, g, y = evaluate(ff, None, run.split, run.cfg, n_classes)
    snapshot(run.folder, 0, ff, g, y)
    examples = {"images": ds.x_train[[int(np.argmax(ds.y_train == k)) for k in range(n_classes)]]}
    examples["mean"] = run.split.about["mean"]
    record.save_arrays(run.folder / "snapshots" / "examples.npz", examples, {"class_names": list(ds.class_names)})


def run(cfg, options, threads):
    """One run from its start, or from its checkpoint, to its end -> its folder, and the last line of its record."""
    this = runs.open_run(cfg, options, threads, "ff_cifar_lc", runs.images("cifar10"), check, Split)
    cfg, split, folder = this.cfg, this.split, this.folder
    n_classes, shape = len(this.ds.class_names), this.ds.x_train.shape[1:]
    ff, bp, rngs = networks(cfg, shape, n_classes)
    nets = {"ff": ff, "bp": bp} if bp else {"ff": ff}
    this.restore(nets, rngs)
    if this.done == 0 and cfg.snapshot_every:
        first_snapshots(this, ff)
    for name, (layers, _) in nets.items():
        sizes = [" x ".join(map(str, layer.out_shape)) for layer in layers if hasattr(layer, "out_shape")]
        weights = sum(p.size for layer in layers for p in layer.params.values())
        arrow = " -> ".join([" x ".join(map(str, shape)), *sizes])
        print(f"{name.upper()}: {arrow}, {weights:,} parameters", flush=True)

    clock = runs.Clock(this.done, cfg.n_epochs)
    for epoch in range(this.done + 1, cfg.n_epochs + 1):
        ff_log, bp_log = train_epoch(ff, bp, split, rngs, cfg, n_classes, epoch)
        scores, g, y = evaluate(ff, bp, split, cfg, n_classes)
        ff_log |= scores["ff"]
        line = {"epoch": epoch, "ff": ff_log}
        if bp:
            bp_log |= scores["bp"]
            line["bp"] = bp_log
        if cfg.snapshot_every and epoch % cfg.snapshot_every == 0:
            snapshot(folder, epoch, ff, g, y)
        record.append(folder, line)
        this.checkpoint(epoch, nets, rngs)
        progress_line(epoch, cfg, ff_log, bp_log, len(split.train[0]), clock)

    final = test(folder, ff, bp, split, cfg, n_classes) | {"seconds": clock.seconds()}
    record.append(folder, {"final": final})
    if options.save:
        arrays = {f"ff/{i}/{k}": host(p) for i, layer in enumerate(ff[0]) for k, p in layer.params.items()}
        record.save_arrays(options.save, arrays, {"config": asdict(cfg), "dataset": this.ds.name})
    report(final, this.ds)
    return folder, final


def report(final, ds):
    """The end of a run, for people."""
    for name in ("ff", "bp"):
        if name in final:
            classes = zip(ds.class_names, final[name]["per_class"], strict=True)
            per_class = ", ".join(f"{c} {100 * a:.0f}" for c, a in classes if a is not None)
            score = f"{100 * final[name]['test_acc']:.2f} % of {final['test_images']}"
            print(f"{name.upper()} test accuracy {score} ({per_class})")
    if "rank_correlation" in final:
        print(f"rank correlation of FF's and BP's classes: {final['rank_correlation']:.2f} (1: the same order)")


def main():
    cfg, options = cli.parse(Config, __doc__, choices=CHOICES, presets=PRESETS, device=True)
    threads = runs.threads(options)
    if options.device == "cpu":
        compilation.announce("local")
    finals = []
    for seed in options.seeds:
        cfg.seed = seed
        folder, final = run(cfg, options, threads)
        finals.append(final)
        if options.figures:
            cli.draw("viz/ff_cifar_lc.py", folder)
    for name in [name for name in ("ff", "bp") if name in finals[0]]:
        runs.report(f"{name.upper()} test accuracy", [100 * final[name]["test_acc"] for final in finals])


if __name__ == "__main__":
    cli.run(main)
