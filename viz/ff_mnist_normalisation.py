"""Normalisation, threshold, sum or mean: what a network learns, from `explore.py --table normalisation`.

    python viz/ff_mnist_normalisation.py [RECORD] [--out FILE]      RECORD: a run folder or a record.jsonl (default: the
                                                                    committed one); FILE: figures/normalisation.png

One column for the sum and one for the mean of squares, one row for each way to predict. Points are means over seeds,
bars their sample standard deviation.
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

NORMS = {  # what the next layer sees: text, colour, marker and line
    "rms": ("scaled to mean square 1", style.FF, "o-"),
    "length": ("scaled to length 1", style.POS, "s--"),
    "none": ("not normalised", style.BP, "^:"),
}
COLUMNS = {"sum": "sum of squares; θ times the width", "mean": "mean of squares"}
ROWS = {"ff": "by goodness", "softmax": "by the softmax, one pass"}
TICKS = [1, 2, 5, 10, 20, 50, 90]


def load(path):
    """-> {(goodness, norm, theta): {"ff": errors in %, "softmax": the same seeds'}}, settings that all share."""
    lines = record.read(path)
    if lines[0].get("config", {}).get("table") != "normalisation":
        raise record.RecordError(f"{path} is no record of ff_mnist/explore.py --table normalisation")
    found, config = {}, None
    for line in lines:
        if "variant" in line:
            config = line["config"]
            cell = found.setdefault((config["goodness"], config["norm"], config["theta"]), {net: [] for net in ROWS})
            for net, errors in cell.items():
                errors.append(100 * (1 - line[net]["val_acc"]))
    if not found:
        raise record.RecordError(f"{path} has no finished network yet")
    return found, config


def draw(found, config):
    """The whole figure."""
    fig, axes = plt.subplots(2, 2, figsize=(9.6, 6.6), sharex=True, sharey=True, layout="constrained")
    for line, (net, how) in zip(axes, ROWS.items(), strict=True):
        for ax, (goodness, title) in zip(line, COLUMNS.items(), strict=True):
            for norm, (text, color, form) in NORMS.items():
                thetas = sorted(theta for g, n, theta in found if (g, n) == (goodness, norm))
                spreads = [mean_sd(found[goodness, norm, theta][net]) for theta in thetas]
                means, sds = (np.array(column) for column in zip(*spreads, strict=True)) if spreads else ((), ())
                ax.errorbar(thetas, means, np.nan_to_num(sds), fmt=form, color=color, capsize=4, label=text)
            if net == "ff":
                ax.set_title(f"goodness: {title}")
            else:
                ax.set_xlabel("threshold θ")
        line[0].set_ylabel(f"validation error (%)\n{how}")
    ax.set_xscale("log")
    thetas = sorted({theta for _, _, theta in found})
    ax.set_xticks(thetas, [f"{theta:g}" for theta in thetas])
    ax.set_yscale("log")
    ax.set_yticks(TICKS, TICKS)
    ax.minorticks_off()
    style.reference(axes[0, 0], 90, "chance")
    for other in axes.flat[1:]:
        style.reference(other, 90, None)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    n = max(len(cell["ff"]) for cell in found.values())
    seeds = f"{n} seed{'s' if n > 1 else ''}"
    fig.suptitle(
        f"What the next layer sees, and the threshold ({config['sizes'].replace(',', ', ')} units, "
        f"{config['n_epochs']} epochs, {seeds})",
        fontsize=13,
    )
    return fig


def main():
    parser = style.Parser(__doc__)
    committed = ROOT / "results" / "ff_mnist_normalisation" / "normalisation.jsonl"
    parser.add_argument("record", nargs="?", metavar="RECORD", default=committed, help="default: the committed record")
    parser.add_argument("--out", metavar="FILE", default=ROOT / "ff_mnist" / "figures" / "normalisation.png")
    options = parser.parse_args()
    style.save(draw(*load(options.record)), options.out)
    print(f"figure: {options.out}")


if __name__ == "__main__":
    style.run(main)
