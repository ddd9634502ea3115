"""Tables of short ff_cnn runs, one thing changed in each, judged on held-out images; no test image is looked at.

    rates       the learning rate of every method, from one common grid; where the best is at its end, the grid grows
    scales      what hff's cosines, and cwc's and cumulative's squares, are multiplied by
    ablations   what DTG-FF's paper takes away or replaces, row by row (App. A.5, D.4)
    factorial   who learns from whom x what is read x learned or random, from the same numbers: the eight cells between
                DTG-FF and deep supervision; and what else deep supervision and backpropagation could be
    depth       more blocks of one width; VGG8 and VGG11 (App. D.5)
    widths      one network, wider
    asge        its parts on a map, its poolings, projections and answers (asked with --dataset cifar100)
    cumulative  the five ways to count what other blocks have collected (with cifar10 and cifar100)
    labels      20 or 100 classes on the same images (with cifar100-coarse and cifar100): accuracy epoch by epoch; a
                group of channels per class (cwc) needs more channels the more classes there are

All methods have a head that learns from what it sees and hands nothing back (bp: that everything learns from); its
accuracy is what a learning rate is chosen by. The blocks' own answers are printed beside it; cumulative has only them.

Run
    python ff_cnn/explore.py --table ablations --seeds 0-2
    python ff_cnn/explore.py --resume runs/ff_cnn_ablations/RUN          go on after the last line
"""

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import runs, tables  # before NumPy, see common/__init__.py

# isort: split
import cumulative
import numpy as np
import train

from common import cli


@dataclass
class Config(tables.Config):
    validation: int = 5000  # training images held out, all of which judge


METHODS = {
    "dtg": {},
    "linear": {"rule": "linear"},
    "deepsup": {"rule": "linear", "credit": "deepsup"},
    "bp": {"credit": "bp"},
    "asge": {"rule": "asge"},
    "hff": {"rule": "hff"},
    "cwc": {"rule": "cwc"},
    "cumulative": {"script": "cumulative"},
}
CONTROLS = ("dtg", "linear", "deepsup", "bp")
RATES = (0.0005, 0.001, 0.002, 0.004)
SHORT = {"n_epochs": 6, "width": 0.25}
TABLES = {
    "rates": (
        SHORT,
        [
            (name, f"{name}, learning rate {lr:g}", settings | {"lr": lr})
            for name, settings in METHODS.items()
            for lr in RATES
        ],
    ),
    "scales": (
        SHORT,
        [("hff", f"hff, scale {scale:g}", {"rule": "hff", "scale": scale}) for scale in (5.0, 10.0, 20.0, 40.0)]
        + [("cwc", f"cwc, scale {scale:g}", {"rule": "cwc", "scale": scale}) for scale in (1.0, 3.0, 10.0, 30.0)]
        + [
            ("cumulative", f"cumulative, scale {scale:g}", {"script": "cumulative", "scale": scale})
            for scale in (16.0, 64.0, 256.0)
        ],
    ),
    "ablations": (
        SHORT | {"train_subset": 20000, "n_epochs": 10},
        [
            ("reference", "reference", {}),
            ("temperature", "T = 1", {"temperature": False}),
            ("temperature", "T learns as slowly as the weights", {"temperature_lr": 0.002}),
            ("handed on", "no norm", {"norm": "none"}),
            ("handed on", "RMSNorm", {"norm": "rms"}),
            ("handed on", "no dropout", {"dropout": 0.0}),
            ("images", "no cutout", {"cutout": 0}),
            ("images", "no jitter", {"jitter": 0.0}),
            ("regularisation", "no smoothing, no dropout of the head", {"smoothing": 0.0, "head_dropout": 0.0}),
            ("random map", "columns of length 1", {"projection": "unit"}),
            ("random map", "columns of length 1, T = 1", {"projection": "unit", "temperature": False}),
            ("random map", "learned", {"projection": "learned"}),
            ("goodness", "of BatchNorm", {"goodness_norm": "batch"}),
            ("schedule", "naive: computed again after each block's step", {"pipelined": False}),
        ],
    ),
    "factorial": (
        SHORT | {"train_subset": 20000, "n_epochs": 10},
        [
            (
                f"{credit}",
                f"{credit}, {text}, {projection} map",
                {"credit": credit, "rule": rule, "projection": projection},
            )
            for credit in ("local", "deepsup")
            for rule, text in (("dtg", "z² / T"), ("linear", "z"))
            for projection in ("random", "learned")
        ]
        + [
            ("deepsup", "deepsup, z, learned map from small weights", METHODS["deepsup"]),
            ("deepsup", "the same, gradients clipped over all blocks", METHODS["deepsup"] | {"clip_by": "network"}),
            ("bp", "bp, head on all blocks but the first", METHODS["bp"]),
            ("bp", "bp, head on the last block", METHODS["bp"] | {"head": "last"}),
        ],
    ),
    "depth": (
        SHORT | {"train_subset": 20000, "n_epochs": 10},
        [
            (backbone, f"{backbone}, {name}", {"backbone": backbone} | METHODS[name])
            for backbone in ("plain4", "plain8", "plain12", "vgg8", "vgg11")
            for name in ("dtg", "deepsup")
        ],
    ),
    "widths": (
        SHORT | {"train_subset": 20000, "n_epochs": 10},
        [
            (f"width {width:g}", f"width {width:g}, {name}", {"width": width} | METHODS[name])
            for width in (0.125, 0.25, 0.5)
            for name in CONTROLS
        ],
    ),
    "asge": (
        SHORT | {"rule": "asge", "n_epochs": 12},
        [
            *(("parts", f"alpha {alpha:g}", {"alpha": alpha}) for alpha in (0.0, 0.5, 1.0, 1.5, 2.0)),
            *(("pooling", f"{pooling} pooling", {"pooling": pooling}) for pooling in ("average", "max")),
            ("projection", "learned", {"projection": "learned"}),
            *(("head", f"head on {head}", {"head": head}) for head in ("last", "goodness")),
        ],
    ),
    "cumulative": (
        {"script": "cumulative", "n_epochs": 12, "width": 0.25},
        [
            *(("gamma", f"gamma {gamma:g}", {"gamma": gamma}) for gamma in (1.0, 0.7, 0.0)),
            *(("remedy", remedy, {"remedy": remedy}) for remedy in ("gated", "scaled")),
        ],
    ),
    "labels": (
        SHORT | {"n_epochs": 12},
        [(name, name, METHODS[name]) for name in ("dtg", "deepsup", "bp", "asge", "cwc")],
    ),
}


