"""Forward-Forward on CIFAR-10 with locally connected layers, and its backpropagation twin beside it.

Idea
    Each layer learns to be active for an image with its right label and quiet for the same image with a wrong one.
    The label is painted into the image, so a layer needs nothing but its own input and output to learn: no gradient
    ever leaves a layer. To classify, try all ten labels and take the one that excites the layers most.

Symbols
    x    (2B, 32, 32, 3)   B images with their right label, then the same B with a wrong one; rows 0-2 x columns 0-9 of
                           every channel are -1, the label's column +1; pixels in [0, 1] minus the channel's mean
    t    (2B,)             +1 for the first B rows (positive), -1 for the others (negative)
    y    (2B, H, W, C)     activity of a layer, ReLU of its weighted input; every location has weights of its own
    g    (2B,)             goodness, mean over the layer of y^2
    L    a number          mean of softplus(-t (g - theta)): Hinton 2022 (arXiv 2212.13345), eq. 1, one loss per layer
    h    like y            what the next layer sees: y scaled so that the mean of h^2 is 1; its goodness is gone
    Prediction: the label with the largest sum of g over the layers above the first (one layer votes itself).

Deviates from the write-up that it reproduces (its README: ff_cifar_lc/README.md, "Deviations", with the effects)
    - predicts with the goodness that it trains, mean(h^2); the public code predicts with mean(h)
    - a layer hands on the activity it was trained on, not a second one computed after its update
    - chooses nothing on the test set: curves come from training images held out for validation

Run
    python ff_cifar_lc/train.py --seed 0              one minute; FF about 25 %, BP about 38 % on the CIFAR-10 test set
    python ff_cifar_lc/train.py --no-bp-baseline --train-subset 2000 --n-epochs 3       a first look
"""

import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import ROOT, cli, data, record  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common.evaluate import accuracy, in_batches, mean_sd, per_class_accuracy, rank_correlation
from common.goodness import ff_loss, normalise, softmax_cross_entropy
from common.label_sharing import SharedPair, goodness_of_labels
from common.labels import write_slot, wrong_labels
from common.layers import Dense, Flatten
from common.local2d import LocallyConnected2d
from common.optim import Adam


@dataclass
class Config:
    seed: int = 0  # random seed: weights, choice and order of images, wrong labels
    n_epochs: int = 10  # passes over the training images
    n_layers: int = 2  # locally connected layers
    channels: int = 8  # units per location
    rf: str = "11,5"  # side of the receptive fields, layer by layer; the last one counts for all further layers
    batch_size: int = 64  # images per step (FF sees each twice: right and wrong label)
    lr: float = 0.01  # Adam's learning rate, the same for FF and BP
    threshold: float = 2.0  # theta, the goodness that separates positive from negative
    train_subset: int = 10000  # training images, drawn by the seed
    validation: int = 5000  # training images held out (0: train on all of them, no validation accuracy)
    eval_subset: int = 1000  # images behind each point of the curves, and of the test without --full-test
    slot_rows: int = 3  # rows of the label slot
    skip_first: bool = True  # the first layer, which sees the label's pixels, has no vote
    bp_baseline: bool = True  # train the backpropagation twin as well
    full_test: bool = True  # test on the whole test set, not on its first eval-subset images
    snapshot_every: int = 1  # epochs between the snapshots that figures and the GIF are drawn from (0: none)


def ff_step(layers, opts, images, labels, negatives, cfg, n_classes):
    """One Forward-Forward step of all layers. images (B, H, W, C) -> per layer: loss, mean g+, mean g-."""
    B = len(images)
    x = np.concatenate([images, images])  # (2B, H, W, C)
    write_slot(x, np.concatenate([labels, negatives]), cfg.slot_rows, n_classes)
    t = np.repeat(np.float32([1, -1]), B)
    slot = (0, cfg.slot_rows, 0, n_classes)
    h, log = x, []
    for layer, opt in zip([SharedPair(layers[0], slot), *layers[1:]], opts, strict=True):
        y, cache = layer.forward(h)
        loss, g, dy = ff_loss(y, t, cfg.threshold)  # goodness of this layer alone
        _, grads = layer.backward(dy, cache, need_dx=False)  # nothing leaves this layer
        opt.step(grads)
        h = normalise(y, g)  # hides this layer's goodness from the next
        log.append((loss, g[:B].mean(), g[B:].mean()))
    return np.array(log)  # (n_layers, 3)


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
    g = [goodness_of_labels(layers, images[rows], cfg.slot_rows, n_classes) for rows in in_batches(len(images), 128)]
    return np.concatenate(g, axis=1)


def ff_vote(g, cfg):
    """Goodness (n_layers, N, n_classes) -> predicted labels (N,)."""
    voters = g[1:] if cfg.skip_first and len(g) > 1 else g
    return voters.sum(axis=0).argmax(axis=1)


