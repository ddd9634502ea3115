"""The figures of ff_cnn runs, from their records and snapshots: nothing is trained again.

    python viz/ff_cnn.py RUN [RUN ...] [--out DIR]     RUN: folders in runs/, or records; DIR: figures/ in the first

curves.png        accuracy over the epochs, of the ways to answer
layers.png        accuracy of every block alone; several runs that differ in more than the seed are compared
temperatures.png  the temperature of every block over the epochs
disagreement.png  how often two blocks answer differently
filters.png       the first block's filters, where they see colours
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import record
from viz import style

ANSWERS = {  # name in the record -> text, colour, line
    "head_acc": ("the head", style.FF, "-"),
    "sum_acc": ("sum of the blocks' scores", style.POS, "--"),
    "upper_acc": ("sum over the upper half", style.NEG, "-."),
}
RULES = {  # rule, credit -> text, colour, marker and line
    ("dtg", "local"): ("DTG-FF", style.FF, "o-"),
    ("linear", "local"): ("linear heads, local", style.POS, "s--"),
    ("linear", "deepsup"): ("linear heads, BP through all blocks", style.BP, "^-."),
    ("dtg", "deepsup"): ("DTG-FF's heads, BP through all blocks", style.NEG, "v:"),
    ("dtg", "bp"): ("backpropagation, one head", style.LAYERS[1][0], "D:"),
}


class Run:
    """A run's record, and the snapshot of its last epoch if there is one."""

    def __init__(self, path):
        lines = record.read(path)
        self.folder = Path(path) if Path(path).is_dir() else Path(path).parent
        self.config, self.dataset = lines[0].get("config", {}), lines[0].get("dataset", {})
        if "backbone" not in self.config or "credit" not in self.config:
            raise record.RecordError(f"{path} is no run of ff_cnn/train.py")
        self.epochs = [line for line in lines if "epoch" in line]
        self.final = lines[-1].get("final")
        files = sorted(self.folder.glob("snapshots/epoch-*.npz")) if Path(path).is_dir() else []
        self.snapshot = record.load_arrays(files[-1])[0] if files else {}

    @property
    def kind(self):
        """Everything but the seed, to tell which runs belong together."""
        return json.dumps({k: v for k, v in self.config.items() if k != "seed"}, sort_keys=True)

    def scores(self):
        """Accuracies at the end: on the test set if the run is finished, else on the last epoch's images."""
        if self.final:
            return self.final["test"], "test"
        return (
            (self.epochs[-1]["val"], "validation") if "val" in self.epochs[-1] else (self.epochs[-1]["train"], "train")
        )

    @property
    def name(self):
        text = RULES.get((self.config["rule"], self.config["credit"]), (None,))[0]
        return text or f"{self.config['rule']}, {self.config['credit']}"


def grouped(runs):
    """Runs that differ in the seed alone, together."""
    found = {}
    for run in runs:
        found.setdefault(run.kind, []).append(run)
    return list(found.values())


def told_apart(kinds):
    """A name for each kind of run: its method, and what else it does not share with others of that method."""
    names, first = [own[0].name for own in kinds], [own[0].config for own in kinds]
    found = []
    for name, config in zip(names, first, strict=True):
        rivals = [other for other_name, other in zip(names, first, strict=True) if other_name == name]
        apart = [k for k in config if any(other.get(k) != config[k] for other in rivals) and k != "seed"]
        found.append(", ".join([name, *(f"{k.replace('_', ' ')} {config[k]}" for k in apart)]))
    return found


def band(ax, x, values, color, line, text):
    """Mean over seeds (n, len(x)) and, if there are several, its standard deviation."""
    mean = values.mean(axis=0)
    ax.plot(x, mean, line, color=color, label=text)
    if len(values) > 1:
        sd = values.std(axis=0, ddof=1)
        ax.fill_between(x, mean - sd, mean + sd, color=color, alpha=0.2, linewidth=0)


def curves(runs):
    """Accuracy over the epochs of the first kind of run."""
    runs = grouped(runs)[0]
    part = "val" if "val" in runs[0].epochs[0] else "train"
    n = min(len(run.epochs) for run in runs)
    fig, ax = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for key, (text, color, line) in ANSWERS.items():
        if key in runs[0].epochs[0][part]:
            values = np.array([[100 * epoch[part][key] for epoch in run.epochs[:n]] for run in runs])
            band(ax, np.arange(1, n + 1), values, color, line, text)
    ax.set_ylabel(f"{'validation' if part == 'val' else 'training'} accuracy (%)")
    ax.set_title(f"{runs[0].name}, {runs[0].config['backbone']} × {runs[0].config['width']:g}")
    style.epoch_axis(ax, n)
    ax.legend(loc="lower right")
    return fig