def run_variant(settings, cfg, ds, seed, xp=np):
    """Train one variant -> what its line in the record says: accuracies on all held-out images, from 0 to 1."""
    script = {"train": train, "cumulative": cumulative}[settings.pop("script", "train")]
    chosen = replace(script.Config(), **settings, seed=seed, validation=cfg.validation)
    chosen.train_subset = cfg.train_subset or chosen.train_subset
    chosen.n_epochs = cfg.n_epochs or chosen.n_epochs
    script.check(chosen, ds)
    data = train.Split(ds, chosen)
    net = script.Net(chosen, data.shape, data.n_classes, np.random.default_rng([seed, 0]))
    if xp is not np:
        if script is cumulative:
            raise cli.UsageError("cumulative.py runs on the CPU alone: leave out --device, or name others with --only")
        from common import kernels_gpu

        kernels_gpu.tf32(chosen.tf32)
        data.to(xp)
        runs.move(xp, {"net": net.layers})
    rng, seconds, curve = np.random.default_rng([seed, 3]), 0.0, []
    with np.errstate(over="ignore", invalid="ignore"):  # some of these ways to learn blow up: that is a result
        for epoch in range(1, chosen.n_epochs + 1):
            log = script.train_epoch(net, data, rng, chosen, epoch)
            seconds += log["seconds"]
            on_val, _ = script.evaluate(net, *data.val, chosen, data)
            curve.append(train.answers(on_val))
        on_train, _ = script.evaluate(net, *(part[:1000] for part in data.train), chosen, data)
    layers = net.layers if script is cumulative else net.layers[0]
    weights = sum(p.size for layer in layers for p in layer.params.values())
    line = {"config": asdict(chosen), "parameters": int(weights), "seconds": seconds}
    line |= {"layer_acc": on_val.get("layer_acc"), "curve": curve}
    line |= {"separation": on_val["separation"]} if "separation" in on_val else {}
    line |= {k: log[k] for k in ("loss", "head_loss", "T") if k in log}
    for name in train.answers(on_val):
        line[name] = {"train_acc": on_train[f"{name}_acc"], "val_acc": on_val[f"{name}_acc"]}
    return line


def main():
    tables.run(__doc__, TABLES, run_variant, "ff_cnn", tables.images("cifar10"), ("conv",), Config, True)


if __name__ == "__main__":
    cli.run(main)
