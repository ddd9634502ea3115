"""One Forward-Forward epoch of ff_cifar_lc, and ten-label prediction, against the plain path and PyTorch.

    plain path   materialised patches, one np.matmul per layer over all locations, positives and negatives in one batch
                 of 2B rows, or ten labels one after the other; Adam with temporaries; prediction runs every label alone
    PyTorch      the same algorithm: unfold, torch.bmm, autograd inside each layer, fused Adam, the same threads
    ours         numba kernels, what the labels share computed once, Adam in one pass over memory

The three start from the same weights and must agree after a few steps before anything is timed. Images are random: no
data set is needed, and the arithmetic does not depend on them.

    python benchmarks/lc_epoch.py                                             the default: label map, all labels at once
    python benchmarks/lc_epoch.py --preset write-up                           the label in a slot, pairs
    [--threads 2] [--batches 157] [--rf 11,5] [--channels 16] [--n-layers 2]
"""

import argparse
import contextlib
import copy
import sys
import time
from dataclasses import replace
from functools import partial

from timing import start, timed, worst  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common import ROOT, goodness, label_map, label_sharing, local2d, optim
from common.evaluate import in_batches
from common.labels import write_slot, wrong_labels

sys.path.insert(0, str(ROOT / "ff_cifar_lc"))
import train


@contextlib.contextmanager
def plain_path():
    """Inside, float32 arrays have no kernels: everything takes the reference formulas."""
    modules = local2d, label_map, label_sharing, optim, goodness
    kept = [m.kernels for m in modules]
    for m in modules:
        m.kernels = lambda x: None
    try:
        yield
    finally:
        for m, kernels in zip(modules, kept, strict=True):
            m.kernels = kernels