def layers(runs):
    """Accuracy of every block alone; the sum and the head as marks at the right."""
    fig, ax = plt.subplots(figsize=(8.4, 4.8), layout="constrained")
    kinds, taken = grouped(runs), []
    spare = iter([(color, marker + line) for (color, line), marker in zip(style.LAYERS, "P*Xh", strict=True)] * 9)
    most = max(len(own[0].scores()[0].get("layer_acc", ())) for own in kinds)
    for own, text in zip(kinds, told_apart(kinds), strict=True):
        scores, key = [run.scores()[0] for run in own], (own[0].config["rule"], own[0].config["credit"])
        color, form = RULES[key][1:] if key in RULES and key not in taken else next(spare)
        taken.append(key)
        if "layer_acc" in scores[0]:
            found = 100 * np.array([score["layer_acc"] for score in scores])
            band(ax, np.arange(found.shape[1]), found, color, form, text)
        else:
            ax.plot([], [], form, color=color, label=text)  # its blocks give no answer: a mark at the right
        for x, answer in ((most + 0.1, "sum_acc"), (most + 0.9, "head_acc")):
            values = [100 * score[answer] for score in scores if answer in score]
            ax.plot([x] * len(values), values, form[0], color=color, fillstyle="none")
    ax.set_xticks([*range(most), most + 0.1, most + 0.9], [*map(str, range(most)), "sum", "head"])
    ax.set_xlabel("block that answers alone")
    ax.set_ylabel(f"{runs[0].scores()[1]} accuracy (%)")
    networks = dict.fromkeys(f"{run.config['backbone']} × {run.config['width']:g}" for run in runs)
    ax.set_title(f"What every block knows, {', '.join(networks)}")
    ax.legend(loc="lower right")
    return fig


def temperatures(runs):
    """T of each block over the epochs of the first run."""
    T = np.array([epoch["T"] for epoch in runs[0].epochs])
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, T.shape[1]))
    fig, ax = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for i in range(T.shape[1]):
        ax.plot(np.arange(1, len(T) + 1), T[:, i], "o^sDvP*XhdH<>"[i % 13] + "-", color=colors[i], label=f"block {i}")
    for bound in (0.5, 2):
        style.reference(ax, bound, None)
    ax.set_ylim(0.45, 2.05)
    ax.set_ylabel("temperature T")
    ax.set_title("Learned temperatures, between their bounds")
    style.epoch_axis(ax, len(T))
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def disagreement(runs):
    """A matrix of the shares of images on which two blocks answer differently."""
    scores, part = runs[0].scores()
    found = 100 * np.array(scores["disagreement"])
    fig, ax = plt.subplots(figsize=(6, 5), layout="constrained")
    shown = ax.imshow(found, cmap="viridis", vmin=0)
    for i, j in np.ndindex(found.shape):
        bright = found[i, j] > 0.6 * found.max()
        ax.text(j, i, f"{found[i, j]:.0f}", ha="center", va="center", color="black" if bright else "white", fontsize=10)
    off = found[~np.eye(len(found), dtype=bool)].mean()
    ax.set_xticks(range(len(found)))
    ax.set_yticks(range(len(found)))
    ax.grid(False)
    ax.set_xlabel("block")
    ax.set_ylabel("block")
    ax.set_title(f"Different answers, {off:.1f} % on average ({part} images)")
    fig.colorbar(shown, ax=ax, label="images with different answers (%)", shrink=0.85)
    return fig


def filters(runs):
    """The first block's filters as little images, each on its own scale."""
    W = runs[0].snapshot["filters"]  # (k, k, 3, O)
    n = min(64, W.shape[3])
    columns = 16
    fig, axes = plt.subplots(
        -(-n // columns), columns, figsize=(9.6, 0.62 * -(-n // columns) + 0.5), layout="constrained"
    )
    for i, ax in enumerate(axes.flat):
        style.bare(ax)
        if i < n:
            tile = W[..., i]
            ax.imshow(0.5 + 0.5 * tile / abs(tile).max())
    fig.suptitle(f"Filters of block 0: {W.shape[0]} × {W.shape[1]} pixels, grey is 0", fontsize=13)
    return fig


def main():
    parser = style.Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or records")
    parser.add_argument("--out", metavar="DIR", help="where the pictures go (default: figures/ in the first run)")
    options = parser.parse_args()
    runs = [Run(path) for path in options.runs]
    first = runs[0]
    if not all(run.epochs for run in runs):
        raise record.RecordError("a run without a finished epoch holds nothing to draw yet")
    pictures = {"curves": curves}
    if any("layer_acc" in run.scores()[0] for run in runs):
        pictures["layers"] = layers
    if first.config["rule"] == "dtg" and first.config["temperature"] and "T" in first.epochs[0]:
        pictures["temperatures"] = temperatures
    if "disagreement" in first.scores()[0]:
        pictures["disagreement"] = disagreement
    if "filters" in first.snapshot and first.snapshot["filters"].ndim == 4 and first.snapshot["filters"].shape[2] == 3:
        pictures["filters"] = filters
    out = style.folder(options.out or first.folder / "figures")
    for name, draw in pictures.items():
        style.save(draw(runs), out / f"{name}.png")
    print(f"figures: {', '.join(str(out / f'{name}.png') for name in pictures)}")


if __name__ == "__main__":
    style.run(main)
