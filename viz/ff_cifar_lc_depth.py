"""Forward-Forward and backpropagation over depth and width, from the records of `explore.py --table depth`.

    python viz/ff_cifar_lc_depth.py [RECORD] [--out FILE]     RECORD: a run folder or a record.jsonl (default: the
                                                              committed one); FILE: ff_cifar_lc/figures/depth.png

One panel per width. Points are means over seeds, bars their sample standard deviation; the numbers are FF minus BP,
taken seed by seed.
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


def cells(lines):
    """Lines of the table -> {channels: {layers: {"ff": accuracies in %, "bp": the same seeds'}}}."""
    found = {}
    for line in lines:
        if "variant" in line:
            config = line["config"]
            cell = found.setdefault(config["channels"], {}).setdefault(config["n_layers"], {"ff": [], "bp": []})
            for net, scores in cell.items():
                scores.append(100 * line[net]["val_acc"])
    return found


def load(path):
    """-> `cells` of the record, settings that all its networks share."""
    lines = record.read(path)
    if lines[0].get("config", {}).get("table") != "depth":
        raise record.RecordError(f"{path} is no record of ff_cifar_lc/explore.py --table depth")
    found = cells(lines)
    if not found:
        raise record.RecordError(f"{path} has no finished network yet")
    return found, next(line["config"] for line in lines if "variant" in line)


def gap(cell):
    """FF minus BP over the seeds of one network, as text."""
    mean, sd = mean_sd(np.subtract(cell["ff"], cell["bp"]))
    mean = round(mean, 1) + 0.0  # no −0.0
    return f"{mean:+.1f}".replace("-", "−") + ("" if np.isnan(sd) else f"\n± {sd:.1f}")


def draw(found, config):
    """The whole figure."""
    fig, axes = plt.subplots(1, len(found), figsize=(9.6, 4.4), sharey=True, squeeze=False, layout="constrained")
    seeds = 0
    for ax, (channels, depths) in zip(axes[0], sorted(found.items()), strict=True):
        layers = sorted(depths)
        for net, name, color, form in (("ff", "FF", style.FF, "o-"), ("bp", "BP twin", style.BP, "s--")):
            means, sds = zip(*(mean_sd(depths[n][net]) for n in layers), strict=True)
            ax.errorbar(layers, means, np.nan_to_num(sds), fmt=form, color=color, capsize=4, label=name)
        for n in layers:
            top = max(map(max, depths[n].values()))
            place = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center", "fontsize": 10}
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}  # over a line that passes by
            ax.annotate(gap(depths[n]), (n, top), bbox=paper, **place)
            seeds = max(seeds, len(depths[n]["ff"]))
        ax.set_title(f"{channels} channels")
        ax.set_xticks(layers)
        ax.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
        ax.set_xlabel("layers")
    axes[0, 0].set_ylabel("validation accuracy (%)")
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(low, high + 0.16 * (high - low))  # room for the numbers
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    images = f"{config['train_subset']:,}".replace(",", " ")
    fig.suptitle("Depth and width: Forward-Forward beside backpropagation", x=0.01, ha="left", fontsize=13)
    fig.supxlabel(
        f"Numbers: FF minus BP, in points. {images} training images, {config['n_epochs']} epochs, "
        f"{seeds} seed{'s' if seeds > 1 else ''}; fields {config['rf'].replace(',', ', then ')} in all further layers.",
        fontsize=10.5,
    )
    return fig


def main():
    parser = style.Parser(__doc__)
    committed = ROOT / "results" / "ff_cifar_lc_depth" / "depth.jsonl"
    parser.add_argument("record", nargs="?", metavar="RECORD", default=committed, help="default: the committed record")
    parser.add_argument("--out", metavar="FILE", default=ROOT / "ff_cifar_lc" / "figures" / "depth.png")
    options = parser.parse_args()
    style.save(draw(*load(options.record)), options.out)
    print(f"figure: {options.out}")


if __name__ == "__main__":
    style.run(main)
