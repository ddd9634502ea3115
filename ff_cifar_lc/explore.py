"""What each choice is worth: the same short run with one thing changed, FF only or FF beside BP, on held-out images.

Five tables of variants, each line a change of one reference run. Settings are chosen here, on the validation images;
no test image is ever looked at. Everything that train.py has a flag for is run by train.py's own functions; below are
the few variants that it has no flag for.

    findings    what makes Forward-Forward good: losses and their sharpness, negatives, width, augmentation, ...
    write-up    the write-up's own explanations of its 23 %, tested with its label slot
    depth       1 to 4 layers, 8 to 32 channels, FF beside BP
    twin        the learning rate and the weight decay of the BP twin, so that FF is compared with BP at its best
    long        the choices again that a longer run could change, for --preset long

Run
    python ff_cifar_lc/explore.py --table findings --seeds 0-2
    python ff_cifar_lc/explore.py --table depth --only "3 layers" --seeds 0-2        lines whose name contains this
    python ff_cifar_lc/explore.py --resume runs/ff_cifar_lc_findings/RUN                 go on after the last line
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, tables  # before NumPy, see common/__init__.py

# isort: split
import numpy as np
import train

from common.evaluate import accuracy
from common.functions import relu
from common.goodness import MeanSquare, label_loss, normalise, peer_pull
from common.labels import write_slot, wrong_labels


def regions(side):
    """train.ff_step, with a loss for each of side x side regions of the map (0: for each location) instead of one."""

    def step(layers, opts, images, labels, cfg, rng, n_classes):
        h, log = images, []
        for layer, opt in zip(layers, opts, strict=True):
            a, cache = layer.image_part(h)
            maps = layer.goodness_map(a)  # (B, H, W, K)
            n = side or maps.shape[1]
            rows, columns = (np.array_split(np.arange(size), n) for size in maps.shape[1:3])
            dmaps, total = np.empty(maps.shape, np.float32), 0.0
            for i in rows:
                for j in columns:
                    window = slice(None), slice(i[0], i[-1] + 1), slice(j[0], j[-1] + 1)
                    loss, dg = label_loss(maps[window].mean(axis=(1, 2)), labels, cfg.beta)
                    dmaps[window] = dg[:, None, None] / (len(i) * len(j) * n * n)
                    total += loss / (n * n)
            y = relu(a)
            pull = peer_pull(y.mean(axis=0), cfg.peer * 2 * cfg.beta / y.size)
            opt.step(layer.backward_goodness(dmaps, a, cache, pull))
            h = normalise(y)
            log.append((total, 0.0, 0.0))
        return np.array(log)

    return step


def lr_factors(factors):
    """train.ff_step, in which layer i learns at factors[i] times the learning rate."""

    def step(layers, opts, *others):
        for opt, factor in zip(opts, factors, strict=True):
            opt.lr *= factor  # train_epoch sets it before every step
        return train.ff_step(layers, opts, *others)

    return step


def raw_step(layers, opts, images, labels, cfg, rng, n_classes):
    """train.ff_step_pairs for the slot, without the renormalisation between layers."""
    B = len(images)
    both = np.concatenate([labels, wrong_labels(labels, n_classes, rng)])
    h = write_slot(np.concatenate([images, images]), both, cfg.slot_rows, n_classes)
    log = []
    for layer, opt in zip(layers, opts, strict=True):
        y, cache = layer.forward(h)
        g, squares = MeanSquare().forward(y)
        loss, dg = train.pair_loss(g, cfg)
        _, grads = layer.backward(MeanSquare().backward(dg, squares), cache)
        opt.step(grads)
        h = y
        log.append((loss, g[:B].mean(), g[B:].mean()))
    return np.array(log)


def raw_goodness(layers, images, cfg, n_classes):
    """train.ff_goodness for `raw_step`."""
    g = np.empty((len(layers), len(images), n_classes), np.float32)
    for first in range(0, len(images), 128):
        rows = slice(first, first + 128)
        for label in range(n_classes):
            x = images[rows].copy()
            h = write_slot(x, np.full(len(x), label), cfg.slot_rows, n_classes)
            for i, layer in enumerate(layers):
                h, _ = layer.forward(h, train=False)
                g[i, rows, label] = MeanSquare().forward(h)[0]
    return g


PAIRS = {"negatives": "uniform", "neutral": False}  # rows that keep their label
FF_ONLY = {"bp_baseline": False}
ALL = {"train_subset": 45000, "n_epochs": 30}
WIDTHS = {c: {"channels": c, "beta": 64.0 * c} for c in (8, 16, 32)}

# table -> what its reference changes of train.py's defaults, and lines of (group, name, what differs from the
# reference). "step" and "goodness" are functions in place of train.py's own.
TABLES = {
    "findings": (
        {"train_subset": 20000, "n_epochs": 6} | FF_ONLY,
        [
            ("reference", "reference", {}),
            *(("sharpness", f"beta {b:g}", {"beta": b}) for b in (1.0, 4.0, 16.0, 64.0, 256.0, 4096.0)),
            *(
                ("pairs, neutral", f"{kind} negatives, margin, beta {b:g}", {"negatives": kind, "beta": b})
                for kind in ("uniform", "hard", "sampled")
                for b in (16.0, 128.0, 1024.0, 4096.0)
            ),
            *(
                (
                    "pairs that keep their label",
                    f"{kind} negatives, margin, own label, beta {b:g}",
                    PAIRS | {"negatives": kind, "beta": b},
                )
                for kind, betas in (
                    ("uniform", (4.0, 16.0, 128.0, 1024.0, 4096.0)),
                    ("hard", (128.0,)),
                    ("sampled", (128.0,)),
                )
                for b in betas
            ),
            *(
                (
                    "pairs that keep their label",
                    f"uniform negatives, threshold 1, own label, beta {b:g}",
                    PAIRS | {"loss": "threshold", "threshold": 1.0, "beta": b},
                )
                for b in (1.0, 16.0, 128.0)
            ),
            *(("width", f"{c} channels, beta {64 * c}", WIDTHS[c]) for c in (8, 32)),
            *(("fields", f"fields {rf}", {"rf": rf}) for rf in ("11,5", "5,5", "9,5")),
            ("depth", "1 layer", {"n_layers": 1}),
            ("depth", "3 layers", {"n_layers": 3}),
            ("augmentation", "no flips", {"flip": False}),
            *(("augmentation", f"shifts up to {n}", {"shift": n}) for n in (0, 1, 4)),
            ("augmentation", "no flips, no shifts", {"flip": False, "shift": 0}),
            *(("weight decay", f"weight decay {d}", {"weight_decay": d}) for d in (0.01, 0.1)),
            *(("schedule", f"{s} learning rate", {"schedule": s}) for s in ("constant", "cosine")),
            *(("learning rate", f"learning rate {lr}", {"lr": lr}) for lr in (0.001, 0.01)),
            *(("batch", f"batch {n}", {"batch_size": n}) for n in (32, 128)),
            ("label weights", "label weights start at 0.1 of that", {"label_scale": 0.1}),
            ("goodness", "a loss per quarter of the map", {"step": regions(2)}),
            *(
                ("goodness", f"a loss per location, beta {b:g}", {"step": regions(0), "beta": b})
                for b in (4.0, 16.0, 64.0, 256.0, 1024.0)
            ),
            ("peers", "no peer normalisation", {"peer": 0.0}),
            *(("peers", f"peer normalisation {p:g}", {"peer": p}) for p in (0.0003, 0.003, 0.01)),
            ("peers", "none, and half the learning rate in layer 1", {"peer": 0.0, "lr_factors": (1.0, 0.5)}),
        ],
    ),
    "write-up": (
        train.PRESETS["write-up"] | FF_ONLY,
        [
            ("reference", "reference", {}),
            ("training", "45 000 images", {"train_subset": 45000}),
            ("training", "30 epochs", {"n_epochs": 30}),
            ("training", "45 000 images, 30 epochs", ALL),
            ("width", "16 channels", {"channels": 16}),
            ("width", "32 channels", {"channels": 32}),
            ("width", "45 000 images, 30 epochs, 16 channels", ALL | {"channels": 16}),
            ("negatives", "hardest wrong label", {"negatives": "hard"}),
            ("label", "one-row label", {"slot_rows": 1}),
            ("label", "eleven-row label", {"slot_rows": 11}),
            ("layers", "no renormalisation", {"step": raw_step, "goodness": raw_goodness}),
            ("vote", "first layer votes too", {"skip_first": False}),
            ("label", "label map, else as it was", {"label": "map"}),
            (
                "label",
                "label map and the default's loss",
                {
                    k: getattr(train.Config(), k)
                    for k in ("label", "negatives", "neutral", "loss", "beta", "lr", "peer")
                },
            ),
        ],
    ),
    "depth": (
        {"train_subset": 20000, "n_epochs": 8},
        [
            # beta multiplies a mean over the units: it grows with their number, as a sum of squares would
            (f"{c} channels", f"{n} layer{'s' if n > 1 else ''}, {c} channels", WIDTHS[c] | {"n_layers": n})
            for c in WIDTHS
            for n in (1, 2, 3, 4)
        ],
    ),
    "twin": (
        {"train_subset": 20000, "n_epochs": 8, "peer": 0.0},
        [
            ("reference", "reference", {}),
            *(("learning rate", f"learning rate {lr}", {"bp_lr": lr}) for lr in (0.0003, 0.0005, 0.002, 0.003)),
            *(("weight decay", f"weight decay {d}", {"weight_decay": d}) for d in (0.01, 0.1)),
        ],
    ),
    "long": (
        {"n_epochs": 12},
        [
            ("reference", "reference", {}),
            ("augmentation", "shifts up to 4", {"shift": 4}),
            *(("weight decay", f"weight decay {d}", {"weight_decay": d}) for d in (0.01, 0.1)),
            *(("peers", f"peer normalisation {p:g}", {"peer": p} | FF_ONLY) for p in (0.003, 0.01)),
            ("fields", "fields 5,5", {"rf": "5,5"} | FF_ONLY),
            ("depth", "3 layers", {"n_layers": 3} | FF_ONLY),
            ("width", "32 channels, beta 2048", WIDTHS[32] | FF_ONLY),
            *(("epochs", f"40 epochs, shifts up to {n}", {"n_epochs": 40, "shift": n}) for n in (2, 4)),
        ],
    ),
}


def run_variant(settings, cfg, ds, seed):
    """Train one variant -> what its line in the record says: accuracies on all held-out images, from 0 to 1."""
    settings = dict(settings)
    if "lr_factors" in settings:
        settings["step"] = lr_factors(settings.pop("lr_factors"))
    label_scale = settings.pop("label_scale", 1)
    step, goodness = settings.pop("step", None), settings.pop("goodness", train.ff_goodness)
    chosen = replace(train.Config(), **settings, seed=seed, eval_subset=cfg.validation)
    chosen.validation = cfg.validation
    chosen.train_subset = cfg.train_subset or chosen.train_subset
    chosen.n_epochs = cfg.n_epochs or chosen.n_epochs
    train.check(chosen, ds)
    n_classes, shape = len(ds.class_names), ds.x_train.shape[1:]
    split = train.Split(ds, chosen)
    ff, bp, rngs = train.networks(chosen, shape, n_classes)
    seconds = {"ff": 0.0, "bp": 0.0}
    for layer in ff[0]:
        if "U" in layer.params:
            layer.params["U"] *= np.float32(label_scale)
    for epoch in range(1, chosen.n_epochs + 1):
        logs = train.train_epoch(ff, bp, split, rngs, chosen, n_classes, epoch, step)
        for name, log in zip(seconds, logs, strict=True):
            seconds[name] += log["seconds"] if log else 0
    line = {"config": asdict(chosen), "ff": {"seconds": seconds["ff"]}}
    some = split.train[0][:1000], split.train[1][:1000]
    for key, (x, y) in (("train_acc", some), ("val_acc", split.val)):
        x = split.floats(x)
        g = goodness(ff[0], x, chosen, n_classes)
        line["ff"][key] = accuracy(train.ff_vote(g, chosen), y)
        if bp:
            line.setdefault("bp", {"seconds": seconds["bp"]})[key] = accuracy(train.bp_predict(bp[0], x), y)
    line["ff"]["layer_acc"] = [accuracy(layer.argmax(axis=1), y) for layer in g]  # g, y: of the validation images
    return line


def main():
    tables.run(__doc__, TABLES, run_variant, "ff_cifar_lc", tables.images("cifar10"), ("local",))


if __name__ == "__main__":
    cli.run(main)
