"""Conv2d's kernels against PyTorch and the machine's sgemm rate, over the seven layer shapes of VGG8.

Forward with bias and ReLU, and the weight gradient behind a ReLU that masks it, which is what a Forward-Forward step
needs. PyTorch gets its own layouts: channels last for it too, or channels first, whichever is faster, and its ReLU in
place. Before anything is timed, the first images' results are checked against float64, and the whole batch's against
PyTorch's; ours, PyTorch's and the sgemm take turns. Shares of sgemm count the zeros around an image as work, which ours
leaves out: they may exceed 100 %.

    python benchmarks/conv.py [--width 1] [--batch 32 128] [--threads 2]
"""

import argparse

from timing import sgemm, start, timed, worst  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common.conv import Conv2d

SHAPES = [(32, 3, 128), (32, 128, 256), (16, 256, 256), (16, 256, 512), (8, 512, 512), (4, 512, 512), (2, 512, 512)]


def theirs(layer, x, y, dy, threads):
    """PyTorch -> for each memory layout, functions of forward and weight gradient; or nothing without PyTorch."""
    try:
        import torch
    except ImportError:
        return []
    torch.set_num_threads(threads)
    found = []
    for layout in (torch.channels_last, torch.contiguous_format):
        arrays = (torch.from_numpy(a.transpose(0, 3, 1, 2)) for a in (x, y, dy))
        images, on, d = (a.contiguous(memory_format=layout) for a in arrays)
        W = torch.from_numpy(layer.params["W"].transpose(3, 2, 0, 1)).contiguous(memory_format=layout)
        b = torch.from_numpy(layer.params["b"])

        def forward(images=images, W=W, b=b):
            return torch.nn.functional.conv2d(images, W, b, padding=1).relu_()

        def backward(images=images, W=W, d=d, on=on):
            dz = torch.ops.aten.threshold_backward(d, on, 0)
            sides = [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, True]
            return torch.ops.aten.convolution_backward(dz, images, W, [len(W)], *sides)[1]

        assert worst(forward().numpy().transpose(0, 2, 3, 1), y) < 1e-4, "the two disagree"
        got = backward().numpy().transpose(2, 3, 1, 0)
        assert worst(got, layer.backward(dy, layer.forward(x)[1])[1]["W"]) < 1e-4, "the two disagree"
        found.append((forward, backward))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--width", type=float, default=1.0, help="times VGG8's channels")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    threads, _ = start(args.threads)
    product, product_flop = sgemm(2048)
    for B in args.batch:
        ratios = []
        print(f"\nbatch {B}     share of sgemm: forward, weight gradient      times PyTorch's speed   milliseconds")
        for side, full_in, full_out in SHAPES:
            C, O = full_in if full_in == 3 else round(args.width * full_in), round(args.width * full_out)
            rng = np.random.default_rng(0)
            layer, exact = (Conv2d(C, O, np.random.default_rng(0), dtype=t) for t in (np.float32, np.float64))
            x = rng.standard_normal((B, side, side, C), dtype=np.float32)
            y, cache = layer.forward(x)
            dy = rng.standard_normal(y.shape, dtype=np.float32)
            exact.params = {k: p.astype(np.float64) for k, p in layer.params.items()}
            some = slice(0, 2)  # enough to tell a wrong kernel, and float64 is slow
            y64, cache64 = exact.forward(np.float64(x[some]))
            dW = layer.backward(dy[some], layer.forward(x[some])[1])[1]["W"]
            assert worst(y[some], y64) < 1e-5 and worst(dW, exact.backward(dy[some], cache64)[1]["W"]) < 1e-5
            ways = theirs(layer, x, y, dy, threads)
            ours = [lambda l=layer, x=x: l.forward(x), lambda l=layer, d=dy, c=cache: l.backward(d, c)]
            seconds = timed([product, *ours, *(f for way in ways for f in way)], repeats=args.repeats)
            rate, forward, backward = product_flop / seconds[0], *seconds[1:3]
            flop = 2 * B * side * side * 9 * C * O
            line = f"{side:2d} x {side:<2d} {C:4d} -> {O:<4d}"
            shares = "".join(f"{100 * flop / s / rate:6.0f} %" for s in (forward, backward))
            versus = "", ""
            if ways:
                best = np.min(seconds[3:].reshape(-1, 2), axis=0)
                ratios.append((best[0] / forward, best[1] / backward))
                versus = tuple(f"{r:6.2f}" for r in ratios[-1])
            print(
                f"{line:30s}{shares}            {versus[0]}{versus[1]}      {1e3 * forward:8.2f} {1e3 * backward:8.2f}"
            )
        if ratios:
            mean = np.exp(np.log(ratios).mean(axis=0))
            print(f"geometric mean, times PyTorch's speed: forward {mean[0]:.2f}, weight gradient {mean[1]:.2f}")


if __name__ == "__main__":
    main()
