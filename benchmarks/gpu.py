"""The GPU path: right first, then fast. Kernels against float64, and steps against PyTorch on the same GPU.

    parity       convolution and what blocks measure and hand on, norm by norm: 1e-5 in float32, 1e-3 with TF32
    ff_cnn       a training step of VGG8, DTG-FF and backpropagation, as ff_cnn/train.py on CUDA takes it (recorded
                 once, then replayed), against the same in PyTorch (eager, TF32, the faster of both memory layouts)
    ff_mnist     an epoch of train.py, 4 x 2000 units; a step of hff.py and dtg_mlp.py
    ff_cifar_lc  an epoch of the default run and of its BP twin

The images are not changed at random here, and the same batch comes again and again: PyTorch loads nothing either.

    python benchmarks/gpu.py [--width 1] [--batch 128] [--steps 50]
"""

import argparse
import importlib.util
import sys
import time
from types import SimpleNamespace

from timing import worst  # before NumPy, see common/__init__.py

# isort: split
import cnn_step
import numpy as np
from cnn_step import cnn

from common import ROOT, arrays, cli, pool, runs
from common.conv import Conv2d
from common.data import datasets
from common.split import Split


def seconds_of(xp, f, n):
    """Median seconds of f(), once the GPU has done it."""
    found = []
    for _ in range(n):
        xp.cuda.Device().synchronize()
        begin = time.perf_counter()
        f()
        xp.cuda.Device().synchronize()
        found.append(time.perf_counter() - begin)
    return float(np.median(found))


def parity(xp):
    """Norm-wise differences from float64, asserted."""
    from common import kernels_gpu

    rng = np.random.default_rng(0)
    for name, on, most in (("float32", False, 1e-5), ("TF32", True, 1e-3)):
        kernels_gpu.tf32(on)
        ours, exact = (Conv2d(64, 96, np.random.default_rng(0), dtype=t) for t in (np.float32, np.float64))
        exact.params = {k: p.astype(np.float64) for k, p in ours.params.items()}
        arrays.move(xp, ours.params)
        x = rng.standard_normal((8, 16, 16, 64))
        y64, cache64 = exact.forward(x)
        y, cache = ours.forward(xp.asarray(x.astype(np.float32)))
        dy = rng.standard_normal(y64.shape) * (abs(y64) > 1e-2)
        dx64, grads64 = exact.backward(dy, cache64, need_dx=True)
        dx, grads = ours.backward(xp.asarray(dy.astype(np.float32)), cache, need_dx=True)
        pairs = {"y": (y, y64), "dx": (dx, dx64), "dW": (grads["W"], grads64["W"]), "db": (grads["b"], grads64["b"])}
        z, layer = rng.standard_normal((8, 16, 16, 64)), pool.HandOn(2, dropout=0.1)
        pairs["hand on"] = layer.forward(xp.asarray(z.astype(np.float32)), key=3)[0], layer.forward(z, key=3)[0]
        found = {k: worst(arrays.host(a), b) for k, (a, b) in pairs.items()}
        print(f"{name:8s} " + "  ".join(f"{k} {v:.1e}" for k, v in found.items()), flush=True)
        assert max(found.values()) < most, f"wrong result with {name}"


class Batches:
    """Stands in for train.Split: every step sees one batch of images that are on the GPU already."""

    def __init__(self, x, labels, n):
        self.x, self.labels, self.train = x, labels, (range(n * len(x)),)

    def changed(self, rows, cfg, rng):
        return self.x, self.labels


def steps(xp, torch, credit, args):
    rng = np.random.default_rng(0)
    cfg = cnn.Config(width=args.width, batch_size=args.batch, credit=credit, weight_decay=0.0)
    x = rng.standard_normal((args.batch, 32, 32, 3)).astype(np.float32)
    labels = rng.integers(0, 10, args.batch)
    net = cnn.Net(cfg, (32, 32, 3), 10, np.random.default_rng(0))
    twins = []
    if torch:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        layouts = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}
        twins = [(name, cnn_step.Theirs(net, cfg, layout, torch, "cuda")) for name, layout in layouts.items()]
    runs.move(xp, {"net": net.layers})
    data = Batches(xp.asarray(x), xp.asarray(labels), args.steps)
    cnn.train_epoch(net, data, rng, cfg, 1)  # everything is compiled and recorded
    found = {"ours": seconds_of(xp, lambda: cnn.train_epoch(net, data, rng, cfg, 2), 3) / args.steps}
    for name, twin in twins:
        given = twin.images(x), torch.from_numpy(labels).to("cuda")

        def some(twin=twin, given=given):
            for _ in range(args.steps):
                twin.step(*given)
            torch.cuda.synchronize()

        some()
        found[f"PyTorch, {name}"] = seconds_of(xp, some, 3) / args.steps
    what = "DTG-FF" if credit == "local" else "backpropagation, one head"
    print(f"\n{what}, VGG8 x {args.width:g}, batch {args.batch}")
    for name, s in found.items():
        print(
            f"  {name:24s} {1e3 * s:8.2f} ms   {args.batch / s:8.0f} images/s   {s / found['ours']:5.2f} x ours",
            flush=True,
        )


