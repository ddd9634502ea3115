"""Bytes that a training step fetches, FF and BP, against depth and batch size: data_movement.py --sweep as a picture.

python viz/ff_cifar_lc_data_movement.py [RECORD] [--out FILE]     RECORD: a run folder or a record.jsonl (default:
                                                                  the committed one); FILE: figures/...png
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import record
from viz import style

WAYS = {  # text, colour, marker and line
    "FF": ("Forward-Forward", style.FF, "o-"),
    "greedy": ("the same, layer by layer", style.POS, "s--"),
    "BP": ("backpropagation", style.BP, "^:"),
}


def load(path):
    """-> settings, {(layers, batch): {way: line}}."""
    lines = record.read(path)
    found = {(line["layers"], line["batch"]): line["ways"] for line in lines if "ways" in line}
    if len(found) < 2:
        raise record.RecordError(f"{path} is no record of ff_cifar_lc/data_movement.py --sweep")
    return lines[0]["config"], found


def size(kb):
    return f"{int(kb) // 1024} MB" if int(kb) >= 1024 else f"{kb} kB"


def draw(cfg, found):
    """Rows: against depth, against batch size; columns: sizes of the cache."""
    caches = list(next(iter(found.values()))["FF"]["fetched"])
    depths = sorted(key for key in found if key[1] == cfg["batch_size"])
    batches = sorted((key for key in found if key[0] == cfg["n_layers"]), key=lambda key: key[1])
    fig, axes = plt.subplots(2, len(caches), figsize=(9.6, 6.2), layout="constrained", squeeze=False)
    for line, keys, i, text in ((axes[0], depths, 0, "layers"), (axes[1], batches, 1, "images in a batch")):
        for ax, kb in zip(line, caches, strict=True):
            for way, (name, color, form) in WAYS.items():
                values = [found[key][way]["fetched"][kb] / 1e6 for key in keys]
                ax.plot([key[i] for key in keys], values, form, color=color, label=name)
            ax.set_ylim(0, None)
            ax.set_xlabel(text)
            ax.set_xticks([key[i] for key in keys])
    for ax, kb in zip(axes[0], caches, strict=True):
        ax.set_title(f"a cache of {size(kb)}")
    for ax in axes[:, 0]:
        ax.set_ylabel("MB fetched per image")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    fig.suptitle(f"What a training step fetches ({cfg['channels']} channels, fields {cfg['rf']})", fontsize=13)
    return fig


def main():
    parser = style.Parser(__doc__)
    committed = ROOT / "results" / "ff_cifar_lc_data_movement" / "sweep.jsonl"
    parser.add_argument("record", nargs="?", metavar="RECORD", default=committed, help="default: the committed record")
    parser.add_argument("--out", metavar="FILE", default=ROOT / "ff_cifar_lc" / "figures" / "data_movement.png")
    options = parser.parse_args()
    style.save(draw(*load(options.record)), options.out)
    print(f"figure: {options.out}")


if __name__ == "__main__":
    style.run(main)
