"""What Forward-Forward is, in one picture: backpropagation sends an error down, Forward-Forward keeps it in the layer.

    python viz/concept.py [--out figures/forward_forward.png]

Everything is drawn in inches from the lower left corner.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from viz import style

FOUR = ["...#.", "..##.", ".#.#.", "#..#.", "#####", "...#.", "...#."]  # a digit of 5 x 7 pixels
INK, BOX = "#333333", "#F1F3F6"
LAYERS = [1.9, 3.0, 4.1]  # lower edges of the layers; the images are below them
HEIGHT, SIDE = 0.76, 1.2  # of a layer, of an image


def text(ax, x, y, words, color=INK, size=12, **more):
    ax.text(x, y, words, color=color, fontsize=size, ha="center", va="center", zorder=6, **more)


def arrow(ax, x, start, end, color):
    """A vertical arrow."""
    look = {"arrowstyle": "-|>,head_width=0.3,head_length=0.5", "color": color, "linewidth": 2.5}
    ax.annotate("", (x, end), (x, start), arrowprops=look | {"shrinkA": 0, "shrinkB": 0}, zorder=5)


def box(ax, x, y, width, height, face, edge=INK):
    shape = "round,pad=0,rounding_size=0.1"
    ax.add_patch(FancyBboxPatch((x, y), width, height, shape, facecolor=face, edgecolor=edge, linewidth=1.6, zorder=1))


def image(ax, x, y, color=INK, label=None):
    """A pixel four with its middle at x; with a label, the top row of pixels carries it, as in the real input."""
    pixels, x, side = np.zeros((10, 10)), x - SIDE / 2, SIDE / 10
    pixels[2:9, 3:8] = [[c == "#" for c in row] for row in FOUR]
    ax.imshow(-pixels, cmap="gray", extent=(x, x + SIDE, y, y + SIDE), zorder=2)
    for k in range(10 if label is not None else 0):
        face = color if k == label else "#D5D5D5"
        pixel = plt.Rectangle((x + k * side, y + SIDE - side), side, side, facecolor=face, edgecolor="white", zorder=3)
        ax.add_patch(pixel)
    ax.add_patch(plt.Rectangle((x, y), SIDE, SIDE, fill=False, edgecolor=color, linewidth=2, zorder=4))


def meter(ax, x, y, level, color):
    """A layer's goodness for one image, with the threshold as a dashed line and the arrow that learning adds."""
    bottom, height = y + 0.1, HEIGHT - 0.2
    ax.add_patch(plt.Rectangle((x, bottom), 0.3, height * level, facecolor=color, zorder=2))
    ax.add_patch(plt.Rectangle((x, bottom), 0.3, height, fill=False, edgecolor=INK, linewidth=1.2, zorder=3))
    middle = bottom + height / 2
    text(ax, x - 0.2, middle, "θ")
    ax.plot([x - 0.08, x + 0.38], [middle, middle], color=INK, linewidth=1.5, linestyle=(0, (2, 1)), zorder=4)
    ends = (bottom + 0.02, bottom + height - 0.02)
    arrow(ax, x + 0.58, *(ends if level > 0.5 else ends[::-1]), color)


def backpropagation(ax):
    """The left half: activity goes up, one error comes down through everything."""
    text(ax, 2.1, 6.35, "Backpropagation", style.BP, 18, fontweight="bold")
    text(ax, 2.1, 5.98, "one error at the top teaches all layers", size=12.5)
    image(ax, 1.4, 0.4)
    text(ax, 1.4, 0.2, "image")
    box(ax, 0.7, 5.2, 2.8, 0.45, "#FBE6DA", style.BP)
    text(ax, 2.1, 5.42, "error: prediction − label", size=12.5)
    ends = [LAYERS[0] - 0.3, *LAYERS, 5.2]
    for i, y in enumerate(LAYERS):
        box(ax, 0.7, y, 2.8, HEIGHT, BOX)
        text(ax, 2.1, y + HEIGHT / 2, f"layer {i + 1}", size=14)
        above = LAYERS[i + 1] + HEIGHT / 2 if i < 2 else 5.2
        arrow(ax, 1.4, y + HEIGHT, ends[i + 2], INK)
        arrow(ax, 2.95, above, y + HEIGHT / 2, style.BP)
    arrow(ax, 1.4, 0.4 + SIDE, LAYERS[0], INK)
    text(ax, 2.95, 1.6, "error, crossing\nevery layer", style.BP, 12)


def forward_forward(ax):
    """The right half: two images go up, nothing comes down."""
    text(ax, 7.1, 6.35, "Forward-Forward", style.FF, 18, fontweight="bold")
    text(ax, 7.1, 5.98, "every layer has its own goodness: mean(activity²)", size=12.5)
    lanes = (
        (5.75, style.POS, 4, "positive: label 4, right", 0.82),
        (8.45, style.NEG, 7, "negative: label 7, wrong", 0.22),
    )
    for i, y in enumerate(LAYERS):
        box(ax, 4.9, y, 4.4, HEIGHT, BOX)
        text(ax, 7.1, y + HEIGHT / 2, f"layer {i + 1}", size=14)
    for x, color, label, words, level in lanes:
        image(ax, x, 0.4, color, label)
        text(ax, x, 0.2, words)
        arrow(ax, x, 0.4 + SIDE, LAYERS[0], INK)
        for y, end in zip(LAYERS, [*LAYERS[1:], None], strict=True):
            meter(ax, x - 0.44, y, level, color)
            if end:
                arrow(ax, x, y + HEIGHT, end, INK)
    text(ax, 7.1, 5.42, "learning: up for the right label, down for a wrong one", size=12.5)
    text(ax, 7.1, 1.0, "same image,\nother label")
    for y in LAYERS[1:]:
        text(ax, 7.1, y - 0.17, "normalise", "#666666", 11)
    text(ax, 7.1, 5.1, "no arrow crosses a layer boundary downwards", style.FF, 12.5, fontweight="bold")


def main():
    parser = style.Parser(__doc__)
    parser.add_argument(
        "--out", metavar="FILE", help="the PNG (default: figures/forward_forward.png in the repository)"
    )
    out = Path(parser.parse_args().out or ROOT / "figures" / "forward_forward.png")
    fig = plt.figure(figsize=(9.6, 6.6))
    ax = fig.add_axes((0, 0, 1, 1))
    backpropagation(ax)
    forward_forward(ax)
    ax.axvline(4.25, 0.03, 0.97, color="#CCCCCC", linewidth=1.2)
    ax.set(xlim=(0, 9.6), ylim=(0, 6.6), aspect="equal")
    ax.axis("off")
    style.folder(out.parent)
    style.save(fig, out)
    print(f"picture: {out}")


if __name__ == "__main__":
    style.run(main)