def bp_predict(layers, images):
    """Images (N, H, W, C) -> predicted labels (N,)."""
    predicted = []
    for rows in in_batches(len(images), 128):
        h = images[rows]
        for layer in layers:
            h, _ = layer.forward(h, train=False)
        predicted.append(h.argmax(axis=1))
    return np.concatenate(predicted)


def build(cfg, shape, rng):
    """The stack of locally connected layers for images of `shape` (H, W, C)."""
    fields = [int(n) for n in cfg.rf.split(",")]
    layers = []
    for i in range(cfg.n_layers):
        layers.append(LocallyConnected2d(shape, cfg.channels, fields[min(i, len(fields) - 1)], rng))
        shape = layers[-1].out_shape
    return layers


class Split:
    """The images of one run: training images drawn by the seed, validation and test, as centred float32 on request."""

    def __init__(self, ds, cfg):
        n = len(ds.x_train) - cfg.validation  # the last `validation` images of the canonical order are held out
        drawn = np.random.default_rng([cfg.seed, 2]).permutation(n)[: cfg.train_subset]
        self.train = ds.x_train[drawn], ds.y_train[drawn].astype(np.int64)
        self.val = ds.x_train[n:][: cfg.eval_subset], ds.y_train[n:][: cfg.eval_subset]
        n_test = len(ds.x_test) if cfg.full_test else cfg.eval_subset
        self.test = ds.x_test[:n_test], ds.y_test[:n_test]
        self.mean = (self.train[0].mean(axis=(0, 1, 2)) / 255).astype(np.float32)  # (C,)

    def floats(self, images):
        """uint8 (N, H, W, C) -> float32, pixels in [0, 1] minus the training images' channel means."""
        x = images.astype(np.float32)
        x *= np.float32(1 / 255)
        x -= np.broadcast_to(self.mean, x.shape[1:]).copy()  # a whole image: three numbers at a time would be slow
        return x


def check(cfg, ds):
    """Say in one line what cannot work, before anything is computed."""
    n = len(ds.x_train)
    rules = [
        (min(cfg.n_epochs, cfg.n_layers, cfg.channels, cfg.batch_size) < 1,
         "--n-epochs, --n-layers, --channels and --batch-size must be at least 1"),
        (min(cfg.train_subset, cfg.eval_subset, cfg.slot_rows) < 1,
         "--train-subset, --eval-subset and --slot-rows must be at least 1"),
        (cfg.snapshot_every < 0, f"--snapshot-every {cfg.snapshot_every}: 0 or more"),
        (not 0 <= cfg.validation < n, f"--validation {cfg.validation}: {ds.name} has {n} training images"),
        (cfg.train_subset > n - cfg.validation,
         f"--train-subset {cfg.train_subset}: {ds.name} has {n} training images, {cfg.validation} of them held out"),
        (cfg.validation and cfg.eval_subset > cfg.validation,
         f"--eval-subset {cfg.eval_subset} is larger than --validation {cfg.validation}"),
        (cfg.eval_subset > len(ds.x_test),
         f"--eval-subset {cfg.eval_subset}: {ds.name} has {len(ds.x_test)} test images"),
        (not 0 < cfg.lr < np.inf or not np.isfinite(cfg.threshold),
         f"--lr {cfg.lr} or --threshold {cfg.threshold} is no usable number"),
        (not all(part.isdigit() for part in cfg.rf.split(",")), f"--rf {cfg.rf}: give sides like 11,5"),
    ]  # fmt: skip
    for wrong, message in rules:
        if wrong:
            raise cli.UsageError(message)
    try:
        build(cfg, ds.x_train.shape[1:], np.random.default_rng(0))
        write_slot(np.zeros((1, *ds.x_train.shape[1:])), np.zeros(1, int), cfg.slot_rows, len(ds.class_names))
    except ValueError as error:
        raise cli.UsageError(str(error)) from None


def train_epoch(ff, bp, split, rngs, cfg, n_classes, epoch):
    """One pass of FF over the training images, then one of BP -> two dicts of means over the epoch."""
    images, labels = split.train
    n = len(images)
    start = time.perf_counter()
    order = rngs["ff"].permutation(n)
    log = []
    for rows in cli.progress(in_batches(n, cfg.batch_size), f"FF {epoch}/{cfg.n_epochs}"):
        batch = order[rows]
        wrong = wrong_labels(labels[batch], n_classes, rngs["ff"])
        log.append(ff_step(*ff, split.floats(images[batch]), labels[batch], wrong, cfg, n_classes))
    loss, g_pos, g_neg = np.mean(log, axis=0).T
    ff_log = {"loss": loss, "g_pos": g_pos, "g_neg": g_neg, "seconds": time.perf_counter() - start}
    if bp is None:
        return ff_log, None
    start = time.perf_counter()
    order = rngs["bp"].permutation(n)
    losses = []
    for rows in cli.progress(in_batches(n, cfg.batch_size), f"BP {epoch}/{cfg.n_epochs}"):
        batch = order[rows]
        losses.append(bp_step(*bp, split.floats(images[batch]), labels[batch]))
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
        return scores, g, y
    return scores, g_train, y


