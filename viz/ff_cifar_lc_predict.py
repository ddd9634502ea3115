"""What a network said about one picture: the picture as the network saw it, and the vote of every label.

    python viz/ff_cifar_lc_predict.py FILE          FILE.npz, written by ff_cifar_lc/predict.py; draws FILE.png

Goodness values differ in late digits only, so every bar is a difference: a label's goodness minus the mean over all
labels. The layers' bars of a label add up to its bar in the vote.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import record
from viz import style
from viz.ff_cifar_lc import show

PANELS = 3  # of more layers than these the bars would be too short to read: then the vote stands alone
PALE = "#A6CEE4"  # a tint of style.FF


def load(path):
    """-> the picture uint8 (H, W, C), goodness (n_layers, K), votes (K,), and what it is about (a dict)."""
    arrays, meta = record.load_arrays(path)
    if not {"image", "goodness", "votes"} <= arrays.keys() or "voters" not in meta:
        raise record.RecordError(f"{path} is not a file of ff_cifar_lc/predict.py")
    return arrays["image"], arrays["goodness"].astype(float), arrays["votes"].astype(float), meta


def short(name, most=26):
    """A file name that fits over its picture."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"


def picture(ax, image, meta):
    """The picture at the network's size, with the label slot where there is one."""
    show(ax, image / 255)
    H, W, C = image.shape
    ax.set_title(short(meta["picture"]), parse_math=False)  # a $ in a file name is no formula
    note = f"as the network sees it:\n{W} × {H} pixels, {'grey' if C == 1 else 'colour'}"
    if meta["slot_rows"]:
        size = len(meta["class_names"]), meta["slot_rows"]
        ax.add_patch(plt.Rectangle((-0.5, -0.5), *size, facecolor=style.SLOT))
        note += "\nyellow: here each label in turn\nis painted over the picture"
    ax.set_xlabel(note)


def bars(ax, values, title, ticks):
    """One bar per label, best first, in full colour."""
    y = np.arange(len(values))
    ax.barh(y, values, color=[style.FF, *[PALE] * (len(y) - 1)], height=0.72)
    ax.axvline(0, color=style.CHANCE, linewidth=1.2)
    ax.set_title(title)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=ticks, steps=[1, 2, 5, 10]))
    ax.set_yticks(y, [])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def scale_of(values):
    """A power of 1000 that makes the largest of these numbers readable, and what to call it."""
    largest = np.abs(values).max()
    power = 3 * int(np.floor(np.log10(largest) / 3 + 1e-9)) if largest > 0 else 0
    return 10.0**power, {0: "", -3: "thousandths; ", -6: "millionths; "}.get(power, f"in units of 1e{power}; ")


def draw(image, g, votes, meta):
    """The whole figure."""
    order, voters = np.argsort(-votes, kind="stable"), meta["voters"]
    panels = {f"layer {i}": g[i] for i in voters} if 1 < len(voters) <= PANELS else {}
    alone = f"vote: sum of {len(voters)} layers" if len(voters) > 1 else f"vote: layer {voters[0]}"
    panels["vote (sum)" if panels else alone] = votes
    rows = np.array([values[order] - values.mean() for values in panels.values()])  # (panels, K)
    scale, unit = scale_of(rows)
    rows, behind = rows / scale, (votes.max() - votes[order]) / scale

    fig = plt.figure(figsize=(9.6, 4.9), layout="constrained")
    left, right = fig.subfigures(1, 2, width_ratios=(1, 2.7))
    picture(left.subplots(), image, meta)
    (axes,) = right.subplots(1, len(rows), sharex=True, squeeze=False)  # one scale: bars of layers add up to the vote
    for ax, title, values in zip(axes, panels, rows, strict=True):
        bars(ax, values, title, 6 if len(rows) < 4 else 3)
    axes[0].set_yticks(range(len(order)), [meta["class_names"][k] for k in order])
    axes[0].get_yticklabels()[0].set(color=style.FF, fontweight="bold")
    beside = {"transform": axes[-1].get_yaxis_transform(), "fontsize": 10, "va": "center"}
    axes[-1].text(1.04, -0.75, "behind\nthe best", **beside | {"va": "bottom"})
    for y, distance in enumerate(behind[1:], start=1):
        axes[-1].text(1.04, y, f"{distance:#.3g}".rstrip("."), **beside)
    right.suptitle(f"Prediction: {meta['class_names'][order[0]]}", fontsize=13, color=style.FF, fontweight="bold")
    right.supxlabel(
        f"goodness minus its mean over the {len(order)} labels\n({unit}goodness: mean of squares)", fontsize=11
    )
    return fig


def main():
    parser = style.Parser(__doc__)
    parser.add_argument("file", metavar="FILE", type=Path, help="the .npz file of one picture")
    file = parser.parse_args().file
    out = file.with_suffix(".png")
    style.save(draw(*load(file)), out)
    print(f"figure: {out} (numbers: {file.name})")


if __name__ == "__main__":
    style.run(main)
