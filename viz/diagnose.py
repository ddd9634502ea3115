"""What the blocks of a network say about the class, from what ff_cnn/diagnose.py wrote, beside the paper's numbers.

    python viz/diagnose.py RUN [--out DIR]      RUN: a run folder, or its diagnosis.jsonl; DIR: figures/ in it

information.png   bits about the class: of a block's scalar goodness, by several estimators; of vectors, lower bounds
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import record
from viz import style

BINS = ("50", "100", "200", "500")
# DTG-FF (arXiv 2606.06539), App. C.3: VGG8 at width 1, CIFAR-10, 400 epochs, 91.33 %.
PAPER = {
    "ksg": [0.20, 0.30, 0.28, 0.31, 0.27, 0.16, 0.16],  # mean 0.24 in the table; the text below it says 0.20
    "vector": [1.15, 1.74, 1.92, 2.26, 2.39, 2.46, 2.50],
    "gap": [0.50, 1.17, 1.82, 2.17, 2.33, 2.42, 2.52],
    "layer_acc": [0.435, 0.776, 0.851, 0.887, 0.912, 0.913, 0.910],
    "histogram": {"50": 0.22, "100": 0.24, "200": 0.28, "500": 0.38},  # means over blocks
}
WHOLE = [  # of all blocks together: name in the record, the paper's, in words
    ("sum_acc", 0.915, "the blocks' scores added up are right on"),
    ("any_acc", 0.969, "at least one block is right on"),
    ("disagreement", 0.251, "two blocks answer differently on"),
]


def load(path):
    """The line that ff_cnn/diagnose.py wrote."""
    path = Path(path) / "diagnosis.jsonl" if Path(path).is_dir() else Path(path)
    try:
        line = json.loads(path.read_text(encoding="utf-8"))
        line["final"]["histogram"]
    except (OSError, ValueError, KeyError, TypeError):
        raise record.RecordError(f"{path} is not what ff_cnn/diagnose.py writes: run that first") from None
    return line


def whole(found, key):
    """A number for the whole network; of the matrix of disagreements, the mean off its diagonal."""
    if key != "disagreement":
        return found[key]
    matrix = np.array(found[key])
    return matrix[~np.eye(len(matrix), dtype=bool)].mean()


def information(line):
    """Left: estimates for one number per block. Right: bounds for vectors."""
    found, blocks = line["final"], np.arange(len(line["final"]["dim"]))
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.6), layout="constrained")
    greys = plt.get_cmap("Blues")(np.linspace(0.35, 0.9, len(BINS)))
    for bins, color in zip(BINS, greys, strict=True):
        left.plot(blocks, found["histogram"][bins], "-", color=color, label=f"histogram, {bins} bins")
    if "ksg" in found:
        left.plot(blocks, found["ksg"], "o-", color=style.LAYERS[1][0], label="nearest neighbours")
    left.plot(PAPER["ksg"], "s:", color=style.BP, markerfacecolor="none", label="the paper's, neighbours")
    left.set_title("Scalar goodness g")
    left.set_ylabel("bits about the class")
    for key, color, text in (("vector", style.FF, "goodness u"), ("gap", style.POS, "mean activity (GAP)")):
        right.plot(blocks, found[key], "o-", color=color, label=f"{text}, at least")
        right.plot(PAPER[key], "s:", color=color, markerfacecolor="none", label="the paper's")
    K = len(line["dataset"].get("class_names") or range(10))
    style.reference(right, np.log2(K), f"log₂ {K}: everything")
    right.set_title("Vectors, read by a linear probe")
    for ax in (left, right):
        ax.set_ylim(0, None)
        ax.set_xticks(range(max(len(blocks), len(PAPER["ksg"]))))
        ax.set_xlabel("block")
        style.legend_below(ax, 2)
    config = line["config"]
    title = (
        f"{config['rule']}, {config['credit']}: {config['backbone']} × {config['width']:g}, {config['n_epochs']} epochs"
    )
    fig.suptitle(f"What a block says about the class ({title}; the paper: VGG8 × 1, 400 epochs)", fontsize=12)
    return fig


def main():
    parser = style.Parser(__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, or a diagnosis.jsonl")
    parser.add_argument("--out", metavar="DIR", help="where the picture goes (default: figures/ in the run)")
    options = parser.parse_args()
    line, folder = load(options.run), Path(options.run)
    out = style.folder(options.out or (folder if folder.is_dir() else folder.parent) / "figures")
    style.save(information(line), out / "information.png")
    print(f"figure: {out / 'information.png'}")


if __name__ == "__main__":
    style.run(main)
