"""What the blocks of a trained ff_cnn network say about the class: information, agreement, temperatures.

Idea
    A block's goodness as one number says little; the same goodness by channel and part says a lot, and the blocks do
    not all say the same. That is why a block is read by a vector and answers are summed. (DTG-FF, arXiv 2606.06539,
    section 3.1 and App. C)

Symbols, of each block, on the test images
    g     (N,)        scalar goodness, the mean of z^2 over the block
    u     (N, n n O)  goodness by part and channel
    f     (N, O)      mean of z over the map (GAP)
    I(g; Y)           in bits: by histograms of 50, 100, 200 and 500 bins, and by nearest neighbours (k = 4), which
                      needs scikit-learn (--no-ksg does without)
    I(u; Y), I(f; Y)  lower bounds: Fano's inequality on the error of a linear probe
    any block right   accuracy of an oracle that knows which block to ask
    What blocks answer is left out for a network that learned from one head on top (--credit bp): nobody taught them.

Run
    python ff_cnn/diagnose.py runs/ff_cnn/RUN           a finished run, with its checkpoint
    python viz/diagnose.py runs/ff_cnn/RUN              what that wrote, as pictures, beside the paper's numbers
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, record, runs  # before NumPy, see common/__init__.py

# isort: split
import numpy as np
import train

from common.evaluate import in_batches
from common.information import fano, histogram, ksg, probe_error

BINS = (50, 100, 200, 500)


def load(folder, data_dir, threads=0):
    """A run folder -> its settings, data and trained network. Raises UsageError, RecordError, DataError."""
    lines = record.read(folder)
    if "backbone" not in lines[0].get("config", {}) or "credit" not in lines[0]["config"]:
        raise cli.UsageError(f"{folder} is no run of ff_cnn/train.py")
    cfg = train.Config(**lines[0]["config"])
    ds = runs.images("cifar10")(lines[0]["dataset"]["name"], cfg, argparse.Namespace(data_dir=data_dir))
    if ds.sha256 != lines[0]["dataset"]["sha256"]:
        raise cli.UsageError(f"{folder} was trained on other data: {ds.source} is not what its record names")
    data = train.Split(ds, cfg)
    net = train.Net(cfg, data.shape, data.n_classes, np.random.default_rng([cfg.seed, 0]))
    found, _ = record.load_arrays(Path(folder) / "checkpoint.npz")
    record.restore("net", *net.layers, found)
    return cfg, data, net


def measured(net, x):
    """x (N, H, W, C) -> per block g (N,), u (N, n n O), f (N, O), psi (N, K)."""
    found = [([], [], [], []) for _ in net.blocks]
    for rows in in_batches(len(x), 250):
        h = net.inputs(x[rows])
        for block, lists in zip(net.blocks, found, strict=True):
            z, _ = block.conv.forward(h, train=False)
            psi, f, (y, *_) = block.read(z, train=False)  # y: z, or BatchNorm of it, whichever is squared
            (u, _), _ = block.parts.forward(y)
            for values, each in zip(lists, ((y * y).mean(axis=(1, 2, 3)), u.reshape(len(u), -1), f, psi), strict=True):
                values.append(each)
            h, _ = block.hand_on.forward(z, train=False)
    return [tuple(np.concatenate(values) for values in lists) for lists in found]


def diagnose(net, images, labels, data, cfg, neighbours=True):
    """uint8 images (N, H, W, C), labels (N,) -> everything above, as a dict of lists over blocks."""
    K = data.n_classes
    blocks = measured(net, data.floats(images))
    line = {
        "dim": [u.shape[1] for _, u, _, _ in blocks],
        "histogram": {bins: [histogram(g, labels, bins) for g, *_ in blocks] for bins in BINS},
        "vector": [fano(probe_error(u, labels, K), K) for _, u, _, _ in blocks],
        "gap": [fano(probe_error(f, labels, K), K) for _, _, f, _ in blocks],
        "T": [block.T for block in net.blocks],
    }
    if cfg.credit != "bp":
        line |= train.of_blocks(np.stack([psi for *_, psi in blocks]), labels)
    if neighbours:
        line["ksg"] = [ksg(g, labels) for g, *_ in blocks]
    return line


def main():
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run folder, with record.jsonl and checkpoint.npz")
    parser.add_argument("--data-dir", metavar="DIR", help="archives you already have (also: environment FF_DATA)")
    parser.add_argument("--images", type=int, default=0, metavar="int", help="test images (default: all)")
    parser.add_argument("--threads", type=int, default=0, metavar="int", help="processor threads (default: all)")
    parser.add_argument("--ksg", action=argparse.BooleanOptionalAction, default=True, help="estimates by neighbours")
    options = parser.parse_args()
    cli.set_threads(options.threads)
    cfg, data, net = load(options.run, options.data_dir)
    images, labels = (part[: options.images or None] for part in data.test)
    found = diagnose(net, images, labels, data, cfg, options.ksg)
    path, run = Path(options.run) / "diagnosis.jsonl", record.read(options.run)[0]
    line = {"command": record.command(), "commit": record.commit(), "trained_by": run["command"]}
    line |= {"config": run["config"], "dataset": run["dataset"], "final": {"images": len(labels)} | found}
    path.write_text(json.dumps(line, default=float) + "\n", encoding="utf-8")
    print("block   dim  I(g;Y) 50..500 bins           ksg  I(u;Y)>=  I(GAP;Y)>=  alone %     T")
    for i, dim in enumerate(found["dim"]):
        bins = " ".join(f"{found['histogram'][b][i]:5.2f}" for b in BINS)
        neighbours = f"{found['ksg'][i]:5.2f}" if "ksg" in found else "    –"
        alone = f"{100 * found['layer_acc'][i]:8.1f}" if "layer_acc" in found else "       –"
        print(f"{i:5d} {dim:5d}  {bins}      {neighbours} {found['vector'][i]:9.2f} {found['gap'][i]:11.2f}"
              f" {alone} {found['T'][i]:5.2f}")  # fmt: skip
    if "disagreement" not in found:
        print(f"-> {path}")
        return
    apart = np.array(found["disagreement"])[~np.eye(len(found["dim"]), dtype=bool)]
    print(f"sum {100 * found['sum_acc']:.1f} %, any block right {100 * found['any_acc']:.1f} %, "
          f"two blocks differ on {100 * apart.mean() if len(apart) else 0:.1f} %   -> {path}")  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
