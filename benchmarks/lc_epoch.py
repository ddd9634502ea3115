"""One Forward-Forward epoch of ff_cifar_lc, and ten-label prediction, against the plain path and PyTorch.

    plain path   materialised patches, one np.matmul per layer over all locations, positives and negatives in one batch
                 of 2B rows, Adam with temporaries; prediction runs every label on its own
    PyTorch      the same algorithm: unfold, torch.bmm, autograd inside each layer, fused Adam, the same threads
    ours         numba kernels, the pixels that both labels share computed once, Adam in one pass over memory

The three start from the same weights and must agree after a few steps before anything is timed. Images are random: no
data set is needed, and the arithmetic does not depend on them.

    python benchmarks/lc_epoch.py [--threads 2] [--batches 157] [--rf 11,5] [--channels 8]
"""

import argparse
import contextlib
import copy
import sys
import time

from timing import start, timed, worst  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common import ROOT, goodness, label_sharing, local2d, optim
from common.evaluate import in_batches
from common.labels import write_slot, wrong_labels

sys.path.insert(0, str(ROOT / "ff_cifar_lc"))
import train


@contextlib.contextmanager
def plain_path():
    """Inside, float32 arrays have no kernels: everything takes the reference formulas."""
    modules = local2d, label_sharing, optim, goodness
    kept = [m.kernels for m in modules]
    for m in modules:
        m.kernels = lambda x: None
    try:
        yield
    finally:
        for m, kernels in zip(modules, kept, strict=True):
            m.kernels = kernels


