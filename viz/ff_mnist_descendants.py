"""The figures of amsga.py, hff.py and dtg_mlp.py runs, from their records and snapshots: nothing is trained again.

    python viz/ff_mnist_descendants.py RUN [RUN ...] [--out DIR]     RUN: folders in runs/; DIR: figures/ in the first

curves.png        error and losses over the epochs; several runs (seeds) are drawn as mean and standard deviation
stages.png        which wrong labels a step learns from, early, in the middle and late in training (amsga.py)
thresholds.png    the threshold of every layer over the epochs (amsga.py)
cosines.png       cosines of images to the prototypes of their own and of other classes (hff.py)
prototypes.png    cosines between the prototypes of each layer (hff.py)
temperatures.png  temperature and margin of each layer over the epochs (dtg_mlp.py)
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import record
from viz import style
from viz.ff_mnist import Run, curves


def per_layer(ax, found, key, text):
    """A quantity of each layer over the epochs of the first run."""
    values = np.array([line[key] for line in found[0].lines])  # (epochs, layers)
    for i in range(values.shape[1]):
        ax.plot(np.arange(1, len(values) + 1), values[:, i], label=f"layer {i}", **style.layer(i))
    ax.set_ylabel(text)
    style.epoch_axis(ax, len(values))


def thresholds(found):
    """theta(l, p) and the goodness that it has to part."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    per_layer(left, found, "theta", "threshold θ(l, p)")
    left.set_title("It grows with depth and progress" if found[0].config["adapt"] else "It stays as it is")
    gap = np.array([np.subtract(line["g_pos"], line["g_neg"]) for line in found[0].lines])
    for i in range(gap.shape[1]):
        right.plot(np.arange(1, len(gap) + 1), gap[:, i], label=f"layer {i}", **style.layer(i))
    style.reference(right, 0, None)
    right.set_ylabel("mean g⁺ − mean g⁻")
    right.set_title("What it parts: goodness of right and wrong labels")
    style.epoch_axis(right, len(gap))
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def stages(run):
    """Goodness of wrong labels in an early, a middle and a late snapshot; what is mined stands out."""
    files = sorted(run.folder.glob("snapshots/epoch-*.npz"))
    E = run.config["n_epochs"]
    found = [(meta["epoch"] / E, meta["epoch"], arrays) for arrays, meta in map(record.load_arrays, files)]
    some = [min(found, key=lambda one: abs(one[0] - p)) for p in (0.2, 0.5, 1.0)]
    fig, axes = plt.subplots(1, 3, figsize=(9.6, 4.0), layout="constrained")
    for ax, (_, epoch, arrays) in zip(axes, some, strict=True):
        g, theta, band = arrays["wrong_goodness"], run.config["theta"], float(arrays["band"])
        bins = np.linspace(*np.percentile(np.append(g, [theta - band, theta + band]), [0, 99.5]), 36)
        mined = np.histogram(g[arrays["mined"]].clip(bins[0], bins[-1]), bins)[0]
        every = np.histogram(g.clip(bins[0], bins[-1]), bins)[0]
        ax.stairs(every, bins, fill=True, color="#D9D9D9", label="drawn, not learnt from")
        ax.stairs(mined, bins, fill=True, color=style.NEG, label="learnt from")
        ax.axvspan(theta - band, theta + band, color=style.FF, alpha=0.12, label="band around θ₀")
        ax.axvline(theta, color=style.CHANCE, linewidth=1.2, linestyle=(0, (2, 2)), label="θ₀")
        share = len(arrays["mined"]) / len(g)
        ax.set_title(f"epoch {epoch} of {E}: {100 * share:.0f} % of them")
        ax.set_xlabel("goodness of a wrong label")
    axes[0].set_ylabel(f"of {len(g)} training images")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    fig.suptitle("Which wrong labels a step learns from", fontsize=13)
    return fig


