"""A ff_mnist/train.py run as a film: the goodness of true and wrong labels draws apart, epoch by epoch.

    python viz/ff_mnist_gif.py RUN [--fps 4] [--out FILE]           FILE: RUN/figures/training.gif unless given

Everything comes from the record and the snapshots; nothing is trained. (--snapshot-every 1 makes more frames.)
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import record
from viz import gif, style
from viz.ff_mnist import Run, histogram, threshold


def frame(run, snapshots, k, ranges):
    """Frame k: a histogram for each layer, and below it the error so far."""
    epoch, arrays = snapshots[k]
    g, labels = arrays["goodness"], arrays["labels"].astype(int)
    fig = plt.figure(figsize=(9, 5.2), layout="constrained")
    top, bottom = fig.subfigures(2, 1, height_ratios=(1.25, 1))
    for i, ax in enumerate(top.subplots(1, len(g), sharey=True, squeeze=False)[0]):
        histogram(ax, g[i] / threshold(run, i), labels, ranges[i])
        ax.set_ylim(0, 35)
        ax.set_title(f"layer {i}{' (no vote)' if i == 0 and len(g) > 1 else ''}")
        ax.set_xlabel("goodness / θ")
        if i == 0:
            ax.set_ylabel("share (%)")
    top.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3, handlelength=1.5)
    ax = bottom.subplots()
    part = "val" if "val" in run.lines[0] else "train"
    shown = [line for line in run.lines if line["epoch"] <= epoch]
    for key, text, color in (("acc", "by goodness", style.FF), ("softmax_acc", "by the softmax", style.NEG)):
        error = [100 * (1 - line[part][key]) for line in shown]
        ax.plot([line["epoch"] for line in shown], np.maximum(error, 0.1), color=color, label=text)
    style.epoch_axis(ax, run.lines[-1]["epoch"])
    ax.set_yscale("log")
    ax.set_ylim(0.5, 100)
    ax.set_yticks([1, 2, 5, 10, 20, 50], [1, 2, 5, 10, 20, 50])
    ax.minorticks_off()
    ax.set_ylabel(f"{'validation' if part == 'val' else 'training'} error (%)")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    fig.suptitle(
        f"Forward-Forward on {run.dataset['name']}: after epoch {epoch} of {run.config['n_epochs']}", fontsize=13
    )
    return style.pixels(fig)


def main():
    parser = style.Parser(__doc__)
    parser.add_run()
    parser.add_argument("--fps", type=float, default=4, help="frames per second (default: 4)")
    parser.add_argument("--out", metavar="FILE", help="the GIF (default: RUN/figures/training.gif)")
    options = parser.parse_run()
    if not 0.1 <= options.fps <= 50:
        parser.error("--fps must be from 0.1 to 50")
    run = Run(options.run)
    files = sorted(run.folder.glob("snapshots/epoch-*.npz"))
    if run.script != "train" or not files:
        raise record.RecordError(f"{run.folder} has no snapshots of train.py to draw a film from")
    snapshots = [(int(path.stem.partition("-")[2]), record.load_arrays(path)[0]) for path in files]
    every = [
        np.stack([arrays["goodness"] for _, arrays in snapshots])[:, i] for i in range(len(snapshots[0][1]["goodness"]))
    ]
    ranges = [np.percentile(g / threshold(run, i), [0.1, 99.99]) for i, g in enumerate(every)]
    out = Path(options.out) if options.out else run.folder / "figures" / "training.gif"
    style.folder(out.parent)
    data, reduced = gif.fit([frame(run, snapshots, k, ranges) for k in range(len(snapshots))], options.fps)
    out.write_bytes(data)
    print(f"film: {out} ({len(snapshots)} frames, {len(data) / 1e6:.2f} MB{reduced})")


if __name__ == "__main__":
    style.run(main)