def script(path):
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), ROOT / f"{path}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(n, shape):
    """A data set of n images that are nothing."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (n, *shape)).astype(np.uint8), rng.integers(0, 10, n).astype(np.uint8)
    return SimpleNamespace(x_train=x, y_train=y, x_test=x[:100], y_test=y[:100], class_names=list("0123456789"))


def mnist_epoch(xp, data_dir):
    train = script("ff_mnist/train")
    cfg = train.Config(validation=0)
    data = Split(datasets.load("auto", data_dir, auto="mnist", quiet=True), cfg)
    net, rng = train.Net(cfg, data.size, 10, np.random.default_rng(1)), np.random.default_rng(0)
    data.to(xp)
    runs.move(xp, net.parts)
    train.train_epoch(net, data, rng, cfg, 1)
    s = seconds_of(xp, lambda: train.train_epoch(net, data, rng, cfg, 2), 1)
    print(f"\nff_mnist/train.py, 4 x 2000 units, an epoch of {len(data.train[0])} images: {s:.2f} s", flush=True)


def dense_epoch(xp, name, settings, n=20000):
    """An epoch of hff.py or dtg_mlp.py on images like CIFAR-10's, and the share of it that is matrix products."""
    module = script(f"ff_mnist/{name}")
    cfg = module.Config(**settings, validation=0)
    data = Split(noise(n, (32, 32, 3)), cfg)
    net, rng = module.Net(cfg, data.size, 10, np.random.default_rng(1)), np.random.default_rng(0)
    data.to(xp)
    runs.move(xp, net.parts)
    module.train_epoch(net, data, rng, cfg, 1)
    s = seconds_of(xp, lambda: module.train_epoch(net, data, rng, cfg, 2), 2) / (n // cfg.batch_size)
    print(f"\nff_mnist/{name}.py, {cfg.sizes} units, batch {cfg.batch_size}: {1e3 * s:.2f} ms a step", flush=True)


def lc_epoch(xp, n=10000):
    """An epoch of ff_cifar_lc/train.py, all ten labels, and of its BP twin."""
    lc = script("ff_cifar_lc/train")
    cfg = lc.Config(validation=0, train_subset=n, eval_subset=100)
    split, (ff, bp, rngs) = lc.Split(noise(n, (32, 32, 3)), cfg), lc.networks(cfg, (32, 32, 3), 10)
    split.to(xp)
    runs.move(xp, {"ff": ff, "bp": bp})
    lc.train_epoch(ff, bp, split, rngs, cfg, 10, 1)
    logs = lc.train_epoch(ff, bp, split, rngs, cfg, 10, 2)
    times = "  ".join(f"{name} {n / log['seconds']:.0f} images/s" for name, log in zip(("FF", "BP"), logs, strict=True))
    print(f"\nff_cifar_lc/train.py, two layers of {cfg.channels} channels: {times}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=50, help="steps that are timed at a time")
    parser.add_argument("--data-dir")
    args = parser.parse_args()
    xp = arrays.module("cuda")
    name = xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)["name"].decode()
    print(f"{name}, CuPy {xp.__version__}, NumPy {np.__version__}")
    parity(xp)
    try:
        import torch

        print(f"PyTorch {torch.__version__}")
    except ImportError:
        torch = None
    for credit in ("local", "bp"):
        steps(xp, torch, credit, args)
    mnist_epoch(xp, args.data_dir)
    dense_epoch(xp, "hff", {"sizes": "2000,2000,2000", "jitter": 4, "flip": True})
    dense_epoch(xp, "dtg_mlp", {"sizes": "2048,2048,2048,2048", "jitter": 4, "flip": True})
    lc_epoch(xp)


if __name__ == "__main__":
    cli.run(main)