def cosines(run):
    """Histograms of cosines to the own class's prototype and to the others', layer by layer."""
    scores, labels = run.snapshot["scores"], run.snapshot["labels"].astype(int)  # (n_layers, N, K)
    own = np.eye(scores.shape[2], dtype=bool)[labels]
    fig, axes = plt.subplots(1, len(scores), figsize=(9.6, 3.8), layout="constrained", sharey=True, squeeze=False)
    for i, ax in enumerate(axes[0]):
        values = scores[i] / run.config["scale"]
        bins = np.linspace(values.min(), values.max(), 41)
        for mask, color, text in ((own, style.POS, "own class"), (~own, style.NEG, "other classes")):
            share = 100 * np.histogram(values[mask], bins)[0] / mask.sum()
            ax.stairs(share, bins, fill=True, color=color, alpha=0.3)
            ax.stairs(share, bins, color=color, linewidth=2, label=text)
        right = 100 * (scores[i].argmax(axis=1) == labels).mean()
        ax.set_title(f"layer {i}: {right:.1f} % right alone")
        ax.set_xlabel("cosine" if run.config["per_class"] == 1 else "score / scale")
    axes[0, 0].set_ylabel("share (%)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    part = "held-out" if run.config["validation"] else "training"
    fig.suptitle(f"Angles to the prototypes, {len(labels)} {part} images of {run.dataset['name']}", fontsize=13)
    return fig


def prototypes(run):
    """Cosines between all prototypes of a layer, as a matrix for each layer."""
    found = [run.snapshot[key] for key in sorted(run.snapshot) if key.startswith("prototypes-")]
    fig, axes = plt.subplots(1, len(found), figsize=(9.6, 4.0), layout="constrained", squeeze=False)
    names = run.dataset.get("class_names") or range(len(found[0]))
    for i, (ax, P) in enumerate(zip(axes[0], found, strict=True)):
        P = P[:, 0]  # the first of each class
        shown = ax.imshow(P @ P.T, cmap="RdBu_r", vmin=-1, vmax=1)
        ax.set_title(f"layer {i}")
        ax.grid(False)
        ticks = range(len(P)) if len(P) <= 20 else []
        ax.set_xticks(ticks, [str(names[k]) for k in ticks], rotation=90, fontsize=9)
        ax.set_yticks(ticks, [str(names[k]) for k in ticks] if i == 0 else ["" for _ in ticks], fontsize=9)
    fig.colorbar(shown, ax=axes, label="cosine", shrink=0.7)
    fig.suptitle(f"How alike the prototypes of two classes are, after epoch {run.epoch}", fontsize=13)
    return fig


def temperatures(found):
    """T and theta of each layer, and the goodness that they divide and part."""
    fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.9), layout="constrained")
    per_layer(axes[0], found, "temperature", "temperature T")
    axes[0].set_ylim(0, 2.05)
    per_layer(axes[1], found, "theta", "margin θ")
    gap = np.array([np.subtract(line["g_pos"], line["g_neg"]) for line in found[0].lines])
    scale = np.array([line["temperature"] for line in found[0].lines])
    for i in range(gap.shape[1]):
        axes[2].plot(np.arange(1, len(gap) + 1), (gap / scale)[:, i], label=f"layer {i}", **style.layer(i))
    axes[2].set_ylabel("(g⁺ − g⁻) / T")
    style.epoch_axis(axes[2], len(gap))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    fig.suptitle("What the layers learn about their own goodness", fontsize=13)
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
    if first.script not in ("amsga", "hff", "dtg_mlp"):
        raise record.RecordError(f"{first.folder} is a run of {first.script}.py: python viz/ff_mnist.py draws it")
    pictures = {}
    if min(len(run.lines) for run in found) and all(
        run.config | {"seed": 0} == first.config | {"seed": 0} for run in found
    ):
        pictures["curves"] = lambda: curves(found)
    if first.script == "amsga" and first.lines:
        pictures["thresholds"] = lambda: thresholds(found)
    if first.script == "amsga" and first.config["mining"] and "mined" in first.snapshot:
        pictures["stages"] = lambda: stages(first)
    if first.script == "hff" and first.snapshot:
        pictures["cosines"], pictures["prototypes"] = lambda: cosines(first), lambda: prototypes(first)
    if first.script == "dtg_mlp" and first.config["dynamic"] and first.lines:
        pictures["temperatures"] = lambda: temperatures(found)
    if not pictures:
        raise record.RecordError(f"{first.folder} holds nothing to draw yet: no finished epoch, no snapshots")
    out = style.folder(options.out or first.folder / "figures")
    for name, draw in pictures.items():
        style.save(draw(), out / f"{name}.png")
    print(f"figures: {', '.join(str(out / f'{name}.png') for name in pictures)}")


if __name__ == "__main__":
    style.run(main)
