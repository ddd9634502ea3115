"""The figures of a ff_cifar_lc run, from its record and its snapshots alone: nothing is trained again.

    python viz/ff_cifar_lc.py RUN [--out DIR]        RUN: a folder under runs/ff_cifar_lc/; DIR: RUN/figures

curves.png            accuracy, goodness and losses over the epochs
per_class.png         test accuracy of FF and BP, class by class
example_images.png    one training image per class
label_encoded.png     the same as the network sees them, with a right and with a wrong label (--label slot)
receptive_fields.png  first-layer filters at six places: no two places share weights
where.png             which places of an image speak for its true label, layer by layer (not with --no-neutral)
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import record
from common.labels import write_slot, wrong_labels
from viz import style

# What a record means that does not say it: the first experiment, before these were settings.
FIRST = {"label": "slot", "negatives": "uniform", "neutral": False, "loss": "threshold", "beta": 1.0}
EVIDENCE = ["#8A3A00", "#F39B3F", "#FFFFFF", "#5AA5E0", "#08306B"]  # for a rival, neither, for the true label
EVIDENCE = LinearSegmentedColormap.from_list("evidence", EVIDENCE, N=257)  # odd: 0 is white


class Run:
    """What a run left behind: settings, epoch lines, last line (None: it was interrupted), snapshots, examples."""

    def __init__(self, path):
        path = Path(path)
        lines = record.read(path)
        if not lines or not isinstance(lines[0], dict) or "slot_rows" not in lines[0].get("config", {}):
            raise record.RecordError(f"{path} is not a run of ff_cifar_lc/train.py")
        self.folder = path if path.is_dir() else path.parent
        self.config, self.dataset = FIRST | lines[0]["config"], lines[0]["dataset"]["name"]
        self.n_train = lines[0]["dataset"].get("train") or self.config["train_subset"]
        self.lines = [line for line in lines if "epoch" in line]
        self.epochs = [line["epoch"] for line in self.lines]
        self.final = lines[-1].get("final")
        found = {int(p.stem.partition("-")[2]): p for p in self.folder.glob("snapshots/epoch-*.npz")}
        self.snapshots = dict(sorted(found.items()))  # epoch -> file
        self.where = self.folder / "snapshots" / "where.npz"
        self.images, self.mean, self.class_names = None, None, lines[0]["dataset"].get("class_names")
        if (self.folder / "snapshots" / "examples.npz").exists():
            arrays, meta = record.load_arrays(self.folder / "snapshots" / "examples.npz")
            self.images, self.mean, self.class_names = arrays["images"], arrays["mean"], meta["class_names"]

    def values(self, net, key):
        """One number (or one per layer) for each epoch, or None where the run has none: values("ff", "val_acc")."""
        if not self.lines or key not in self.lines[0].get(net, {}):
            return None
        return np.array([line[net][key] for line in self.lines])

    def voters(self):
        """The layers that vote for a label."""
        layers = range(self.config["n_layers"])
        return layers[1:] if self.config["skip_first"] and len(layers) > 1 else layers

    def n_classes(self):
        return len(self.class_names or range(10))

    def threshold(self):
        """theta, where the loss has one; None where it compares labels with each other."""
        has_one = self.config["negatives"] != "all" and self.config["loss"] == "threshold"
        return self.config["threshold"] if has_one else None


def show(ax, image):
    """An image (H, W, C) with values from 0 to 1; a single channel is grey."""
    ax.imshow(np.clip(image.mean(axis=2) if image.shape[2] != 3 else image, 0, 1), cmap="gray", vmin=0, vmax=1)
    style.bare(ax)


def examples(run):
    """One training image per class."""
    columns = (len(run.images) + 1) // 2
    fig, axes = plt.subplots(2, columns, figsize=(9, 4.3), layout="constrained", squeeze=False)
    for ax in axes.flat:
        style.bare(ax)
    for ax, image, name in zip(axes.flat, run.images, run.class_names, strict=False):
        show(ax, image / 255)
        ax.set_title(name)
    fig.suptitle(f"One training image of each of the {len(run.images)} classes of {run.dataset}", fontsize=13)
    return fig


def label_encoded(run):
    """The same images as the network sees them: with the right label (positive) and with a wrong one (negative)."""
    n_classes, rows = len(run.class_names), run.config["slot_rows"]
    some = np.arange(n_classes)[:: max(1, n_classes // 5)][:5]
    wrong = wrong_labels(some, n_classes, np.random.default_rng(0))
    fig, axes = plt.subplots(2, len(some), figsize=(9.6, 4.9), layout="constrained", squeeze=False)
    kinds = (("positive", "right label", some, style.POS), ("negative", "wrong label", wrong, style.NEG))
    for line, (kind, meaning, labels, color) in zip(axes, kinds, strict=True):
        x = write_slot((run.images[some] / 255 - run.mean).astype(np.float32), labels, rows, n_classes)
        for ax, image, true, label in zip(line, x, some, labels, strict=True):
            show(ax, (image + 1) / 2)
            style.outline(ax, 0, 0, n_classes, rows, style.SLOT)
            ax.set_title(f"image: {run.class_names[true]}\nlabel: {run.class_names[label]}", fontsize=11)
        line[0].set_ylabel(f"{kind}\n({meaning})", color=color, fontsize=12, fontweight="bold")
    slot = f"the top-left {rows} × {n_classes} pixels"
    fig.suptitle(f"What the network sees: the label is painted into {slot}", fontsize=13)
    note = "Pixels minus the channel means; −1 is black, 0 mid-grey, +1 white. Yellow frame: the label slot,\n"
    note += "−1 except for the label's column, which is +1. The two rows differ nowhere else."
    fig.supxlabel(note, fontsize=10.5)
    return fig


def tiles(ax, filters, scale):
    """Filters (P, rf, rf, C, O) as a grid, places down and channels across; weight 0 is mid-grey, ±scale the ends."""
    P, rf, _, C, channels = filters.shape
    grid = np.ones((P * (rf + 1) - 1, channels * (rf + 1) - 1, C))
    for p in range(P):
        for c in range(channels):
            top, left = p * (rf + 1), c * (rf + 1)
            grid[top : top + rf, left : left + rf] = 0.5 + 0.5 * filters[p, ..., c] / max(scale[p, c], 1e-12)
    show(ax, grid)
    ax.set_yticks([p * (rf + 1) + (rf - 1) / 2 for p in range(P)], [f"place {p + 1}" for p in range(P)])
    ax.set_xticks([c * (rf + 1) + (rf - 1) / 2 for c in range(channels)], range(channels))
    ax.tick_params(length=0)


def place_map(ax, run, places, rf):
    """Where on the image the numbered fields are. Fields sit one pixel apart: field (r, c) starts at pixel (r, c)."""
    H, W = places.max(axis=0) + rf
    if run.images is None:
        show(ax, np.full((H, W, 3), 0.85))
    else:
        show(ax, 0.5 + 0.5 * run.images[0] / 255)  # faded
    style.outline(ax, 0, 0, W, H, style.CHANCE, 1)
    title = "places on the image"
    if run.config["label"] == "slot":
        rows, n_classes = run.config["slot_rows"], run.n_classes()
        ax.add_patch(plt.Rectangle((-0.5, -0.5), n_classes, rows, facecolor=style.SLOT, alpha=0.9))
        seen = [str(p + 1) for p, (r, c) in enumerate(places) if r < rows and c < n_classes]
        title += f"\n(label slot in yellow,\nseen from {', '.join(seen)})"
    for p, (r, c) in enumerate(places):
        style.outline(ax, c, r, rf, rf, style.FF, 1.5)
        ax.text(c + (rf - 1) / 2, r + (rf - 1) / 2, p + 1, ha="center", va="center", fontsize=12, fontweight="bold")
    ax.set_title(title)


def receptive_fields(run):
    """First-layer filters at six places of the last snapshot."""
    epoch, file = list(run.snapshots.items())[-1]
    arrays, _ = record.load_arrays(file)
    filters = arrays["filters"][..., :8]  # more than eight channels would be too small to see
    rf = filters.shape[1]
    scale = np.abs(filters).max(axis=(1, 2, 3))  # (P, O)
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 6), layout="constrained", width_ratios=(1, 2.6))
    place_map(left, run, arrays["places"], rf)
    tiles(right, filters, scale)
    n = arrays["filters"].shape[-1]
    right.set_xlabel("channel" if n <= 8 else f"channel (the first 8 of {n})")
    fig.suptitle(
        f"First-layer filters ({rf} × {rf}) after epoch {epoch}: every place has weights of its own", fontsize=13
    )
    meaning = "red, green and blue are the three channels" if filters.shape[3] == 3 else "brighter is positive"
    fig.supxlabel(
        f"\nMid-grey is weight 0; {meaning}. Each tile runs from −m to +m,\n"
        f"where m is its own largest |weight|: {scale.min():.2f} to {scale.max():.2f} in these tiles.",
        fontsize=10.5,
    )
    return fig


def per_class(run):
    """Test accuracy by class, FF beside BP."""
    nets = [
        (net, name, color) for net, name, color in (("ff", "FF", style.FF), ("bp", "BP", style.BP)) if net in run.final
    ]
    n_classes = len(run.final["ff"]["per_class"])
    names = run.class_names or [str(k) for k in range(n_classes)]
    fig, ax = plt.subplots(figsize=(9.6, 4.8), layout="constrained")
    width = 0.8 / len(nets)
    for i, (net, name, color) in enumerate(nets):
        percent = [np.nan if a is None else 100 * a for a in run.final[net]["per_class"]]
        total = 100 * run.final[net]["test_acc"]
        x = np.arange(n_classes) + (i - (len(nets) - 1) / 2) * width
        bars = ax.bar(x, percent, width, color=color, label=f"{name} ({total:.1f} % over all classes)")
        ax.bar_label(bars, fmt="%.0f", fontsize=9.5, padding=1)
    style.reference(ax, 100 / n_classes, f"chance ({100 / n_classes:.0f} %)")
    ax.set_xticks(range(n_classes), names, rotation=25 if max(map(len, names)) > 6 else 0)
    ax.set_ylabel(f"test accuracy (%, {spaced(run.final['test_images'])} images)")
    ax.grid(axis="x", visible=False)
    ax.margins(x=0.01)
    title = f"Test accuracy of each class of {run.dataset}"
    if "rank_correlation" in run.final:
        rho = run.final["rank_correlation"]
        title += f"\nSpearman rank correlation of FF and BP: {rho:.2f} (1: same order, 0: unrelated)"
    ax.set_title(title)
    style.legend_below(ax, 3)
    return fig


def spaced(n):
    """10000 -> "10 000"."""
    return f"{n:,}".replace(",", " ")


def curves(run):
    """Four panels over the epochs: accuracies, goodness or margin of every layer, FF losses, BP loss."""
    fig, axes = plt.subplots(2, 2, figsize=(10, 7 + 0.5 * run.config["n_layers"]), layout="constrained")
    fig.get_layout_engine().set(h_pad=0.12, w_pad=0.12)
    panels = accuracies, margins if run.threshold() is None else goodness, ff_losses, bp_loss
    for panel, ax in zip(panels, axes.flat, strict=True):
        panel(ax, run)
        style.epoch_axis(ax, run.epochs[-1])
    stopped = "" if run.final else f" (interrupted after epoch {run.epochs[-1]} of {run.config['n_epochs']})"
    n = spaced(run.n_train)
    fig.suptitle(f"Training on {n} images of {run.dataset}, seed {run.config['seed']}{stopped}", fontsize=13)
    return fig


def accuracies(ax, run):
    """Top left. Without a validation split there are only the training images to look at."""
    split, key = ("Validation", "val_acc") if run.values("ff", "val_acc") is not None else ("Training", "train_acc")
    ends = []
    for net, name, color in (("ff", "FF", style.FF), ("bp", "BP", style.BP)):
        if run.values(net, key) is None:
            continue
        ends.append(f"{name} {100 * run.values(net, key)[-1]:.1f} %")
        if key == "val_acc":
            ax.plot(run.epochs, 100 * run.values(net, key), color=color, marker="o", label=f"{name} validation")
        train = 100 * run.values(net, "train_acc")
        ax.plot(run.epochs, train, color=color, linestyle="--", marker=".", label=f"{name} training")
        if net == "ff":  # here, so that the legend's columns are FF and BP
            style.reference(ax, 100 / run.n_classes(), f"chance ({100 / run.n_classes():.0f} %)")
    ax.set_ylim(bottom=0)
    ax.set_ylabel(f"accuracy (%, {spaced(run.config['eval_subset'])} images)")
    ax.set_title(f"{split} accuracy after epoch {run.epochs[-1]}:\n{', '.join(ends)}")
    style.legend_below(ax, 2)


def goodness(ax, run):
    """Top right, for a loss that compares the goodness of each row with theta."""
    g_pos, g_neg = run.values("ff", "g_pos"), run.values("ff", "g_neg")  # (epochs, n_layers)
    layers = range(g_pos.shape[1])
    for i in layers:
        ax.plot(run.epochs, g_pos[:, i], **style.layer(i), marker="^", label=f"layer {i} g⁺ (right label)")
    style.reference(ax, run.config["threshold"], f"threshold θ = {run.config['threshold']:g}")
    for i in layers:
        ax.plot(run.epochs, g_neg[:, i], **style.layer(i), marker="v", label=f"layer {i} g⁻ (wrong label)")
    gaps = ", ".join(f"{gap:.2f}" for gap in (g_pos - g_neg)[-1])
    ax.set_ylabel("goodness, mean of h²")
    ax.set_title(f"Goodness gap g⁺ − g⁻ after epoch {run.epochs[-1]}:\n{gaps} ({numbered(layers)})")
    style.legend_below(ax, 2)


def margins(ax, run):
    """Top right, for a loss that compares labels: g⁺ and g⁻ would lie on each other, what the loss sees does not."""
    beta = run.config["beta"]
    margin = beta * (run.values("ff", "g_pos") - run.values("ff", "g_neg"))  # (epochs, n_layers)
    layers = range(margin.shape[1])
    for i in layers:
        ax.plot(run.epochs, margin[:, i], **style.layer(i), marker="o", label=f"layer {i}")
    style.reference(ax, 0, "0 (cannot tell)")
    ends = ", ".join(f"{end:.2f}" for end in margin[-1]).replace("-", "−")
    wrong = {"all": "the mean wrong label", "uniform": "a wrong label", "hard": "the best wrong label"}
    against = wrong.get(run.config["negatives"], "a likely wrong label")
    ax.set_ylabel(f"β (g⁺ − g⁻), β = {beta:g}")
    ax.set_title(f"Margin over {against}, epoch {run.epochs[-1]}:\n{ends} ({numbered(layers)})")
    style.legend_below(ax, 3)


def numbered(layers):
    """range(2) -> "layers 0, 1"."""
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"


def ff_losses(ax, run):
    """Bottom left. A layer that cannot tell gives a right label the chance 1/2 in a pair, 1/K among all labels."""
    loss = run.values("ff", "loss")
    for i in range(loss.shape[1]):
        ax.plot(run.epochs, loss[:, i], **style.layer(i), marker="o", label=f"layer {i}")
    candidates = run.n_classes() if run.config["negatives"] == "all" else 2
    style.reference(ax, np.log(candidates), f"ln {candidates} (cannot tell)")
    ax.set_ylabel("FF loss per image (nats)")
    ax.set_title("FF: every layer has a loss of its own")
    style.legend_below(ax, 3)


def bp_loss(ax, run):
    """Bottom right."""
    loss = run.values("bp", "loss")
    ax.set_title("BP: one loss for the whole stack")
    if loss is None:
        ax.text(0.5, 0.5, "this run has no BP twin", ha="center", transform=ax.transAxes, color=style.CHANCE)
        ax.set_yticks([])
        return
    ax.plot(run.epochs, loss, color=style.BP, marker="o", label="BP")
    style.reference(ax, np.log(run.n_classes()), f"ln {run.n_classes()} (a blind guess)")
    ax.set_ylabel("softmax cross-entropy (nats)")
    style.legend_below(ax, 2)


def rivals(maps, labels, predicted):
    """The strongest wrong label of each image: the answer, where that is wrong, else the runner-up of the vote (N,)."""
    votes = np.sum([g.mean(axis=(1, 2)) for g in maps], axis=0)  # (N, K)
    votes[np.arange(len(labels)), labels] = -np.inf
    return np.where(predicted == labels, votes.argmax(axis=1), predicted)


def evidence(g, labels, rival, beta):
    """Goodness at every location (N, H, W, K) -> its parts of the margin beta * (g true - g rival) (N, H, W), and the
    share of locations at which the true label beats all others (N,), of those that tell labels apart at all."""
    rows, wrong = np.arange(len(g)), g.copy()
    true = g[rows, :, :, labels]  # (N, H, W)
    wrong[rows, :, :, labels] = -np.inf
    ahead = (true > wrong.max(axis=3)).sum(axis=(1, 2))
    awake = (g != g[..., :1]).any(axis=3).sum(axis=(1, 2))  # where all units are off, all labels have goodness 0
    return beta * (true - g[rows, :, :, rival]) / (g.shape[1] * g.shape[2]), ahead / np.maximum(awake, 1)


def over(ax, image, d, middle, scale):
    """A map d (H, W) over its faded image; the middle of what location (0, 0) sees is the pixel (middle, middle)."""
    show(ax, 0.6 + 0.4 * image / 255)
    ends = ax.get_xlim(), ax.get_ylim()
    place = np.array([0, d.shape[1], d.shape[0], 0]) + middle - 0.5  # left, right, bottom, top
    picture = ax.imshow(d, EVIDENCE, vmin=-scale, vmax=scale, interpolation="nearest", extent=place)
    ax.set(xlim=ends[0], ylim=ends[1])
    return picture


def where(run):
    """Which locations speak for the true label and which for its rival, on the first images recognised and mistaken.

    The rival is one label for the whole image, so that a map adds up to its layer's margin. Against the best wrong
    label of every single location the true label loses nearly everywhere, on every image: nine others compete there.
    Nothing is smoothed: the patches of a smoothed map are hardly larger than those of its values in random order.
    """
    arrays, meta = record.load_arrays(run.where)
    beta, images = run.config["beta"], arrays["images"]
    labels, predicted = arrays["labels"].astype(int), arrays["predicted"].astype(int)
    maps = [arrays[f"goodness{i}"] for i in range(len(meta["rf"]))]  # (N, H, W, K) each
    rival = rivals([maps[i] for i in run.voters()], labels, predicted)
    names = run.class_names or [str(k) for k in range(maps[0].shape[3])]
    right, wrong = np.flatnonzero(predicted == labels)[:3], np.flatnonzero(predicted != labels)[:3]
    some = np.concatenate([right, wrong])
    widths = [1] * len(right) + [0.12] * (len(right) > 0 < len(wrong)) + [1] * len(wrong)  # a gap between the kinds
    columns = [j for j, width in enumerate(widths) if width == 1]
    fig = plt.figure(figsize=(1.2 + 1.4 * max(sum(widths), 5.5), 3.1 + 1.85 * len(maps)), layout="constrained")
    fig.get_layout_engine().set(w_pad=0.07)
    grid = fig.add_gridspec(1 + len(maps), len(widths) + 1, width_ratios=[*widths, 0.07])

    for j, n in zip(columns, some, strict=True):
        ax = fig.add_subplot(grid[0, j])
        show(ax, images[n] / 255)
        ax.set_title(f"{names[labels[n]]}\n{'rival:' if n in right else 'said'} {names[rival[n]]}", fontsize=11)
        if n in (*right[:1], *wrong[:1]):
            above = {"xytext": (0, 37), "textcoords": "offset points", "fontsize": 13, "fontweight": "bold"}
            ax.annotate("recognised" if n in right else "mistaken", (0, 1), xycoords="axes fraction", **above)
    middle = 0.0
    for i, (rf, g) in enumerate(zip(meta["rf"], maps, strict=True)):
        middle += (rf - 1) / 2
        d, ahead = evidence(g, labels, rival, beta)
        scale = max(np.percentile(np.abs(d[some]), 99), 1e-12)
        for j, n in zip(columns, some, strict=True):
            ax = fig.add_subplot(grid[1 + i, j])
            picture = over(ax, images[n], d[n], middle, scale)
            total = f"{d[n].sum():+.1f}".replace("-", "−")
            ax.set_xlabel(f"sum {total}\nbeats all: {100 * ahead[n]:.0f} %", fontsize=10)
            if j == 0:
                ax.set_ylabel(f"layer {i}" + "\n(no vote)" * (i not in run.voters()), fontsize=12)
        bar = fig.colorbar(picture, cax=fig.add_subplot(grid[1 + i, -1]), extend="both")
        bar.set_label(f"β (g true − g rival)\n/ {d[0].size} locations", fontsize=9.5)
    fig.suptitle("Locations that speak for the true label (blue) or for its rival (orange)", fontsize=13)
    fig.supxlabel(
        "Each square is a location, drawn at the middle of what it sees; white: no difference. Rival: the wrong\n"
        f"label with the most votes. A map adds up to its layer's margin β (g true − g rival), β = {beta:g}.\n"
        "Beats all: where the true label is ahead of all others, in % of the locations that tell labels apart\n"
        f"at all. A blind location would be right in {100 / maps[0].shape[3]:.0f} %.",
        fontsize=10.5,
    )
    return fig


def main():
    parser = style.Parser(__doc__)
    parser.add_run()
    parser.add_argument("--out", metavar="DIR", help="where the pictures go (default: RUN/figures)")
    options = parser.parse_run()
    run = Run(options.run)
    figures = {  # name -> how to draw it, what it needs, what to say where that is missing
        "curves": (curves, run.lines, "no finished epoch"),
        "per_class": (per_class, run.final, "the run was interrupted"),
        "example_images": (examples, run.images is not None, "no snapshots"),
        "receptive_fields": (receptive_fields, run.snapshots, "no snapshots"),
    }
    if run.config["label"] == "slot":
        figures["label_encoded"] = (label_encoded, run.images is not None, "no snapshots")
    if run.config["neutral"]:
        figures["where"] = (where, run.where.exists(), "no snapshots" if run.final else "the run was interrupted")
    out = style.folder(options.out or run.folder / "figures")
    drawn, missing = [], {}
    for name, (draw, there, reason) in figures.items():
        if there:
            style.save(draw(run), out / f"{name}.png")
            drawn.append(f"{name}.png")
        else:
            missing.setdefault(reason, []).append(f"{name}.png")
    if not drawn:
        raise record.RecordError(f"{run.folder} holds nothing to draw yet: no finished epoch, no snapshots")
    without = [f"{reason}, so no {', '.join(names)}" for reason, names in missing.items()]
    more = "; ".join([f"and {len(drawn) - 1} more", *without])
    print(f"figures: {out / drawn[0]} ({more})")


if __name__ == "__main__":
    style.run(main)
