"""The figures of ff_mnist runs, from their records and snapshots alone: nothing is trained again.

    python viz/ff_mnist.py RUN [RUN ...] [--out DIR]      RUN: folders under runs/ff_mnist*; DIR: figures/ in the first

curves.png      error and losses over the epochs; several runs (seeds) are drawn as mean and sample standard deviation
goodness.png    goodness of true and wrong labels, layer by layer (train.py)
unsettled.png   how many rows still have something to learn, and what an epoch takes (train.py)
filters.png     weights of 64 units of the first layer (train.py, unsupervised.py)
hybrids.png     images, masks and the hybrids that are made of them (unsupervised.py)
steps.png       goodness of every candidate label over the time steps (recurrent.py)
positions.png   how often each character is predicted; runs with different negatives beside each other (sequence.py)
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import record
from common.evaluate import mean_sd
from viz import style

LOOKS = {"acc": (style.FF, "o"), "softmax_acc": (style.NEG, "s")}
TWO_WAYS = {"acc": ", by goodness", "softmax_acc": ", by the softmax"}  # train.py
KINDS = {"teacher": "guesses as last characters", "self": "strings it generated", "none": "random hidden layers"}
KINDS |= {"window": "no hidden layers"}


class Run:
    """What a run left behind: settings, epoch lines, last line (None: it was interrupted), last snapshot."""

    def __init__(self, path):
        path = Path(path)
        lines = record.read(path)
        self.script = lines[0].get("command", "").split(" ")[1:2] or [""]
        self.script = Path(self.script[0]).stem
        if "ff_mnist" not in lines[0].get("command", ""):
            raise record.RecordError(f"{path} is not a run of ff_mnist/")
        self.folder = path if path.is_dir() else path.parent
        self.config, self.dataset = lines[0]["config"], lines[0]["dataset"]
        self.lines = [line for line in lines if "epoch" in line]
        self.final = lines[-1].get("final")
        files = sorted(self.folder.glob("snapshots/epoch-*.npz"))
        self.snapshot, meta = record.load_arrays(files[-1]) if files else ({}, {})
        self.epoch = meta.get("epoch")


def band(ax, values, color, marker, text, line="-"):
    """Values (runs, epochs) as their mean and a band of one sample standard deviation."""
    epochs = np.arange(1, values.shape[1] + 1)
    mean = values.mean(axis=0)
    ax.plot(epochs, mean, color=color, linestyle=line, label=text, marker=marker, markevery=max(1, len(epochs) // 8))
    if len(values) > 1:
        sd = values.std(axis=0, ddof=1)
        ax.fill_between(epochs, np.maximum(mean - sd, 1e-3), mean + sd, color=color, alpha=0.2, linewidth=0)


def curves(found):
    """Error over the epochs, held-out and training images, and the loss of each layer."""
    n = min(len(run.lines) for run in found)
    split = "val" if "val" in found[0].lines[0] else "train"
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.4), layout="constrained")
    for key, (color, marker) in LOOKS.items():
        if key in found[0].lines[0][split]:
            for part, line in ((split, "-"), ("train", ":"))[: 2 if split == "val" else 1]:
                error = [[100 * (1 - line[part][key]) for line in run.lines[:n]] for run in found]
                text = "validation" if part == "val" else "training"
                text += TWO_WAYS[key] if "softmax_acc" in found[0].lines[0][split] else ""
                band(left, np.maximum(error, 0.05), color, marker if line == "-" else None, text, line)
    left.set_yscale("log")
    left.set_yticks([0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50], [0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50])
    left.minorticks_off()
    low, high = left.get_ylim()
    left.set_ylim(max(low, 0.04), min(high, 100))
    left.set_ylabel(
        f"error (%) on {found[0].config['eval_subset']} images" if "eval_subset" in found[0].config else "error (%)"
    )
    left.set_title("Error")
    loss = np.array(
        [[np.atleast_1d(line["loss"]) for line in run.lines[:n]] for run in found]
    )  # (runs, epochs, layers)
    for i in range(loss.shape[2]):
        look = style.layer(i)
        band(
            right, loss[:, :, i], look["color"], None, f"layer {i}" if loss.shape[2] > 1 else "loss", look["linestyle"]
        )
    right.set_ylabel("loss")
    right.set_yscale("log")
    right.set_title("Loss of each layer" if loss.shape[2] > 1 else "Loss")
    for ax in (left, right):
        style.epoch_axis(ax, n)
        style.legend_below(ax, 2)
    seeds = f"{len(found)} seeds: mean and standard deviation" if len(found) > 1 else f"seed {found[0].config['seed']}"
    local = " --local" if found[0].config.get("local") else ""
    fig.suptitle(f"ff_mnist/{found[0].script}.py{local} on {found[0].dataset['name']} ({seeds})", fontsize=13)
    return fig


def unsettled(found):
    """Share of rows whose loss still has a gradient, layer by layer, and the seconds of an epoch."""
    n = min(len(run.lines) for run in found)
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.4), layout="constrained", width_ratios=(3, 2))
    share = 100 * np.array([[line["unsettled"] for line in run.lines[:n]] for run in found])  # (runs, epochs, layers)
    for i in range(share.shape[2]):
        look = style.layer(i)
        band(left, share[:, :, i], look["color"], None, f"layer {i}", look["linestyle"])
    left.set_yscale("log")
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    left.set_yticks(ticks, ticks)
    left.minorticks_off()
    left.set_ylim(max(0.1, 0.8 * share.min()), 110)
    left.set_ylabel("rows with a gradient (%)")
    left.set_title("Rows that still have something to learn")
    seconds = np.array([[line["seconds"] for line in run.lines[:n]] for run in found])
    band(right, seconds, style.FF, None, "training, without evaluation")
    right.set_ylim(0, None)
    right.set_ylabel("seconds")
    right.set_title("What an epoch takes")
    for ax in (left, right):
        style.epoch_axis(ax, n)
        style.legend_below(ax, 4 if ax is left else 1)
    fig.suptitle("A row on its side of the threshold is settled: it costs no gradient", fontsize=13)
    return fig


def threshold(run, i):
    """theta of layer i."""
    return run.config["theta"] * (int(run.config["sizes"].split(",")[i]) if run.config["goodness"] == "sum" else 1)


def histogram(ax, values, labels, ends):
    """Goodness over theta of every label (N, K): the true ones and the wrong ones, as shares of each."""
    right = np.eye(values.shape[1], dtype=bool)[labels]
    bins = np.linspace(*ends, 41)
    for mask, color, text in ((right, style.POS, "true label"), (~right, style.NEG, "wrong labels")):
        share = 100 * np.histogram(values[mask].clip(*ends), bins)[0] / mask.sum()
        ax.stairs(share, bins, fill=True, color=color, alpha=0.3)
        ax.stairs(share, bins, color=color, linewidth=2, label=text)
    ax.axvline(1, color=style.CHANCE, linewidth=1.2, linestyle=(0, (2, 2)), label="θ")


def goodness(run):
    """Histograms of the goodness of true and wrong labels, in units of the threshold."""
    g, labels = run.snapshot["goodness"], run.snapshot["labels"].astype(int)  # (n_layers, N, K)
    fig, axes = plt.subplots(1, len(g), figsize=(9.6, 3.8), layout="constrained", sharey=True, squeeze=False)
    for i, ax in enumerate(axes[0]):
        values = g[i] / threshold(run, i)
        histogram(ax, values, labels, np.percentile(values, [0.1, 99.99]))
        ax.set_title(f"layer {i}{' (no vote)' if i == 0 and len(g) > 1 else ''}")
        ax.set_xlabel("goodness / θ")
    axes[0, 0].set_ylabel("share (%)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    fig.suptitle(f"Goodness of {len(labels)} images under each of ten labels, after epoch {run.epoch}", fontsize=13)
    return fig


def filters(run):
    """Weights of 64 first-layer units as images; mid-grey is 0."""
    W = run.snapshot["filters"]  # (inputs, 64), or (rf, rf, 64)
    side = W.shape[0] if W.ndim == 3 else int(np.sqrt(len(W)))
    W = W.reshape(side, side, -1)
    fig, axes = plt.subplots(4, 16, figsize=(9.6, 3.1), layout="constrained")
    for ax, image in zip(axes.flat, np.moveaxis(W, 2, 0), strict=False):
        ax.imshow(image, cmap="gray", vmin=-np.abs(image).max(), vmax=np.abs(image).max())
        style.bare(ax)
    label = "" if run.script != "train" else "; the label is the first ten pixels of the top row"
    what = f"fields of {side} × {side} pixels near the middle" if W.shape[0] < 28 else f"{side} × {side} inputs"
    fig.suptitle(f"Weights of 64 units of the first layer, after epoch {run.epoch}", fontsize=13)
    fig.supxlabel(f"{what}{label}. Mid-grey: 0; each tile has its own scale.", fontsize=10.5)
    return fig


def hybrids(run):
    """Images, masks, and the negatives that are made of them."""
    rows = ("images", "masks", "hybrids")
    fig, axes = plt.subplots(len(rows), 8, figsize=(9.6, 4.2), layout="constrained")
    names = ("image\n(positive)", "mask", "hybrid\n(negative)")
    for line, key, name in zip(axes, rows, names, strict=True):
        for ax, picture in zip(line, run.snapshot[key].astype(float), strict=False):
            ax.imshow(picture.reshape(picture.shape[:2]), cmap="gray")
            style.bare(ax)
        line[0].set_ylabel(name, fontsize=11)
    fig.suptitle("Negatives without labels: this image where the mask is white, another one elsewhere", fontsize=13)
    n = run.config["blurs"]
    fig.supxlabel(
        f"A mask: random bits, blurred {n} time{'s' * (n != 1)} with [¼, ½, ¼] along rows and columns, cut at ½.",
        fontsize=10.5,
    )
    return fig


def steps(run):
    """Goodness of each candidate label over the time steps, for six held-out images."""
    g, labels = run.snapshot["goodness"], run.snapshot["labels"].astype(int)  # (steps, n_layers, N, K)
    total = sum(int(n) for n in run.config["sizes"].split(",")) * run.config["theta"]
    g = g.sum(axis=1) / total  # (steps, N, K)
    votes = g[run.config["first"] - 1 : run.config["last"]].sum(axis=0)
    wrong = np.flatnonzero(votes.argmax(axis=1) != labels)
    right = np.flatnonzero(votes.argmax(axis=1) == labels)
    some = [*right[: 6 - min(3, len(wrong))], *wrong[:3]][:6]
    fig, axes = plt.subplots(2, 3, figsize=(9.6, 5.6), layout="constrained", sharex=True)
    x = np.arange(1, len(g) + 1)
    for ax, n in zip(axes.flat, some, strict=False):
        for k in range(g.shape[2]):
            if k != labels[n]:
                ax.plot(
                    x,
                    g[:, n, k],
                    color=style.NEG,
                    linewidth=1.2,
                    label="wrong labels" if k == (labels[n] == 0) else None,
                )
        ax.plot(x, g[:, n, labels[n]], color=style.POS, linewidth=2.8, label="true label")
        ax.axvspan(
            run.config["first"] - 0.5, run.config["last"] + 0.5, color="#EEEEEE", zorder=0, label="steps that vote"
        )
        said = votes[n].argmax()
        ax.set_title(f"a {labels[n]}, told {'right' if said == labels[n] else f'wrong: {said}'}")
    for ax in axes[:, 0]:
        ax.set_ylabel("goodness / θ")
    for ax in axes[1]:
        ax.set_xlabel("time step")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    fig.suptitle(f"Goodness under each label, step by step, after epoch {run.epoch}", fontsize=13)
    return fig


def positions(found):
    """Characters predicted at each place of a string, for each kind of negatives."""
    split = "val" if "val" in found[0].final else "train"
    fig, ax = plt.subplots(figsize=(9.6, 4.6), layout="constrained")
    looks = {"teacher": style.FF, "self": style.POS, "none": style.BP, "window": style.NEG}
    smooth = np.ones(9) / 9
    for kind, text in KINDS.items():
        runs = [run for run in found if (run.config["negatives"] if run.config["readout"] else "window") == kind]
        if not runs:
            continue
        share = 100 * np.array([run.final[split]["by_position"] for run in runs])  # (runs, 90)
        mean, sd = mean_sd(share.mean(axis=1))
        spread = "" if np.isnan(sd) else f" ± {sd:.1f}"
        at = np.arange(11, 11 + share.shape[1])
        ax.plot(at, share.mean(axis=0), color=looks[kind], alpha=0.25, linewidth=1)
        line = np.convolve(share.mean(axis=0), smooth, mode="valid")
        ax.plot(at[4:-4], line, color=looks[kind], label=f"{text}: {mean:.1f}{spread} %")
    guess = 100 * np.array(found[0].final[split]["unigram_by_position"])
    style.reference(ax, guess.mean(), f"always the commonest character: {guess.mean():.1f} %")
    ax.set_xlabel("position in the string (thick: mean of nine positions)")
    ax.set_ylabel("characters predicted (%)")
    ax.set_ylim(0, None)
    style.legend_below(ax, 2)
    n = found[0].dataset["train"] if split == "train" else found[0].config["validation"]
    which = "training strings" if split == "train" else "held-out strings"
    ax.set_title(f"Next character, from the ten before it ({n} {which})")
    return fig


def main():
    parser = style.Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or records")
    parser.add_argument("--out", metavar="DIR", help="where the pictures go (default: figures/ in the first run)")
    options = parser.parse_args()
    found = [Run(path) for path in options.runs]
    first = found[0]
    if any(run.script != first.script for run in found):
        raise record.RecordError("one script's runs at a time: " + ", ".join(sorted({run.script for run in found})))
    pictures = {}
    same = all(run.config | {"seed": 0} == first.config | {"seed": 0} for run in found)
    if same and min(len(run.lines) for run in found) and np.size(first.lines[0]["loss"]):
        pictures["curves"] = lambda: curves(found)
    if first.script == "train" and first.snapshot:
        pictures["goodness"] = lambda: goodness(first)
    if same and first.script == "train" and all("unsettled" in line for run in found for line in run.lines):
        pictures["unsettled"] = lambda: unsettled(found)
    if "filters" in first.snapshot:
        pictures["filters"] = lambda: filters(first)
    if "masks" in first.snapshot:
        pictures["hybrids"] = lambda: hybrids(first)
    if first.script == "recurrent" and first.snapshot:
        pictures["steps"] = lambda: steps(first)
    if first.script == "sequence" and all(run.final for run in found):
        pictures["positions"] = lambda: positions(found)
    if not pictures:
        raise record.RecordError(f"{first.folder} holds nothing to draw yet: no finished epoch, no snapshots")
    out = style.folder(options.out or first.folder / "figures")
    for name, draw in pictures.items():
        style.save(draw(), out / f"{name}.png")
    print(f"figures: {', '.join(str(out / f'{name}.png') for name in pictures)}")


if __name__ == "__main__":
    style.run(main)
