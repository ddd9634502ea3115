"""The figures of ff_cnn/cumulative.py runs: what every block separates by itself, and what is left for it to learn.

    python viz/ff_cnn_cumulative.py RUN [RUN ...] [--out DIR]     RUN: run folders; DIR: figures/ in the first

separation.png    mean margin of every block alone, on test images; seeds are drawn as mean and standard deviation
free-riding.png   gradient of a block's own loss against the margin that the blocks below have collected, measured; and
                  what of it that margin alone leaves
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import record
from viz import style

LOOKS = [
    (style.BP, "^-."),
    (style.FF, "o-"),
    (style.POS, "s--"),
    (style.NEG, "v:"),
    ("#000000", "D-"),
    ("#E69F00", "P--"),
]


class Run:
    """A run's settings, last line and the arrays behind the second figure."""

    def __init__(self, path):
        lines = record.read(path)
        self.folder, self.config = Path(path), lines[0].get("config", {})
        self.dataset = lines[0].get("dataset", {}).get("name")
        if "remedy" not in self.config:
            raise record.RecordError(f"{path} is no run of ff_cnn/cumulative.py")
        self.final = lines[-1].get("final")
        if not self.final:
            raise record.RecordError(f"{path} is not finished: there is nothing to draw yet")
        file = self.folder / "snapshots" / "free-riding.npz"
        self.arrays = record.load_arrays(file)[0] if file.exists() else None

    @property
    def name(self):
        gamma = f"γ = {self.config['gamma']:g}"
        more = {"none": "", "gated": ", gated by hardness", "scaled": ", own loss by depth"}
        return gamma + more[self.config["remedy"]]


def grouped(runs):
    """{name: runs that differ in the seed alone}, in the order given; a name says what a group does not share."""
    settings = [run.config | {"data set": run.dataset, "seed": 0} for run in runs]
    apart = [k for k in settings[0] if k not in ("gamma", "remedy") and any(s[k] != settings[0][k] for s in settings)]
    found = {}
    for run, own in zip(runs, settings, strict=True):
        name = ", ".join([run.name, *(f"{k.replace('_', ' ')} {own[k]}" for k in apart)])
        found.setdefault(name, []).append(run)
    return found


def separation(runs):
    fig, ax = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for (name, own), (color, form) in zip(grouped(runs).items(), LOOKS * 3, strict=False):
        values = np.array([run.final["test"]["separation"] for run in own])
        sd = values.std(axis=0, ddof=1) if len(own) > 1 else None
        acc = 100 * np.mean([run.final["test"]["sum_acc"] for run in own])
        ax.errorbar(range(values.shape[1]), values.mean(axis=0), sd, fmt=form, color=color, capsize=3,
                    label=f"{name} ({acc:.1f} % right)")  # fmt: skip
    style.reference(ax, 0, None)
    ax.set_xlabel("block")
    ax.set_ylabel("margin of the block alone, mean over images")
    ax.set_title("How well every block tells the right label from a random wrong one")
    ax.legend()
    return fig


def free_riding(runs):
    """Medians over the blocks above the first, in bins of the margin collected before. Left: the norm of the gradient.
    Right: |dL/dm| as a share of what it would be if nothing had been collected, beside the theorem's slope."""
    fig, axes = plt.subplots(1, 2, figsize=(9.6, 4.9), layout="constrained")
    for (name, own), (color, form) in zip(grouped(runs).items(), LOOKS * 3, strict=False):
        before = np.concatenate([run.arrays["before"][1:].ravel() for run in own])
        edges = np.linspace(*np.percentile(before, [2, 98]), 16)
        bins = np.digitize(before, edges)
        some = [i for i in range(1, len(edges)) if (bins == i).sum() >= 20]
        x = [before[bins == i].mean() for i in some]
        for ax, key in zip(axes, ("norm", "left"), strict=True):
            values = np.concatenate([run.arrays[key][1:].ravel() for run in own])
            ax.plot(x, [np.median(values[bins == i]) for i in some], form, color=color, label=name)
        if own[0].config["remedy"] == "none" and own[0].config["gamma"] and len(x) > 1:
            slope = own[0].config["beta"] * own[0].config["gamma"]
            line = np.linspace(max(0, min(x)), max(x), 2)
            axes[1].plot(line, np.exp(-slope * line), color=color, linewidth=1, linestyle=(0, (2, 2)))
    for ax, text in zip(axes, ("norm of dL/da, one image's loss", "|dL/dm|, times that without M"), strict=True):
        ax.set_yscale("log")
        ax.set_xlabel("margin M that the blocks below have collected")
        ax.set_ylabel(text)
    axes[0].set_title("Measured: the gradient that is left")
    axes[1].set_title("What M alone leaves (thin: slope −βγ)")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def main():
    parser = style.Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", metavar="DIR", help="where the pictures go (default: figures/ in the first run)")
    options = parser.parse_args()
    runs = [Run(path) for path in options.runs]
    pictures = {"separation": separation}
    if all(run.arrays for run in runs):
        pictures["free-riding"] = free_riding
    out = style.folder(options.out or runs[0].folder / "figures")
    for name, draw in pictures.items():
        style.save(draw(runs), out / f"{name}.png")
    print(f"figures: {', '.join(str(out / f'{name}.png') for name in pictures)}")


if __name__ == "__main__":
    style.run(main)
