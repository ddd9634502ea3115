"""Memory and throughput of a training step, from the records of benchmarks/audit.py.

    python viz/audit.py [--results DIR] [--out DIR]      DIR: results/audit, and figures/

audit_depth.png      activations that a step holds, against the number of equal blocks (audit.py --depth)
audit_frontier.png   images per second against activations, network by network (audit.py, audit.py --large)
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import record
from viz import style

METHODS = {  # as benchmarks/audit.py names them: colour, marker, line
    "FF naive": (style.FF, "s", "--"),
    "FF pipelined": (style.FF, "o", "-"),
    "BP": (style.BP, "^", "-"),
    "BP, 2 parts": (style.BP, "v", "--"),
    "BP, 4 parts": (style.BP, "D", ":"),
    "BP, recomputed": (style.NEG, "P", "-."),
}


def load(path):
    """The cells of a record, a list of dicts."""
    try:
        found = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise record.RecordError(f"{path} cannot be read: {error}") from None
    if not found or any(cell.get("method") not in METHODS for cell in found):
        raise record.RecordError(f"{path} is no record of benchmarks/audit.py --out")
    return [cell for cell in found if "error" not in cell]  # out of memory: there is nothing to draw


def device(cell):
    return cell["machine"].get("gpu", cell["machine"]["cpu"])


def depth(cells):
    """Activations against the number of blocks."""
    kinds = {(device(c), c["width"], c["side"], c["batch"]) for c in cells}
    if len(kinds) > 1:
        raise record.RecordError(
            f"the depth records are of several kinds, which one picture would mix: {sorted(kinds)}"
        )
    fig, ax = plt.subplots(figsize=(9.6, 4.6), layout="constrained")
    for method, (color, marker, line) in METHODS.items():
        own = {int(c["backbone"].removeprefix("equal")): c["activations"] / 1e6 for c in cells if c["method"] == method}
        ax.plot(sorted(own), [own[n] for n in sorted(own)], line, marker=marker, color=color, label=method)
    blocks = sorted({int(c["backbone"].removeprefix("equal")) for c in cells})
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(blocks, blocks)
    ax.minorticks_off()
    ax.set_xlabel("equal blocks")
    ax.set_ylabel("MB of activations in a step")
    first = cells[0]
    channels = round(256 * first["width"])
    ax.set_title(f"{channels} channels, {first['side']} x {first['side']}, batches of {first['batch']}")
    style.legend_below(ax, 3)
    return fig


def frontier(cells):
    """Images per second against activations; one panel for each network and batch."""
    shape_of = lambda c: (c["backbone"], c["width"], c["side"], c["batch"], device(c))  # noqa: E731
    shapes = list(dict.fromkeys(map(shape_of, cells)))
    columns = min(3, len(shapes))
    lines = -(-len(shapes) // columns)
    fig, axes = plt.subplots(lines, columns, figsize=(9.6, 3.0 * lines + 0.8), layout="constrained", squeeze=False)
    for ax in axes.flat[len(shapes) :]:
        ax.set_visible(False)
    for ax, shape in zip(axes.flat, shapes, strict=False):
        for cell in (c for c in cells if shape_of(c) == shape):
            color, marker, _ = METHODS[cell["method"]]
            hollow = {} if cell["method"] != "FF naive" else {"markerfacecolor": "none"}
            at = cell["activations"] / 1e6, cell["images_per_second"]
            ax.plot(*at, marker, color=color, markersize=9, label=cell["method"], **hollow)
        backbone, width, side, batch, _ = shape
        ax.set_title(f"{backbone.upper()} × {width:g}, {side} × {side}, batch {batch}", fontsize=11)
        ax.set_xlim(0, None)
        ax.set_ylim(0, None)
        ax.set_xlabel("MB of activations")
    for ax in axes[:, 0]:
        ax.set_ylabel("images per second")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    fig.suptitle(f"Up and to the left is better ({', '.join(dict.fromkeys(map(device, cells)))})", fontsize=13)
    return fig


def main():
    parser = style.Parser(__doc__)
    parser.add_argument("--results", metavar="DIR", default=ROOT / "results" / "audit", help="default: results/audit")
    parser.add_argument("--out", metavar="DIR", default=ROOT / "figures", help="default: figures/")
    options = parser.parse_args()
    files = sorted(Path(options.results).glob("*.jsonl"))
    if not files:
        raise record.RecordError(f"{options.results} holds no record of benchmarks/audit.py --out")
    cells = [cell for path in files for cell in load(path)]
    equal = [cell for cell in cells if cell["backbone"].startswith("equal")]
    others = [cell for cell in cells if not cell["backbone"].startswith("equal")]
    out = style.folder(options.out)
    for name, some, draw in (("audit_depth", equal, depth), ("audit_frontier", others, frontier)):
        if some:
            style.save(draw(some), out / f"{name}.png")
            print(f"figure: {out / name}.png")


if __name__ == "__main__":
    style.run(main)
