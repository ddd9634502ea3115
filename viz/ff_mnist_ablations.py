"""What the parts of the dense descendants are worth: the tables of explore.py, and images per second, as pictures.

    python viz/ff_mnist_ablations.py [--out DIR]        from the committed records; DIR: ff_mnist/figures

parts.png     AMSGA: all four parts, each left out, each alone, none; held-out images, mean and sd over seeds
ladder.png    DTG-FF's ladder from pure FF to the hybrid, beside its paper's
speed.png     images per second against the number of classes: one pass, or a pass for every class
"""

import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import record
from common.evaluate import mean_sd
from viz import style

GROUPS = {"reference": style.FF, "left out": style.POS, "alone": style.NEG, "none": style.BP}
PAPER_LADDER = {  # App. D.3, percent: the variant's name in explore.py, what the paper says
    "BatchNorm everywhere, shared": 10,
    "pure FF": 16.5,
    "DTG-FF, head on the last layer": 46.00,
    "head on all layers but the last": 52.51,
    "lambda 0.1": 53.32,
    "LayerNorm before the head": 55.43,
    "BatchNorm before the head": 63.72,
}
WAYS = {  # as benchmarks/hff.py names them: colour, marker and line
    "HFF, one pass": (style.FF, "o-"),
    "FF, shared first layer": (style.POS, "s--"),
    "FF, a pass per class": (style.BP, "^:"),
}


def load(folder):
    """-> {(group, variant): {seed: percent}} over all records of a folder, and the settings of one line."""
    found, config = {}, None
    for path in sorted(Path(folder).glob("*.jsonl")):
        for line in record.read(path):
            if "variant" in line:
                (net,) = [line[net] for net in ("ff", "softmax") if net in line]
                found.setdefault((line["group"], line["variant"]), {})[line["seed"]] = 100 * net["val_acc"]
                config = line["config"]
    if not found:
        raise record.RecordError(f"{folder} holds no finished table")
    return found, config


def rows(ax, found, colors):
    """One line of the picture per variant, from above: seeds as points, their mean and sd."""
    for y, ((group, _), by_seed) in enumerate(found.items()):
        mean, sd = mean_sd(list(by_seed.values()))
        color = colors.get(group, style.FF)
        ax.plot(list(by_seed.values()), [y] * len(by_seed), "o", color=color, alpha=0.35, markersize=5)
        ax.errorbar(mean, y, xerr=np.nan_to_num(sd), fmt="D", color=color, capsize=4, markersize=6)
    ax.set_yticks(range(len(found)), [variant for _, variant in found])
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.set_xlabel("validation accuracy (%)")
    return max(map(len, found.values()))


def parts(found, config):
    """AMSGA's parts."""
    found = {key: value for key, value in found.items() if key[0] in GROUPS}
    fig, ax = plt.subplots(figsize=(9.6, 0.42 * len(found) + 1.6), layout="constrained")
    n = rows(ax, found, GROUPS)
    ax.axvline(mean_sd(list(found["reference", "reference"].values()))[0], color=style.CHANCE, linestyle=(0, (2, 2)))
    names = [text.replace("reference", "all four parts") for text in (t.get_text() for t in ax.get_yticklabels())]
    ax.set_yticks(range(len(found)), names)
    seeds = f"{n} seed{'s' if n > 1 else ''}"
    ax.set_title(f"AMSGA: what its parts are worth ({config['n_epochs']} epochs, {seeds}: mean and sd)")
    return fig


def ladder(found, config):
    """DTG-FF's rungs, ours and the paper's."""
    found = dict(sorted(found.items(), key=lambda item: item[0][0]))  # several runs may have made the table
    fig, ax = plt.subplots(figsize=(9.6, 0.45 * len(found) + 2.0), layout="constrained")
    n = rows(ax, found, {})
    for y, (_, variant) in enumerate(found):
        if variant in PAPER_LADDER:
            ax.plot(PAPER_LADDER[variant], y, "s", color=style.BP, markerfacecolor="none", markersize=8)
    ax.plot(
        [],
        [],
        "D",
        color=style.FF,
        label=f"ours: {config['n_epochs']} epochs, held-out images, {n} seed{'s' if n > 1 else ''}",
    )
    ax.plot([], [], "s", color=style.BP, markerfacecolor="none", label="the paper: 100 epochs, test images")
    ax.axvline(10, color=style.CHANCE, linestyle=(0, (2, 2)), linewidth=1.2, label="chance")
    ax.set_xlim(5, None)
    fig.legend(loc="outside lower center", ncols=3)
    ax.set_title("CIFAR-10: from pure Forward-Forward to the hybrid")
    return fig


def speeds(path):
    """The record of benchmarks/hff.py -> {way: {classes: images per second}}."""
    found, classes = {way: {} for way in WAYS}, None
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if head := re.match(r"(\d+) classes, ", line):
            classes = int(head[1])
        if row := re.match(r"  (\S.*?) +(\d+) images/s", line):
            found[row[1]][classes] = int(row[2])
    if not all(found.values()):
        raise record.RecordError(f"{path} is no output of benchmarks/hff.py")
    return found


def speed(found):
    """Images per second against the number of classes."""
    fig, ax = plt.subplots(figsize=(9.6, 4.6), layout="constrained")
    for way, (color, form) in WAYS.items():
        K, rate = zip(*sorted(found[way].items()), strict=True)
        ax.plot(K, rate, form, color=color, label=way)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(K, K)
    ax.minorticks_off()
    ax.set_xlabel("classes K")
    ax.set_ylabel("images per second, two cores")
    most, least = found["HFF, one pass"][K[-1]], found["FF, a pass per class"][K[-1]]
    ax.annotate(
        f"{most / least:.0f} times", (K[-1], (most * least) ** 0.5), (-10, 0), textcoords="offset points", ha="right"
    )
    ax.vlines(K[-1], least, most, color=style.CHANCE, linewidth=1.2, linestyle=(0, (2, 2)))
    style.legend_below(ax, 3)
    ax.set_title("Prediction: a pass for every class, or one for all")
    return fig


def main():
    parser = style.Parser(__doc__)
    parser.add_argument("--out", metavar="DIR", default=ROOT / "ff_mnist" / "figures", help="default: ff_mnist/figures")
    parser.add_argument("--results", metavar="DIR", default=ROOT / "results", help="the records (default: results)")
    options = parser.parse_args()
    results = Path(options.results)
    pictures = {
        "parts": (results / "ff_mnist_amsga-parts", lambda path: parts(*load(path))),
        "ladder": (results / "ff_mnist_dtg-ladder", lambda path: ladder(*load(path))),
        "speed": (results / "benchmarks" / "hff.txt", lambda path: speed(speeds(path))),
    }
    out = style.folder(options.out)
    for name, (path, draw) in pictures.items():
        if not path.exists():
            print(f"no {name}.png: {path} does not exist yet")
            continue
        style.save(draw(path), out / f"{name}.png")
        print(f"figure: {out / name}.png")


if __name__ == "__main__":
    style.run(main)