def test(ff, bp, split, cfg, n_classes):
    """The one look at the test set -> the record's last line."""
    x, y = split.floats(split.test[0]), split.test[1]
    start = time.perf_counter()
    g = ff_goodness(ff[0], x, cfg, n_classes)
    seconds = time.perf_counter() - start
    predicted = {"ff": ff_vote(g, cfg)}
    if bp:
        predicted["bp"] = bp_predict(bp[0], x)
    final = {"test_images": len(y)}
    for name, p in predicted.items():
        final[name] = {"test_acc": accuracy(p, y), "per_class": per_class_accuracy(p, y, n_classes)}
    final["ff"] |= {"layer_acc": [accuracy(layer.argmax(axis=1), y) for layer in g], "test_seconds": seconds}
    if bp:
        final["rank_correlation"] = rank_correlation(final["ff"]["per_class"], final["bp"]["per_class"])
    return final


def snapshot(folder, epoch, ff, g, labels):
    """What the figures need of this epoch: first-layer filters at six places, goodness of every label on validation."""
    W = ff[0][0].params["W"]  # (OH, OW, rf, rf, C, O)
    h, w = W.shape[0] - 1, W.shape[1] - 1
    places = np.array([(0, 0), (0, w), (h // 2, w // 4), (h // 2, w - w // 4), (h, 0), (h, w)])
    arrays = {"filters": W[places[:, 0], places[:, 1]], "places": places, "goodness": g, "labels": labels}
    (folder / "snapshots").mkdir(exist_ok=True)
    record.save_arrays(folder / "snapshots" / f"epoch-{epoch:03d}.npz", arrays, {"epoch": epoch})


def checkpoint(folder, epoch, ff, bp, rngs):
    """Save everything that lives between two epochs."""
    arrays = record.state_of("ff", *ff) | (record.state_of("bp", *bp) if bp else {})
    states = {name: rng.bit_generator.state for name, rng in rngs.items()}
    record.save_checkpoint(folder, arrays, {"epoch": epoch, "rngs": states})


def progress_line(epoch, cfg, ff, bp, n, left):
    """One line per epoch, for people."""
    layers = "  ".join(
        f"L{i} loss {loss:.3f} g {p:.2f}/{m:.2f}"
        for i, (loss, p, m) in enumerate(zip(ff["loss"], ff["g_pos"], ff["g_neg"], strict=True))
    )

    def accuracies(log):
        val = f" val {100 * log['val_acc']:.1f} %" if "val_acc" in log else ""
        return f"train {100 * log['train_acc']:.1f} %{val}"

    line = f"epoch {epoch:3d}/{cfg.n_epochs}  FF {layers}  {accuracies(ff)}  {n / ff['seconds']:.0f} images/s"
    if bp:
        line += f"  | BP loss {bp['loss']:.3f}  {accuracies(bp)}  {n / bp['seconds']:.0f} images/s"
    seconds = ff["seconds"] + (bp["seconds"] if bp else 0)
    print(f"{line}  | {seconds:.1f} s, {left:.0f} s left", flush=True)


def start_run(folder, ff, bp, rngs, split, cfg, ds):
    """What a run leaves on disk before its first step: snapshot 0, one image per class, a checkpoint."""
    n_classes = len(ds.class_names)
    if cfg.snapshot_every:
        _, g, y = evaluate(ff, None, split, cfg, n_classes)
        snapshot(folder, 0, ff, g, y)
        examples = {
            "images": ds.x_train[[int(np.argmax(ds.y_train == k)) for k in range(n_classes)]],
            "mean": split.mean,
        }
        record.save_arrays(folder / "snapshots" / "examples.npz", examples, {"class_names": list(ds.class_names)})
    checkpoint(folder, 0, ff, bp, rngs)


def run(cfg, options, threads):
    """One run from its start, or from its checkpoint, to its end -> its folder, and the last line of its record."""
    if options.resume:
        folder = Path(options.resume)
        lines = record.read(folder)
        if set(lines[0].get("config", ())) != set(asdict(cfg)):
            raise cli.UsageError(f"{folder} is no run of this script in this version: it cannot be resumed")
        if "final" in lines[-1]:
            raise cli.UsageError(f"{folder} is finished: nothing to resume")
        cfg = Config(**lines[0]["config"])
        ds = data.load(lines[0]["dataset"]["name"], options.data_dir)
        if ds.sha256 != lines[0]["dataset"]["sha256"]:
            raise cli.UsageError(f"{folder} was trained on other images: {ds.source} is not what its record names")
    else:
        ds = data.load(options.dataset, options.data_dir, auto="cifar10")
    check(cfg, ds)
    n_classes = len(ds.class_names)
    split = Split(ds, cfg)
    shape = ds.x_train.shape[1:]
    layers = build(cfg, shape, np.random.default_rng([cfg.seed, 0]))
    ff = layers, [Adam(layer.params, cfg.lr) for layer in layers]
    bp = None
    if cfg.bp_baseline:
        rng = np.random.default_rng([cfg.seed, 1])
        stack = build(cfg, shape, rng)
        stack += [Flatten(), Dense(int(np.prod(stack[-1].out_shape)), n_classes, rng, relu=False)]
        bp = stack, [Adam(layer.params, cfg.lr) for layer in stack]
    rngs = {"ff": np.random.default_rng([cfg.seed, 3]), "bp": np.random.default_rng([cfg.seed, 4])}
    machine, done = record.machine(threads), 0

    if options.resume:
        if (folder / "checkpoint.npz").exists():
            arrays, meta = record.load_checkpoint(folder)
            record.restore("ff", *ff, arrays)
            if bp:
                record.restore("bp", *bp, arrays)
            for name, state in meta["rngs"].items():
                rngs[name].bit_generator.state = state
            done = meta["epoch"]
        else:  # killed before its first checkpoint: the seed makes the same network again
            record.cut(folder, 1)
            start_run(folder, ff, bp, rngs, split, cfg, ds)
        same = machine == lines[0]["machine"]
        note = "the same machine" if same else "another machine, versions or threads: expect other roundings"
        record.append(folder, {"resumed_after_epoch": done, "machine": machine, "same_machine": same})
        print(f"Resuming {folder} after epoch {done}, on {note}.")
    else:
        folder = record.new_run(options.out or ROOT / "runs" / "ff_cifar_lc", cfg.seed)
        dataset = {"name": ds.name, "sha256": ds.sha256, "train": len(split.train[0]), "note": ds.note}
        dataset["class_names"] = list(ds.class_names)
        first = {"command": record.command(), "config": asdict(cfg), "dataset": dataset, "machine": machine}
        record.append(folder, first | {"commit": record.commit()})
        start_run(folder, ff, bp, rngs, split, cfg, ds)
    for name, net in (("FF", ff), ("BP", bp)):
        if net:
            sizes = [" x ".join(map(str, layer.out_shape)) for layer in net[0] if hasattr(layer, "out_shape")]
            weights = sum(p.size for layer in net[0] for p in layer.params.values())
            print(f"{name}: {' x '.join(map(str, shape))} -> {' -> '.join(sizes)}, {weights:,} parameters")
    print(
        f"{len(split.train[0])} images of {ds.name} ({ds.source}), seed {cfg.seed}, {threads} threads -> {folder}",
        flush=True,
    )

    begin = time.perf_counter()
    for epoch in range(done + 1, cfg.n_epochs + 1):
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
        checkpoint(folder, epoch, ff, bp, rngs)
        left = (time.perf_counter() - begin) / (epoch - done) * (cfg.n_epochs - epoch)
        progress_line(epoch, cfg, ff_log, bp_log, len(split.train[0]), left)

    final = test(ff, bp, split, cfg, n_classes) | {"seconds": time.perf_counter() - begin}
    record.append(folder, {"final": final})
    if options.save:
        arrays = {f"ff/{i}/{k}": p for i, layer in enumerate(ff[0]) for k, p in layer.params.items()}
        record.save_arrays(options.save, arrays, {"config": asdict(cfg), "dataset": ds.name})
    report(final, ds)
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
    cfg, options = cli.parse(Config, __doc__)
    if options.resume and not options.threads:  # as many as before: BLAS rounds differently on another number
        options.threads = min(record.read(options.resume)[0]["machine"]["threads"], os.cpu_count())
    threads = cli.set_threads(options.threads)
    cli.announce_compilation()
    finals = []
    for seed in options.seeds:
        cfg.seed = seed
        folder, final = run(cfg, options, threads)
        finals.append(final)
        if options.figures:
            cli.draw("viz/ff_cifar_lc.py", folder)
    if len(finals) > 1:
        for name in ("ff", "bp"):
            if name in finals[0]:
                m, s = mean_sd([100 * f[name]["test_acc"] for f in finals])
                print(f"{name.upper()} test accuracy {m:.2f} ± {s:.2f} % (mean ± sd over {len(finals)} seeds)")


if __name__ == "__main__":
    cli.run(main)
