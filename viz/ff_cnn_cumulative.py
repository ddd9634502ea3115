"""The figures of ff_cnn/cumulative.py runs: what every block separates by itself, and what is left for it to learn.

    python viz/ff_cnn_cumulative.py RUN [RUN ...] [--out DIR]     RUN: run folders; DIR: figures/ in the first

separation.png    mean margin of every block alone, on test images; seeds are drawn as mean and standard deviation
free-riding.png   gradient that reaches a block against the margin that the blocks below have collected
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
        return {"none": gamma, "gated": "gated by hardness", "scaled": f"{gamma}, own loss by depth"}[
            self.config["remedy"]
        ]


def grouped(runs):
    """{name: runs that differ in the seed alone}, in the order given."""
    found = {}
    for run in runs:
        found.setdefault(run.name, []).append(run)
    return found


def separation(runs):
    fig, ax = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for (name, own), (color, form) in zip(grouped(runs).items(), LOOKS * 3, strict=False):
        values = np.array([run.final["test"]["separation"] for run in own])
        sd = values.std(axis=0, ddof=1) if len(own) > 1 else None
        acc = 100 * np.mean([run.final["test"]["acc"] for run in own])
        ax.errorbar(range(values.shape[1]), values.mean(axis=0), sd, fmt=form, color=color, capsize=3,
                    label=f"{name} ({acc:.1f} % right)")  # fmt: skip
    style.reference(ax, 0, None)
    ax.set_xlabel("block")
    ax.set_ylabel("margin of the block alone, mean over images")
    ax.set_title("How well every block tells the right label from a random wrong one")
    ax.legend()
    return fig


def free_riding(runs):
    """Median gradient, as a share of a block's that stands alone, in bins of the margin collected before."""
    fig, ax = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for (name, own), (color, form) in zip(grouped(runs).items(), LOOKS * 3, strict=False):
        before, left = (np.concatenate([run.arrays[k][1:].ravel() for run in own]) for k in ("before", "left"))
        edges = np.linspace(*np.percentile(before, [2, 98]), 16)
        bins = np.digitize(before, edges)
        some = [i for i in range(1, len(edges)) if (bins == i).sum() >= 20]
        x = [before[bins == i].mean() for i in some]
        ax.plot(x, [max(np.median(left[bins == i]), 1e-12) for i in some], form, color=color, label=name)
        if own[0].config["remedy"] == "none" and own[0].config["gamma"] and len(x) > 1:
            slope = own[0].config["beta"] * own[0].config["gamma"]
            line = np.linspace(max(0, min(x)), max(x), 2)
            ax.plot(line, np.exp(-slope * line), color=color, linewidth=1, linestyle=(0, (2, 2)))
    ax.set_yscale("log")
    ax.set_ylim(bottom=1e-9)
    ax.set_xlabel("margin that the blocks below have collected")
    ax.set_ylabel("gradient, times that of a block alone")
    ax.set_title("What is left to learn behind good blocks (thin: slope −βγ)")
    ax.legend()
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
