"""Images per second of Hyperspherical Forward-Forward, which answers in one pass, against a pass for every class.

All ways take 200 rows at a time.

    HFF                one pass through the network; the cosines to all prototypes are one product per layer
    FF, K passes       every image with every label through the whole network: K forward passes
    FF, shared         the same answers, the image's part of the first layer computed once (common/label_input.py)

Same hidden layers, same images; the two FF ways must agree before anything is timed. Then one training step of each, of
100 images. Weights are as drawn: time does not depend on what was learnt, but for zeros.

    python benchmarks/hff.py [--sizes 2000,2000,2000] [--inputs 3072] [--threads 2]
"""

import argparse
import importlib.util
import sys

from timing import start, timed  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common import ROOT
from common.evaluate import in_batches
from common.goodness import normalise
from common.labels import one_hot


def script(name):
    spec = importlib.util.spec_from_file_location(f"ff_mnist_{name}", ROOT / "ff_mnist" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hff, train = script("hff"), script("train")


def whole_passes(net, pixels, K):
    """Goodness of every label, a whole forward pass for each -> (n_layers, N, K)."""
    found = []
    for rows in in_batches(len(pixels), 200):
        of_labels = []
        for k in range(K):
            codes = one_hot(np.full(len(pixels[rows]), k), K)
            h, g = normalise(np.concatenate([codes, pixels[rows]], axis=1)), []
            for layer in (net.layers[0].dense, *net.layers[1:]):
                y, _ = layer.forward(h, train=False)
                g.append((y * y).sum(axis=1))
                h = normalise(y)
            of_labels.append(np.stack(g))
        found.append(np.stack(of_labels, axis=2))
    return np.concatenate(found, axis=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--sizes", default="2000,2000,2000")
    parser.add_argument("--inputs", type=int, default=3072, help="numbers of an image")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--images", type=int, default=1000, help="images of the prediction that is timed")
    args = parser.parse_args()
    start(args.threads)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((args.images, args.inputs)).astype(np.float32)
    for K in args.classes:
        of_hff, of_ff = hff.Config(sizes=args.sizes), train.Config(sizes=args.sizes, negatives="uniform")
        one, two = hff.Net(of_hff, args.inputs, K, rng), train.Net(of_ff, args.inputs, K, rng)
        pixels, labels = np.ascontiguousarray(x[:, K:]), rng.integers(0, K, 100)
        some = pixels[:40]
        worst = np.abs(whole_passes(two, some, K) / train.goodness_of_labels(two, some, of_ff, K) - 1).max()
        print(f"\n{K} classes, {args.inputs} inputs, {args.sizes} units; FF's two ways differ by {worst:.1e}")
        assert worst < 1e-4, "the two ways to score labels disagree"
        ways = {
            "HFF, one pass": lambda one=one: hff.scores_of(one, x),
            "FF, a pass per class": lambda two=two, p=pixels, K=K: whole_passes(two, p, K),
            "FF, shared first layer": lambda two=two, p=pixels, K=K, c=of_ff: train.goodness_of_labels(two, p, c, K),
        }
        seconds = timed(list(ways.values()), repeats=3)
        for name, s in zip(ways, seconds, strict=True):
            print(f"  {name:23s} {len(x) / s:9.0f} images/s   HFF is {s / seconds[0]:6.1f} x as fast")
        steps = {
            "HFF": lambda one=one, y=labels, c=of_hff: hff.hff_step(one, x[:100], y, c, rng),
            "FF": lambda two=two, y=labels, c=of_ff, K=K, p=pixels: train.ff_step(two, p[:100], y, c, rng, K),
        }
        seconds = timed(list(steps.values()), repeats=10)
        for name, s in zip(steps, seconds, strict=True):
            print(f"  a training step of {name:4s} {1000 * s:9.1f} ms for 100 images   {s / seconds[0]:.2f} x HFF's")


if __name__ == "__main__":
    main()