def torch_network(layers, cfg, threads):
    """The same network in PyTorch -> step(images, labels, rng), goodness(images), weights(); or None."""
    try:
        import torch
        from torch.nn.functional import cross_entropy, softplus
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
    units = [torch.from_numpy(layer.params["U"].copy()).requires_grad_() for layer in layers if "U" in layer.params]
    opts = [torch.optim.Adam([*p[:2], *units[i : i + 1]], lr=cfg.lr, fused=True) for i, p in enumerate(params)]

    def linear(h, W, b, rf, OH, OW, O):  # h (N, H, W, C)
        patches = h.unfold(1, rf, 1).unfold(2, rf, 1).permute(1, 2, 0, 3, 4, 5).reshape(OH * OW, len(h), -1)
        return torch.baddbmm(b, patches, W).reshape(OH, OW, len(h), O).permute(2, 0, 1, 3)

    def forward(h, *p):
        return linear(h, *p).relu()

    def normalised(y):
        return y / (y.square().mean(dim=(1, 2, 3)) + 1e-8).sqrt()[:, None, None, None]

    def goodness_under(a, U):  # a (N, OH, OW, O) -> (N, 10)
        return torch.stack([(a + U[:, :, k]).relu().square().mean(dim=(1, 2, 3)) for k in range(10)], dim=1)

    def step(images, labels, rng):
        B = len(images)
        x = np.concatenate([images, images])
        negatives = wrong_labels(labels, 10, rng)
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

    def step_of_all_labels(images, labels, rng):
        h, labels = torch.from_numpy(images), torch.from_numpy(labels)
        for p, U, opt in zip(params, units, opts, strict=True):
            a = linear(h, *p)
            y = a.detach().relu()
            m = y.mean(dim=0)
            pull = cfg.peer * 2 * cfg.beta / y.numel() * (m - m.mean())
            opt.zero_grad()
            (cross_entropy(cfg.beta * goodness_under(a, U), labels) + (a * pull).sum()).backward()
            opt.step()
            h = normalised(y)

    def goodness_of_all_labels(images):
        h, g = torch.from_numpy(images), []
        with torch.no_grad():
            for p, U in zip(params, units, strict=True):
                a = linear(h, *p)
                g.append(goodness_under(a, U))
                h = normalised(a.relu())
        return torch.stack(g).numpy()

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

    if units:
        return step_of_all_labels, goodness_of_all_labels, weights
    return step, goodness_of_labels, weights


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--batches", type=int, default=157, help="training steps that make an epoch (157 x 64: 10 000 images)"
    )
    parser.add_argument("--preset", choices=["write-up"])
    parser.add_argument("--rf")
    parser.add_argument("--channels", type=int)
    parser.add_argument("--n-layers", type=int)
    args = parser.parse_args()
    threads, sgemm = start(args.threads)
    chosen = {k: v for k in ("rf", "channels", "n_layers") if (v := getattr(args, k)) is not None}
    cfg = train.Config(**train.PRESETS.get(args.preset, {}) | chosen | {"lr": 1e-4})
    B, rng = cfg.batch_size, np.random.default_rng(0)
    images = rng.random((args.batches * B, 32, 32, 3), dtype=np.float32) - np.float32(0.5)
    labels = rng.integers(0, 10, len(images))

    def network(cfg=cfg):
        layers = train.build(cfg, (32, 32, 3), 10, np.random.default_rng(1), label_units=cfg.label == "map")
        return layers, [optim.Adam(layer.params, cfg.lr) for layer in layers]

    def epoch(step, n=args.batches):
        rng, begin = np.random.default_rng(2), time.perf_counter()  # the same wrong labels for all
        for rows in in_batches(n * B, B):
            step(images[rows], labels[rows], rng)
        return time.perf_counter() - begin

    ours, plain = network(), network()
    peer = torch_network(copy.deepcopy(ours[0]), cfg, threads)

    def take_step(network, cfg, x, y, rng):
        (train.ff_step if cfg.neutral else train.ff_step_pairs)(*network, x, y, cfg, rng, 10)

    def our_step(x, y, rng):
        take_step(ours, cfg, x, y, rng)

    def plain_step(x, y, rng):
        with plain_path():
            take_step(plain, cfg, x, y, rng)

    # Adam divides by a gradient's own size: its first steps are signs, and roundings decide the sign of a gradient near
    # zero. So the rate is small (no timing depends on it), and the comparison comes after few steps.
    epoch(our_step, 3), epoch(plain_step, 3)
    differences = [worst(a.params["W"], b.params["W"]) for a, b in zip(ours[0], plain[0], strict=True)]
    g = train.ff_goodness(ours[0], images[:B], cfg, 10)
    with plain_path():
        differences.append(np.abs(g / train.ff_goodness(ours[0], images[:B], cfg, 10) - 1).max())
    if peer:
        epoch(peer[0], 3)
        differences += [worst(a.params["W"], w) for a, w in zip(ours[0], peer[2](), strict=True)]
        differences.append(np.abs(g / peer[1](images[:B]) - 1).max())
    print("relative differences:", ", ".join(f"{d:.1e}" for d in differences))
    assert max(differences) < 1e-4, "the implementations disagree"

    steps = [our_step, plain_step] + ([peer[0]] if peer else [])
    seconds = [[epoch(s) for s in steps] for _ in range(3)]
    seconds = np.median(seconds, axis=0)
    products = [4 * layer.params["W"].size * len(images) for layer in ours[0]]  # of one row: forward and gradient
    flop = sum(products) if cfg.neutral else 2 * sum(products) - products[0]  # the pair shares the first layer's
    print(f"one FF epoch, {len(images)} images:")
    for name, s in zip(("ours", "plain path", "PyTorch"), seconds, strict=False):
        print(f"  {name:11s} {s:7.2f} s   {s / seconds[0]:5.1f} x ours   {len(images) / s:6.0f} images/s")
    print(f"  ours: {100 * flop / seconds[0] / sgemm:.0f} % of sgemm on the products it computes")
    if cfg.neutral:
        pairs = replace(cfg, negatives="uniform", neutral=False)
        net = network(pairs)
        all_labels, rows = timed([lambda: epoch(our_step), lambda: epoch(partial(take_step, net, pairs))], repeats=3)
        print(f"  pairs that keep their label: {rows:.2f} s; all labels at once: {all_labels / rows:.2f} x that")

    x = images[:2000]
    layers = ours[0]

    def one_pass(layers=layers):  # one label, one row per image
        for rows in in_batches(len(x), 128):
            h = x[rows]
            for layer in layers:
                under = () if cfg.label == "slot" else (np.zeros(len(h), int),)
                y, _ = layer.forward(h, *under, train=False)
                g, _ = goodness.MeanSquare().forward(y)
                h = goodness.normalise(y, g)

    def first_layer(labels):
        for rows in in_batches(len(x), 128):
            if labels == 1:
                y, _ = layers[0].forward(x[rows], np.zeros(rows.stop - rows.start, int), train=False)
                goodness.MeanSquare().forward(y)
            else:
                layers[0].goodness(layers[0].image_part(x[rows], train=False)[0])

    def all_labels():
        train.ff_goodness(layers, x, cfg, 10)

    def every_label_alone():
        with plain_path():
            train.ff_goodness(layers, x, cfg, 10)

    single, ten = timed([one_pass, all_labels], repeats=7)
    print(f"{len(x)} images: one pass {single:.3f} s, ten labels {ten:.3f} s = {ten / single:.2f} x one pass")
    if cfg.label == "map":
        single, ten0 = timed([lambda: first_layer(1), lambda: first_layer(10)], repeats=7)
        print(f"  of these the first layer: {single:.3f} s and {ten0:.3f} s = {ten0 / single:.2f} x one pass")
    others = [every_label_alone] + ([lambda: peer[1](x)] if peer else [])
    for name, s in zip(("plain path", "PyTorch"), timed(others, repeats=1), strict=False):
        print(f"  ten labels, {name}: {s:.2f} s = {s / ten:.1f} x ours")

    adam = optim.Adam({"W": layers[0].params["W"].copy()}, 0.01)
    grads = {"W": np.full_like(layers[0].params["W"], 0.1)}
    a, b = (np.zeros(64 << 20, np.uint8) for _ in range(2))
    step, copied = timed([lambda: adam.step(grads), lambda: np.copyto(a, b)], repeats=15)
    rate, copy_rate = 28 * grads["W"].size / step / 1e9, 2 * a.size / copied / 1e9
    print(f"Adam: {rate:.1f} GB/s (w, m, v read and written, g read); one-thread copy {copy_rate:.1f} GB/s")


if __name__ == "__main__":
    main()
