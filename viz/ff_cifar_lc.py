"""The five figures of a ff_cifar_lc run, from its record and its snapshots alone: nothing is trained again.

    python viz/ff_cifar_lc.py RUN [--out DIR]        RUN: a folder under runs/ff_cifar_lc/; DIR: RUN/figures

curves.png            accuracy, goodness and losses over the epochs
per_class.png         test accuracy of FF and BP, class by class
example_images.png    one training image per class
label_encoded.png     the same as the network sees them, with a right and with a wrong label
receptive_fields.png  first-layer filters at six places: no two places share weights
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import record
from common.labels import write_slot, wrong_labels
from viz import style


class Run:
    """What a run left behind: settings, epoch lines, last line (None: it was interrupted), snapshots, examples."""

    def __init__(self, path):
        path = Path(path)
        lines = record.read(path)
        if not lines or not isinstance(lines[0], dict) or "slot_rows" not in lines[0].get("config", {}):
            raise record.RecordError(f"{path} is not a run of ff_cifar_lc/train.py")
        self.folder = path if path.is_dir() else path.parent
        self.config, self.dataset = lines[0]["config"], lines[0]["dataset"]["name"]
        self.lines = [line for line in lines if "epoch" in line]
        self.epochs = [line["epoch"] for line in self.lines]
        self.final = lines[-1].get("final")
        found = {int(p.stem.partition("-")[2]): p for p in self.folder.glob("snapshots/epoch-*.npz")}
        self.snapshots = dict(sorted(found.items()))  # epoch -> file
        self.images, self.mean, self.class_names = None, None, None
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
    rows, n_classes = run.config["slot_rows"], run.n_classes()
    ax.add_patch(plt.Rectangle((-0.5, -0.5), n_classes, rows, facecolor=style.SLOT, alpha=0.9))
    for p, (r, c) in enumerate(places):
        style.outline(ax, c, r, rf, rf, style.FF, 1.5)
        ax.text(c + (rf - 1) / 2, r + (rf - 1) / 2, p + 1, ha="center", va="center", fontsize=12, fontweight="bold")
    seen = [str(p + 1) for p, (r, c) in enumerate(places) if r < rows and c < n_classes]
    ax.set_title(f"places on the image\n(label slot in yellow,\nseen from {', '.join(seen)})")


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
    right.set_xlabel("channel")
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
    """Four panels over the epochs: accuracies, goodness of every layer, FF losses, BP loss."""
    fig, axes = plt.subplots(2, 2, figsize=(10, 7 + 0.5 * run.config["n_layers"]), layout="constrained")
    fig.get_layout_engine().set(h_pad=0.12, w_pad=0.12)
    for panel, ax in zip((accuracies, goodness, ff_losses, bp_loss), axes.flat, strict=True):
        panel(ax, run)
        style.epoch_axis(ax, run.epochs[-1])
    stopped = "" if run.final else f" (interrupted after epoch {run.epochs[-1]} of {run.config['n_epochs']})"
    n = spaced(run.config["train_subset"])
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
    """Top right."""
    g_pos, g_neg = run.values("ff", "g_pos"), run.values("ff", "g_neg")  # (epochs, n_layers)
    layers = range(g_pos.shape[1])
    for i in layers:
        ax.plot(run.epochs, g_pos[:, i], **style.layer(i), marker="^", label=f"layer {i} g⁺ (right label)")
    style.reference(ax, run.config["threshold"], f"threshold θ = {run.config['threshold']:g}")
    for i in layers:
        ax.plot(run.epochs, g_neg[:, i], **style.layer(i), marker="v", label=f"layer {i} g⁻ (wrong label)")
    gaps = ", ".join(f"{gap:.2f}" for gap in (g_pos - g_neg)[-1])
    which = f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
    ax.set_ylabel("goodness, mean of h²")
    ax.set_title(f"Goodness gap g⁺ − g⁻ after epoch {run.epochs[-1]}:\n{gaps} ({which})")
    style.legend_below(ax, 2)


def ff_losses(ax, run):
    """Bottom left. A layer whose goodness always is θ has the loss ln 2: it tells nothing."""
    loss = run.values("ff", "loss")
    for i in range(loss.shape[1]):
        ax.plot(run.epochs, loss[:, i], **style.layer(i), marker="o", label=f"layer {i}")
    style.reference(ax, np.log(2), "ln 2 (g = θ always)")
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
        "label_encoded": (label_encoded, run.images is not None, "no snapshots"),
        "receptive_fields": (receptive_fields, run.snapshots, "no snapshots"),
    }
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
