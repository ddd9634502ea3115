"""The figures of ff_cifar_lc/recurrent.py's runs, from their records and snapshots: nothing is trained again.

    python viz/ff_cifar_lc_recurrent.py RUN [RUN ...] [--out DIR]     RUN: folders in runs/; DIR: figures/ in the first

curves.png    error over the epochs, by goodness, by the softmax and of BP; several runs (seeds): mean and sd
steps.png     goodness of the ten candidate labels over the time steps, layer by layer, for four held-out images
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import record
from viz import style
from viz.ff_mnist import band

WAYS = {  # in the record: text, colour, marker, line
    "acc": ("FF, goodness of every label", style.FF, "o", "-"),
    "softmax_acc": ("FF, softmax of one pass", style.POS, "s", "--"),
    "bp_acc": ("BP twin", style.BP, "^", ":"),
}


class Run:
    """What a run left behind: settings, epoch lines, last snapshot."""

    def __init__(self, path):
        path = Path(path)
        lines = record.read(path)
        if "ff_cifar_lc/recurrent.py" not in lines[0].get("command", ""):
            raise record.RecordError(f"{path} is not a run of ff_cifar_lc/recurrent.py")
        self.folder = path if path.is_dir() else path.parent
        self.config, self.dataset = lines[0]["config"], lines[0]["dataset"]
        self.lines = [line for line in lines if "epoch" in line]
        files = sorted(self.folder.glob("snapshots/epoch-*.npz"))
        self.snapshot, meta = record.load_arrays(files[-1]) if files else ({}, {})
        self.epoch = meta.get("epoch")


def curves(found):
    """Errors on held-out and on training images."""
    n = min(len(run.lines) for run in found)
    parts = {"val": "Held-out images", "train": "Training images"}
    parts = {part: text for part, text in parts.items() if part in found[0].lines[0]}
    fig, axes = plt.subplots(1, len(parts), figsize=(9.6, 4.2), layout="constrained", sharey=True, squeeze=False)
    for ax, (part, title) in zip(axes[0], parts.items(), strict=True):
        for key, (text, color, marker, line) in WAYS.items():
            if key in found[0].lines[0][part]:
                errors = [[100 * (1 - line[part][key]) for line in run.lines[:n]] for run in found]
                band(ax, np.array(errors), color, marker, text, line)
        ax.set_title(title)
        style.epoch_axis(ax, n)
        style.reference(ax, 100 * (1 - 1 / len(found[0].dataset["class_names"])), "chance")
    axes[0, 0].set_ylabel(f"error (%) on {found[0].config['eval_subset']} images")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    cfg = found[0].config
    fig.suptitle(f"Top-down Forward-Forward, {cfg['n_layers']} layers, {cfg['objective']} form", fontsize=13)
    return fig


def steps(run):
    """Goodness under each label over the time steps: images down, layers across."""
    g, labels = run.snapshot["goodness"], run.snapshot["labels"].astype(int)  # (steps, n_layers, N, K)
    first, last = run.config["first"], run.config["last"]
    total = g[first - 1 : last].sum(axis=(0, 1))  # (N, K)
    said = total.argmax(axis=1) if run.config["objective"] == "max" else total.argmin(axis=1)
    right, wrong = np.flatnonzero(said == labels), np.flatnonzero(said != labels)
    some = [*right[: 4 - min(2, len(wrong))], *wrong[:2]][:4]
    L, names = g.shape[1], run.dataset["class_names"]
    fig, axes = plt.subplots(
        len(some), L + 1, figsize=(9.6, 2.1 * len(some) + 0.8), layout="constrained", squeeze=False
    )
    x = np.arange(1, len(g) + 1)
    for line, n in zip(axes, some, strict=True):
        line[0].imshow(run.snapshot["images"][n].squeeze(), cmap="gray")
        style.bare(line[0])
        verdict = "right" if said[n] == labels[n] else f"wrong:\n{names[said[n]]}"
        line[0].set_title(f"{names[labels[n]]}, told {verdict}", fontsize=10)
        for i, ax in enumerate(line[1:]):
            for k in range(g.shape[3]):
                if k != labels[n]:
                    text = "wrong labels" if k == (labels[n] == 0) else None
                    ax.plot(x, g[:, i, n, k], color=style.NEG, linewidth=1.2, label=text)
            ax.plot(x, g[:, i, n, labels[n]], color=style.POS, linewidth=2.8, label="true label")
            ax.axvspan(first - 0.5, last + 0.5, color="#EEEEEE", zorder=0, label="steps that vote")
            if n == some[0]:
                ax.set_title(f"layer {i}")
            if n == some[-1]:
                ax.set_xlabel("time step")
        line[1].set_ylabel("goodness")
    fig.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    form = {"min": "the right label is to have the least", "max": "the right label is to have the most"}
    fig.suptitle(f"Goodness after epoch {run.epoch}: {form[run.config['objective']]}", fontsize=13)
    return fig


def main():
    parser = style.Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or records")
    parser.add_argument("--out", metavar="DIR", help="where the pictures go (default: figures/ in the first run)")
    options = parser.parse_args()
    found = [Run(path) for path in options.runs]
    if any(run.config | {"seed": 0} != found[0].config | {"seed": 0} for run in found):
        raise record.RecordError("runs that are drawn together differ in nothing but the seed")
    if not min(len(run.lines) for run in found):
        raise record.RecordError(f"{found[0].folder} holds nothing to draw yet: no finished epoch")
    out = style.folder(options.out or found[0].folder / "figures")
    style.save(curves(found), out / "curves.png")
    if found[0].snapshot:
        style.save(steps(found[0]), out / "steps.png")


if __name__ == "__main__":
    style.run(main)
