"""A ff_cifar_lc run as a film: one frame per snapshot, with filters, goodness and accuracy so far.

    python viz/ff_cifar_lc_gif.py RUN [--fps 4] [--epochs N] [--snapshot-every K] [--out FILE]

FILE is RUN/figures/training.gif unless given. Everything comes from the record and the snapshots; nothing is trained.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import record
from common.evaluate import accuracy
from viz import gif, style
from viz.ff_cifar_lc import Run, tiles


class Film:
    """The chosen snapshots, and what stays the same in all frames: the filters' scales, the histograms' axes."""

    def __init__(self, run, epochs):
        self.run, self.epochs, self.voters = run, epochs, list(run.voters())
        arrays = [record.load_arrays(run.snapshots[epoch])[0] for epoch in epochs]
        self.filters = [a["filters"][..., :8] for a in arrays]
        self.scale = np.max([np.abs(f).max(axis=(1, 2, 3)) for f in self.filters], axis=0)  # (P, O)
        goodness = [a["goodness"] for a in arrays]  # each (n_layers, n, n_classes)
        labels = arrays[0]["labels"].astype(int)
        self.acc = [100 * accuracy(g[self.voters].sum(axis=0).argmax(axis=1), labels) for g in goodness]
        right = np.eye(goodness[0].shape[2], dtype=bool)[labels]  # (n, n_classes)
        self.margins = run.config["label"] == "map"
        if self.margins:  # sharp losses need but small differences: two histograms of g would lie on each other
            m = [[run.config["beta"] * margin(g[i], right) for i in self.voters] for g in goodness]
            end = max(np.percentile(np.abs(m[-1]), 99), 1e-3)
            self.bins = np.linspace(0, end, 16), np.linspace(-end, 0, 16)  # right label ahead, a wrong one ahead
            values = [[(x[x > 0], x[x <= 0]) for x in layers] for layers in m]
        else:
            self.bins = (np.linspace(0, max(np.percentile(goodness[-1], 99.7), 1e-3), 31),) * 2  # right, wrong labels
            values = [[(g[i][right], g[i][~right]) for i in self.voters] for g in goodness]
        self.shares = [[self.share(kinds) for kinds in layers] for layers in values]
        self.top = 1.1 * np.max(self.shares[1:] or self.shares)  # before training, all values share a few high bars

    def share(self, kinds):
        """Percent of the values in each bin, for both kinds of values; the outer bins also take what lies beyond."""
        whole = [sum(map(len, kinds))] * 2 if self.margins else map(len, kinds)
        return [
            100 * np.histogram(values.clip(bins[0], bins[-1]), bins)[0] / n
            for values, bins, n in zip(kinds, self.bins, whole, strict=True)
        ]


def margin(g, right):
    """Goodness (n, K), right labels as a mask (n, K) -> goodness of the right label minus the best wrong one's (n,)."""
    return g[right] - np.where(right, -np.inf, g).max(axis=1)


def frame(film, k):
    """Frame k as a Pillow image."""
    fig = plt.figure(figsize=(9, 5.2), layout="constrained")
    left, right = fig.subfigures(1, 2, width_ratios=(1.15, 1))
    ax = left.subplots()
    tiles(ax, film.filters[k], film.scale)
    ax.set_xlabel("channel\n(places 1, 2, 5, 6: corners; 3, 4: middle)")
    ax.set_title("First-layer filters\n(mid-grey: weight 0)")
    top, bottom = right.subfigures(2, 1)
    for j, ax in enumerate(top.subplots(1, len(film.voters), sharey=True, squeeze=False)[0]):
        histogram(ax, film, k, j)
    beta = f"{film.run.config['beta']:g}"
    top.supxlabel(f"β (g right − g best wrong), β = {beta}" if film.margins else "goodness, mean of h²", fontsize=11)
    top.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3, handlelength=1.5)
    accuracy_so_far(bottom.subplots(), film, k)
    n = film.run.config["n_epochs"]
    fig.suptitle(f"Forward-Forward on {film.run.dataset}: after epoch {film.epochs[k]} of {n}", fontsize=13)
    return style.pixels(fig)


def histogram(ax, film, k, j):
    """The voting layer number j: every image's margin, or goodness of the right label and of all wrong ones."""
    texts = ("right label ahead", "a wrong one") if film.margins else ("right label", "wrong labels")
    for share, bins, color, text in zip(film.shares[k][j], film.bins, (style.POS, style.NEG), texts, strict=True):
        ax.stairs(share, bins, fill=True, color=color, alpha=0.3)
        ax.stairs(share, bins, color=color, linewidth=2, label=text)
    theta = 0 if film.margins else film.run.threshold()
    if theta is not None:
        name = "0" if film.margins else "θ"
        ax.axvline(theta, color=style.CHANCE, linewidth=1.2, linestyle=(0, (2, 2)), label=name)
    ax.set_xlim(min(bins[0], 0), film.bins[0][-1])
    ax.set_ylim(0, film.top)
    gap = ": " if len(film.voters) < 3 else "\n"
    ahead = f"{gap}{film.shares[k][j][0].sum():.0f} % right" if film.margins else ""
    ax.set_title(f"Layer {film.voters[j]}{ahead}")
    if j == 0:
        ax.set_ylabel("share (%)")


def accuracy_so_far(ax, film, k):
    """FF from the snapshots, on the images behind them; BP from the record, on the same images."""
    run = film.run
    split = "validation" if run.config["validation"] else "training"
    ax.plot(film.epochs[: k + 1], film.acc[: k + 1], color=style.FF, marker="o", label="FF")
    highest = max(film.acc)
    bp = run.values("bp", "val_acc" if run.config["validation"] else "train_acc")
    if bp is not None:
        shown = [epoch for epoch in run.epochs if epoch <= film.epochs[k]]
        ax.plot(shown, 100 * bp[: len(shown)], color=style.BP, marker="s", label="BP")
        highest = max(highest, 100 * bp.max())
    style.reference(ax, 100 / run.n_classes(), "chance")
    style.epoch_axis(ax, film.epochs[-1], film.epochs[0])
    ax.set_ylim(0, 1.1 * highest)
    ax.set_ylabel(f"{split} acc. (%)")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def main():
    parser = style.Parser(__doc__)
    parser.add_run()
    parser.add_argument("--fps", type=float, default=4, help="frames per second (default: 4)")
    parser.add_argument("--epochs", type=int, metavar="N", help="stop after epoch N (default: the last snapshot)")
    parser.add_argument("--snapshot-every", type=int, default=1, metavar="K", help="every K-th epoch, and the last one")
    parser.add_argument("--out", metavar="FILE", help="the GIF (default: RUN/figures/training.gif)")
    options = parser.parse_run()
    if options.snapshot_every < 1 or not 0.1 <= options.fps <= 50:
        parser.error("--snapshot-every must be at least 1, --fps from 0.1 to 50")
    run = Run(options.run)
    epochs = [epoch for epoch in run.snapshots if options.epochs is None or epoch <= options.epochs]
    if not epochs:
        raise record.RecordError(f"{run.folder} has no snapshots to draw a film from")
    epochs = [epoch for epoch in epochs if epoch % options.snapshot_every == 0 or epoch == epochs[-1]]
    out = Path(options.out) if options.out else run.folder / "figures" / "training.gif"
    style.folder(out.parent)
    film = Film(run, epochs)
    data, reduced = gif.fit([frame(film, k) for k in range(len(epochs))], options.fps)
    out.write_bytes(data)
    print(f"film: {out} ({len(epochs)} frames, {len(data) / 1e6:.2f} MB{reduced})")


if __name__ == "__main__":
    style.run(main)
