"""LocallyConnected2d's kernels against the plain path, PyTorch and the machine's sgemm rate.

The sgemm (2048 x 2048 x 2048) takes turns with the kernels, so that a share compares the same minutes of the machine.
Everything that a training step pays is counted: packing the images, allocating and writing the result, masking by the
ReLU. The result is checked against float64 before anything is timed.

    python benchmarks/local2d.py [--threads 2]
"""

import argparse

from timing import sgemm, start, timed, worst  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common.local2d import LocallyConnected2d

SHAPES = [("RF 11,  3->8", (32, 32, 3), 11, 8), ("RF  5,  8->8", (22, 22, 8), 5, 8),
          ("RF  5, 16->16", (22, 22, 16), 5, 16), ("RF 11,  3->3", (32, 32, 3), 11, 3)]  # fmt: skip


def torch_step(W, x, dz, threads):
    """The same products as one batched matmul per layer in PyTorch -> forward and weight gradient, or None."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    OH, OW, rf, _, C, O = W.shape
    w, x = torch.from_numpy(W).reshape(OH * OW, -1, O), torch.from_numpy(np.ascontiguousarray(x))
    dz = torch.from_numpy(np.ascontiguousarray(dz)).reshape(len(dz), OH * OW, O).permute(1, 0, 2)

    def patches():
        p = x.unfold(1, rf, 1).unfold(2, rf, 1)  # (B, OH, OW, C, rf, rf)
        return p.permute(1, 2, 0, 4, 5, 3).reshape(OH * OW, len(x), -1)

    kept = patches()
    return lambda: torch.bmm(patches(), w).relu(), lambda: torch.bmm(kept.transpose(1, 2), dz)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0)
    threads, _ = start(parser.parse_args().threads)
    product, product_flop = sgemm(2048)
    print("share of sgemm (times faster than the plain path; than PyTorch)      kernel ms   GFLOP/s   sgemm GFLOP/s")
    for name, shape, rf, channels in SHAPES:
        for B in (64, 128):
            rng = np.random.default_rng(0)
            layer = LocallyConnected2d(shape, channels, rf, rng)
            exact = LocallyConnected2d(shape, channels, rf, rng, dtype=np.float64)
            exact.params = {k: p.astype(np.float64) for k, p in layer.params.items()}
            x = rng.standard_normal((B, *shape), dtype=np.float32)
            if shape[2] > 3:  # the activities of a layer below arrive with the batch innermost in memory
                x = np.ascontiguousarray(x.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2)
            y, cache = layer.forward(x)
            dy = 0.01 * y  # same shape and memory order as y, zero where the ReLU is off
            y64, cache64 = exact.forward(np.float64(x))
            dW64 = exact.backward(np.float64(dy), cache64)[1]["W"]
            assert worst(y, y64) < 1e-5 and worst(layer.backward(dy, cache)[1]["W"], dW64) < 1e-5, "wrong result"
            dx64 = exact.backward(np.float64(dy), cache64, need_dx=True)[0]
            assert worst(layer.backward(dy, cache, need_dx=True)[0], dx64) < 1e-5, "wrong input gradient"

            plain, plain_x = LocallyConnected2d(shape, channels, rf, rng), np.ascontiguousarray(x)
            patches = plain._patches(plain_x)
            W = layer.params["W"].reshape(*patches.shape[::2], -1)
            dz = np.ascontiguousarray(dy.reshape(B, len(W), -1).transpose(1, 0, 2))  # (OH*OW, B, O)
            functions = [
                lambda: layer.forward(x),
                lambda: layer.backward(dy, cache),
                lambda: np.maximum(np.matmul(plain._patches(plain_x), W), 0),
                lambda: np.matmul(patches.transpose(0, 2, 1), dz),
                *(torch_step(layer.params["W"], x, dy, threads) or ()),
            ]
            rate, *seconds = timed([product, *functions[:2]], repeats=15, calls=5)
            rate = product_flop / rate
            seconds += list(timed(functions[2:], repeats=3))
            flop = 2 * layer.params["W"].size * B
            for i, what in enumerate(("forward", "weight gradient")):
                share = flop / seconds[i] / rate
                versus = ", ".join(f"{s / seconds[i]:5.1f}x" for s in seconds[2 + i :: 2])
                print(
                    f"{name}  batch {B:3d}  {what:15s}  {100 * share:3.0f} %  ({versus})   {1e3 * seconds[i]:7.2f}"
                    f"   {flop / seconds[i] / 1e9:5.0f}   {rate / 1e9:5.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