def torch_network(layers, cfg, threads):
    """The same network in PyTorch -> step(images, labels, negatives), goodness(images), weights(); or None."""
    try:
        import torch
        from torch.nn.functional import softplus
    except ImportError:
        return None
    torch.set_num_threads(threads)
    params = []
    for layer in layers:
        OH, OW, rf, _, C, O = layer.params["W"].shape
        # torch's unfold puts the channel before the window: (OH*OW, C, ky, kx, O)
        W = torch.from_numpy(layer.params["W"].transpose(0, 1, 4, 2, 3, 5).reshape(OH * OW, -1, O).copy())
        b = torch.from_numpy(layer.params["b"].reshape(OH * OW, 1, O).copy())
        params.append((W.requires_grad_(), b.requires_grad_(), rf, OH, OW, O))
    opts = [torch.optim.Adam([W, b], lr=cfg.lr, fused=True) for W, b, *_ in params]

    def forward(h, W, b, rf, OH, OW, O):  # h (N, H, W, C)
        patches = h.unfold(1, rf, 1).unfold(2, rf, 1).permute(1, 2, 0, 3, 4, 5).reshape(OH * OW, len(h), -1)
        return torch.baddbmm(b, patches, W).relu().reshape(OH, OW, len(h), O).permute(2, 0, 1, 3)

    def step(images, labels, negatives):
        B = len(images)
        x = np.concatenate([images, images])
        h = torch.from_numpy(write_slot(x, np.concatenate([labels, negatives]), cfg.slot_rows, 10))
        t = torch.ones(2 * B)
        t[B:] = -1
        for p, opt in zip(params, opts, strict=True):
            y = forward(h, *p)
            g = y.square().mean(dim=(1, 2, 3))
            opt.zero_grad()
            softplus(-t * (g - cfg.threshold)).mean().backward()
            opt.step()
            h = (y / (g + 1e-8).sqrt()[:, None, None, None]).detach()

    def goodness_of_labels(images):
        out = []
        with torch.no_grad():
            for label in range(10):
                x = write_slot(images.copy(), np.full(len(images), label), cfg.slot_rows, 10)
                h, per_layer = torch.from_numpy(x), []
                for p in params:
                    y = forward(h, *p)
                    per_layer.append(y.square().mean(dim=(1, 2, 3)))
                    h = y / (per_layer[-1] + 1e-8).sqrt()[:, None, None, None]
                out.append(torch.stack(per_layer))
        return torch.stack(out, dim=2).numpy()

    def weights():
        return [
            p[0].detach().numpy().reshape(p[3], p[4], -1, p[2], p[2], p[5]).transpose(0, 1, 3, 4, 2, 5) for p in params
        ]

    return step, goodness_of_labels, weights


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--batches", type=int, default=157, help="training steps that make an epoch (157 x 64: 10 000 images)"
    )
    parser.add_argument("--rf", default="11,5")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--n-layers", type=int, default=2)
    args = parser.parse_args()
    threads, sgemm = start(args.threads)
    cfg = train.Config(rf=args.rf, channels=args.channels, n_layers=args.n_layers)
    B, rng = cfg.batch_size, np.random.default_rng(0)
    images = rng.random((args.batches * B, 32, 32, 3), dtype=np.float32) - np.float32(0.5)
    labels = rng.integers(0, 10, len(images))
    negatives = wrong_labels(labels, 10, rng)

    def network():
        layers = train.build(cfg, (32, 32, 3), np.random.default_rng(1))
        return layers, [optim.Adam(layer.params, cfg.lr) for layer in layers]

    def epoch(step, n=args.batches):
        begin = time.perf_counter()
        for rows in in_batches(n * B, B):
            step(images[rows], labels[rows], negatives[rows])
        return time.perf_counter() - begin

    ours, plain = network(), network()
    peer = torch_network(copy.deepcopy(ours[0]), cfg, threads)

    def our_step(x, y, n):
        train.ff_step(*ours, x, y, n, cfg, 10)

    def plain_step(x, y, n):
        with plain_path():
            train.ff_step(*plain, x, y, n, cfg, 10)

    # Adam divides by a gradient's own size, so roundings grow step by step: compare after few steps.
    epoch(our_step, 3), epoch(plain_step, 3)
    differences = [worst(a.params["W"], b.params["W"]) for a, b in zip(ours[0], plain[0], strict=True)]
    g = goodness_of(ours[0], images[:B], cfg)
    differences.append(np.abs(g / goodness_of(ours[0], images[:B], cfg, shared=False) - 1).max())
    if peer:
        epoch(peer[0], 3)
        differences += [worst(a.params["W"], w) for a, w in zip(ours[0], peer[2](), strict=True)]
        differences.append(np.abs(g / peer[1](images[:B]) - 1).max())
    print("relative differences:", ", ".join(f"{d:.1e}" for d in differences))
    assert max(differences) < 1e-4, "the implementations disagree"

    steps = [our_step, plain_step] + ([peer[0]] if peer else [])
    seconds = [[epoch(s) for s in steps] for _ in range(3)]
    seconds = np.median(seconds, axis=0)
    flop = sum(4 * layer.params["W"].size for layer in ours[0]) * 2 * len(images)  # forward and gradient, 2B rows
    shared = flop - sum(4 * ours[0][0].params["W"].size for _ in (0,)) * len(images)  # of which layer 0 needs half
    print(f"one FF epoch, {len(images)} images:")
    for name, s in zip(("ours", "plain path", "PyTorch"), seconds, strict=False):
        print(f"  {name:11s} {s:7.2f} s   {s / seconds[0]:5.1f} x ours   {len(images) / s:6.0f} images/s")
    print(f"  ours: {100 * shared / seconds[0] / sgemm:.0f} % of sgemm on the products it computes, "
          f"{100 * flop / seconds[0] / sgemm:.0f} % on those of the plain path")  # fmt: skip

    x = images[:2000]
    layers = ours[0]

    def one_pass():
        for rows in in_batches(len(x), 128):
            h = x[rows]
            for layer in layers:
                y, _ = layer.forward(h, train=False)
                g, _ = goodness.MeanSquare().forward(y)
                h = goodness.normalise(y, g)

    def all_labels():
        train.ff_goodness(layers, x, cfg, 10)

    def every_label_alone():
        with plain_path():
            train.ff_goodness(layers, x, cfg, 10)

    single, ten = timed([one_pass, all_labels], repeats=7)
    print(f"{len(x)} images: one pass {single:.3f} s, ten labels {ten:.3f} s = {ten / single:.2f} x one pass")
    others = [every_label_alone] + ([lambda: peer[1](x)] if peer else [])
    for name, s in zip(("plain path", "PyTorch"), timed(others, repeats=1), strict=False):
        print(f"  ten labels, {name}: {s:.2f} s = {s / ten:.1f} x ours")

    adam = optim.Adam({"W": layers[0].params["W"].copy()}, 0.01)
    grads = {"W": np.full_like(layers[0].params["W"], 0.1)}
    a, b = (np.zeros(64 << 20, np.uint8) for _ in range(2))
    step, copied = timed([lambda: adam.step(grads), lambda: np.copyto(a, b)], repeats=15)
    rate, copy_rate = 28 * grads["W"].size / step / 1e9, 2 * a.size / copied / 1e9
    print(f"Adam: {rate:.1f} GB/s (w, m, v read and written, g read); one-thread copy {copy_rate:.1f} GB/s")


def goodness_of(layers, images, cfg, shared=True):
    return label_sharing.goodness_of_labels(layers, images, cfg.slot_rows, 10, shared)


if __name__ == "__main__":
    main()
