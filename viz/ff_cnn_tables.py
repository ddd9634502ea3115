"""What the tables of ff_cnn say, as pictures, from the committed records.

    python viz/ff_cnn_tables.py [--out DIR]        DIR: ff_cnn/figures

family.png      every method's test accuracy, and what it costs to train (results/ff_cnn)
factorial.png   who learns from whom, what is read, random or learned maps: the eight cells (results/ff_cnn_factorial)
depth.png       accuracy against the number of blocks of one width (results/ff_cnn_depth)
labels.png      DTG-FF behind its controls, epoch by epoch, with 20 and with 100 labels (results/ff_cnn_labels)
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import record
from common.evaluate import mean_sd
from viz import style

METHODS = {  # rule, credit -> name, colour, marker; in the picture's order
    ("dtg", "local"): ("DTG-FF", style.FF, "o"),
    ("asge", "local"): ("ASGE", style.POS, "s"),
    ("hff", "local"): ("HFF", style.NEG, "D"),
    ("cumulative", "local"): ("cumulative", "#56B4E9", "P"),
    ("cwc", "local"): ("channel groups", "#E69F00", "X"),
    ("linear", "local"): ("linear, local", "#999999", "v"),
    ("linear", "deepsup"): ("BP, all heads", "#000000", "^"),
    ("dtg", "bp"): ("BP, one head", style.BP, "^"),
}
ANSWERS = ("head_acc", "sum_acc")  # the first that a method has
PLAIN = {"plain4": 4, "plain8": 8, "plain12": 12, "vgg8": 7, "vgg11": 8}


def method(config):
    """(rule, credit), as METHODS has them."""
    if "gamma" in config:  # ff_cnn/cumulative.py
        return "cumulative", "local"
    return ("dtg", "bp") if config["credit"] == "bp" else (config["rule"], config["credit"])  # with bp no block is read


def lines(folder):
    """All variants' lines of a folder's tables; Raises RecordError where there are none."""
    found = []
    for path in sorted(Path(folder).glob("*.jsonl")):
        run = record.read(path)
        found += [line | {"dataset": run[0]["dataset"]["name"]} for line in run if "variant" in line]
    if not found:
        raise record.RecordError(f"{folder} holds no finished table")
    return found


def value(line):
    """Validation accuracy, percent, of the head, or of the blocks where there is none."""
    return 100 * next(line[k.removesuffix("_acc")]["val_acc"] for k in ANSWERS if k.removesuffix("_acc") in line)


def family(folder):
    """Seeds, their mean and sd; beside them accuracy against seconds of training."""
    found = {}
    for path in sorted(Path(folder).glob("*.jsonl")):
        run = record.read(path)
        key = method(run[0]["config"])
        if key in METHODS and run[0]["dataset"]["name"] == "cifar10" and "final" in run[-1]:
            test = run[-1]["final"]["test"]
            acc = 100 * next(test[k] for k in ANSWERS if k in test)
            found.setdefault(key, []).append((acc, sum(line["seconds"] for line in run if "epoch" in line)))
    if not found:
        raise record.RecordError(f"{folder} holds no finished run on cifar10")
    order = [key for key in METHODS if key in found]
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 0.42 * len(order) + 2.2), layout="constrained")
    for y, key in enumerate(order):
        name, color, marker = METHODS[key]
        acc, seconds = zip(*found[key], strict=True)
        mean, sd = mean_sd(acc)
        left.plot(acc, [y] * len(acc), "o", color=color, alpha=0.35, markersize=5)
        left.errorbar(mean, y, xerr=np.nan_to_num(sd), fmt=marker, color=color, capsize=4, markersize=7)
        right.errorbar(np.median(seconds) / 60, mean, np.nan_to_num(sd), fmt=marker, color=color, capsize=3, label=name)
    left.set_yticks(range(len(order)), [METHODS[key][0] for key in order])
    left.invert_yaxis()
    left.set_xlabel("CIFAR-10, test accuracy (%)")
    right.set_xlabel("minutes of training")
    right.set_ylabel("test accuracy (%)")
    right.set_xlim(0, None)
    style.legend_below(right, 2)
    fig.suptitle("One recipe for all: seeds, their mean and sd", fontsize=13)
    return fig


def factorial(folder):
    """Accuracy of the eight cells: local or not from left to right, one line for what is read and by which map."""
    cells = {}
    for line in lines(folder):
        config = line["config"]
        if config["projection"] in ("random", "learned") and config["credit"] in ("local", "deepsup"):
            key = config["rule"], config["projection"]
            cells.setdefault(key, {}).setdefault(config["credit"], []).append(value(line))
    fig, ax = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    looks = {("dtg", "random"): (style.FF, "o-"), ("dtg", "learned"): (style.FF, "s--")}
    looks |= {("linear", "random"): (style.BP, "o-"), ("linear", "learned"): (style.BP, "s--")}
    for i, (key, (color, form)) in enumerate(looks.items()):
        if key in cells:
            stats = [mean_sd(cells[key].get(credit, [np.nan])) for credit in ("local", "deepsup")]
            text = f"{'z²/T' if key[0] == 'dtg' else 'z'}, {key[1]} map"
            x = np.arange(2) + 0.03 * (i - 1.5)
            ax.errorbar(x, [m for m, _ in stats], np.nan_to_num([sd for _, sd in stats]), fmt=form, color=color,
                        capsize=4, label=text)  # fmt: skip
    ax.set_xticks([0, 1], ["each block alone", "through all blocks"])
    ax.set_xlim(-0.3, 1.3)
    ax.set_ylabel("validation accuracy (%)")
    ax.set_title("Who learns from whom, and what is read")
    style.legend_below(ax, 2)
    return fig


def depth(folder):
    """Accuracy against the number of blocks; VGG8 and VGG11, which differ in more, as open marks."""
    found = {}
    for line in lines(folder):
        key = method(line["config"])
        found.setdefault(key, {}).setdefault(line["config"]["backbone"], []).append(value(line))
    fig, ax = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    for key in (key for key in METHODS if key in found):
        name, color, marker = METHODS[key]
        plain = [b for b in ("plain4", "plain8", "plain12") if b in found[key]]
        stats = [mean_sd(found[key][b]) for b in plain]
        ax.errorbar([PLAIN[b] for b in plain], [m for m, _ in stats], np.nan_to_num([sd for _, sd in stats]),
                    fmt=marker + "-", color=color, capsize=4, label=name)  # fmt: skip
        for b in (b for b in ("vgg8", "vgg11") if b in found[key]):
            mean, _ = mean_sd(found[key][b])
            ax.plot(PLAIN[b], mean, marker, color=color, markerfacecolor="none", markersize=9)
            ax.annotate(b.upper(), (PLAIN[b], mean), (6, -4), textcoords="offset points", fontsize=9, color=color)
    ax.set_xticks([4, 8, 12])
    ax.set_xlabel("blocks (lines: one width, only depth differs)")
    ax.set_ylabel("validation accuracy (%)")
    ax.set_title("What depth is worth")
    style.legend_below(ax, 2)
    return fig


def labels(folder):
    """DTG-FF minus each control against the epoch, means over seeds; solid: 100 labels, dashed: 20."""
    curves = {}
    for line in lines(folder):
        values = [100 * epoch.get("head", epoch.get("sum")) for epoch in line["curve"]]
        curves.setdefault((line["dataset"], method(line["config"])), {})[line["seed"]] = values
    fig, ax = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    for dataset, line, n in (("cifar100-coarse", "--", 20), ("cifar100", "-", 100)):
        ours = curves.get((dataset, ("dtg", "local")), {})
        for other in (("linear", "deepsup"), ("dtg", "bp")):
            theirs = curves.get((dataset, other), {})
            seeds = sorted(ours.keys() & theirs.keys())
            if seeds:
                gap = np.mean([np.subtract(ours[seed], theirs[seed]) for seed in seeds], axis=0)
                name, color, _ = METHODS[other]
                ax.plot(np.arange(1, len(gap) + 1), gap, line, color=color, label=f"minus {name}, {n} labels")
                style.epoch_axis(ax, len(gap))
    style.reference(ax, 0, None)
    ax.set_ylabel("DTG-FF's validation accuracy, points")
    ax.set_title("CIFAR-100: the same images with few and with many labels")
    style.legend_below(ax, 2)
    return fig


def main():
    parser = style.Parser(__doc__)
    parser.add_argument("--out", metavar="DIR", default=ROOT / "ff_cnn" / "figures", help="default: ff_cnn/figures")
    parser.add_argument("--results", metavar="DIR", default=ROOT / "results", help="the records (default: results)")
    options = parser.parse_args()
    out, results = style.folder(options.out), Path(options.results)
    pictures = {"family": ("ff_cnn", family), "factorial": ("ff_cnn_factorial", factorial)}
    pictures |= {"depth": ("ff_cnn_depth", depth), "labels": ("ff_cnn_labels", labels)}
    for name, (folder, draw) in pictures.items():
        if not (results / folder).exists():
            print(f"no {name}.png: {results / folder} does not exist yet")
            continue
        style.save(draw(results / folder), out / f"{name}.png")
        print(f"figure: {out / name}.png")


if __name__ == "__main__":
    style.run(main)
