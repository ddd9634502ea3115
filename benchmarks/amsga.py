"""What AMSGA's parts cost: an epoch with all four, with each alone and with none, on one architecture.

The paper says "without increasing compute" and prints 1.08 and 1.12 times the baseline's time per epoch, on networks of
different sizes (its Table V). Here all have the same layers, images and batches, and take turns.

    python benchmarks/amsga.py [--sizes 600,600,500] [--batch 500] [--threads 2]
"""

import argparse
import importlib.util
import sys

from timing import start, timed  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common import ROOT
from common.data import datasets
from common.split import pixels

spec = importlib.util.spec_from_file_location("ff_mnist_amsga", ROOT / "ff_mnist" / "amsga.py")
amsga = sys.modules["ff_mnist_amsga"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(amsga)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--sizes", default="600,600,500")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--batches", type=int, default=10, help="steps that are timed at a time")
    parser.add_argument("--repeats", type=int, default=15, help="turns whose median is printed")
    parser.add_argument("--dataset", default="auto")
    parser.add_argument("--data-dir")
    args = parser.parse_args()
    start(args.threads)
    ds = datasets.load(args.dataset, args.data_dir, auto="mnist")
    n = args.batch * args.batches
    x, labels = pixels(ds.x_train[:n])[:, 10:], ds.y_train[:n].astype(np.int64)
    parts = list(amsga.BASELINE)
    ways = {"none": amsga.BASELINE, "all four": {}} | {f"{part} alone": amsga.BASELINE | {part: True} for part in parts}
    functions = []
    for settings in ways.values():
        cfg = amsga.Config(sizes=args.sizes, **settings)
        net, rng = amsga.Net(cfg, x.shape[1] + 10, 10, np.random.default_rng(0)), np.random.default_rng(1)

        def epoch(cfg=cfg, net=net, rng=rng):
            for i in range(0, n, args.batch):
                amsga.ff_step(net, x[i : i + args.batch], labels[i : i + args.batch], cfg, rng, 10, 0.5)

        functions.append(epoch)
    seconds = timed(functions, repeats=args.repeats)
    print(f"{args.sizes} units, batches of {args.batch}: milliseconds a step, and times the way without any part")
    for name, s in zip(ways, seconds, strict=True):
        print(f"  {name:16s} {1000 * s / args.batches:8.2f} ms   {s / seconds[0]:.2f} x")


if __name__ == "__main__":
    main()
