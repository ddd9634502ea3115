"""Bytes that a training step moves, FF and BP, against depth and batch size: data_movement.py --sweep as a picture.

Rows: fetched and written back against depth, then against batch size, for caches of several sizes; then what needs no
cache, the data movement distance, and which part of the network the smallest cache fetches for.

python viz/ff_cifar_lc_data_movement.py [RECORD] [--out FILE]     RECORD: a run folder or a record.jsonl (default:
                                                                  the committed one); FILE: figures/...png
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import record
from viz import style

LINES = [  # way, what of it is left out, text, colour, marker and line
    ("FF", None, "Forward-Forward", style.FF, "o-"),
    ("greedy", None, "the same, layer by layer", style.POS, "s--"),
    ("BP", None, "backpropagation", style.BP, "^:"),
    ("BP", "head", "without its read-out", style.BP, "v-"),
]
PARTS = {"weights": "#0072B2", "activities": "#56B4E9", "gradients": "#E69F00", "head": "#999999"}


def load(path):
    """-> settings, {(layers, batch): {way: line}}."""
    lines = record.read(path)
    found = {(line["layers"], line["batch"]): line["ways"] for line in lines if "ways" in line}
    if len(found) < 2 or any("written" not in ways["FF"] for ways in found.values()):
        raise record.RecordError(f"{path} is no record of ff_cifar_lc/data_movement.py --sweep")
    return lines[0]["config"], found


def size(kb):
    return f"{int(kb) // 1024} MB" if int(kb) >= 1024 else f"{kb} kB"


def moved(line, kb, without):
    """Megabytes that come in and go out of a cache of kb kilobytes, per image, without one part."""
    each = line["fetched"][kb], line["written"][kb]
    return sum(part["total"] - part.get(without, 0) for part in each) / 1e6


def distance(line, without):
    part = line["data_movement_distance"]
    return (part["total"] - part.get(without, 0)) / 1e9


def curves(ax, found, keys, i, value):
    """value(line of a record, what is left out) against number i of the keys (layers, batch)."""
    for way, without, name, color, form in LINES:
        values = [value(found[key][way], without) for key in keys]
        ax.plot([key[i] for key in keys], values, form, color=color, label=name, alpha=0.5 if without else 1)
    ax.set_ylim(0, None)
    ax.set_xlabel(("layers", "images in a batch")[i])
    ax.set_xticks([key[i] for key in keys])


def parts(ax, ways, kb):
    """Bars: what the cache fetches for, way by way."""
    names = list(dict.fromkeys(way for way, *_ in LINES))
    below = [0.0] * len(names)
    for tag, color in PARTS.items():
        values = [ways[name]["fetched"][kb][tag] / 1e6 for name in names]
        ax.bar(names, values, bottom=below, color=color, label="read-out" if tag == "head" else tag)
        below = [low + value for low, value in zip(below, values, strict=True)]
    ax.set_title(f"fetched, a cache of {size(kb)}")
    ax.set_ylabel("MB per image")
    ax.grid(axis="x", visible=False)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def draw(cfg, found):
    headline = cfg["n_layers"], cfg["batch_size"]
    caches = list(found[headline]["FF"]["fetched"])
    depths = sorted(key for key in found if key[1] == headline[1])
    batches = sorted((key for key in found if key[0] == headline[0]), key=lambda key: key[1])
    fig = plt.figure(figsize=(9.6, 9.4), layout="constrained")
    upper, lower = fig.subfigures(2, 1, height_ratios=(2, 1))
    axes = upper.subplots(2, len(caches), squeeze=False)
    for line, keys, i in ((axes[0], depths, 0), (axes[1], batches, 1)):
        for ax, kb in zip(line, caches, strict=True):
            curves(ax, found, keys, i, lambda one, without, kb=kb: moved(one, kb, without))
        line[0].set_ylabel("MB moved per image")
    for ax, kb in zip(axes[0], caches, strict=True):
        ax.set_title(f"a cache of {size(kb)}")
    upper.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    left, middle, right = lower.subplots(1, 3)
    for ax, keys, i in ((left, depths, 0), (middle, batches, 1)):
        curves(ax, found, keys, i, distance)
        ax.set_title("data movement distance")
    left.set_ylabel("10⁹ bytes · √bytes per image")
    parts(right, found[headline], caches[0])
    fig.suptitle(f"What a training step moves ({cfg['channels']} channels, fields {cfg['rf']})", fontsize=13)
    return fig


def main():
    parser = style.Parser(__doc__)
    committed = ROOT / "results" / "ff_cifar_lc_data_movement" / "sweep.jsonl"
    parser.add_argument("record", nargs="?", metavar="RECORD", default=committed, help="default: the committed record")
    parser.add_argument("--out", metavar="FILE", default=ROOT / "ff_cifar_lc" / "figures" / "data_movement.png")
    options = parser.parse_args()
    style.save(draw(*load(options.record)), options.out)
    print(f"figure: {options.out}")


if __name__ == "__main__":
    style.run(main)
