"""One Forward-Forward epoch of ff_mnist, and ten-label prediction, against the plain path and PyTorch.

    plain path   ours without kernels: temporaries for every elementwise step, the optimiser's formulas line by line
    PyTorch      the same algorithm: right and wrong rows in one batch, autograd inside each layer, a fused optimiser
    as usual     the same in PyTorch as it is usually written: a pass for right and one for wrong labels, PyTorch's
                 default optimiser, in prediction one pass for every label
    ours         one pass over memory per elementwise step and per optimiser step, the first layer's image part once

All start from the same weights, see the same wrong labels, and must agree after a few steps before anything is timed.

What a step of ours costs depends on what the network has learned: rows that are settled drop out of the gradient, and
zeros of quiet layers out of the products. So it is timed after some epochs of training (0: on weights as they are
drawn), on MNIST, or on the built-in data if that cannot be had; wrong labels are drawn from the network's own softmax.

    python benchmarks/mnist_epoch.py [--sizes 2000,2000,2000,2000] [--optimiser sgd] [--epochs 2] [--threads 2]
"""

import argparse
import contextlib
import copy
import importlib.util
import sys
import time

from timing import start, timed, worst  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common import ROOT, goodness, layers, optim, product, sparse
from common.data import datasets
from common.evaluate import in_batches
from common.labels import one_hot, sampled_labels
from common.split import Split

spec = importlib.util.spec_from_file_location("ff_mnist_train", ROOT / "ff_mnist" / "train.py")
train = sys.modules["ff_mnist_train"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(train)


@contextlib.contextmanager
def plain_path():
    """Inside, float32 arrays have no kernels: everything takes the reference formulas."""
    modules = goodness, layers, optim, product, sparse
    kept = [m.kernels for m in modules]
    for m in modules:
        m.kernels = lambda x: None
    try:
        yield
    finally:
        for m, kernels in zip(modules, kept, strict=True):
            m.kernels = kernels


def torch_network(net, cfg, threads, usual=False):
    """The same network in PyTorch -> step(pixels, labels, wrong labels), goodness(pixels), weights(); or None.

    usual: without what makes it fast, see above.
    """
    try:
        import torch
        from torch.nn.functional import cross_entropy, linear, softplus
    except ImportError:
        return None
    torch.set_num_threads(threads)
    hidden = [[torch.from_numpy(layer.params[k].T.copy()).requires_grad_() for k in ("W", "b")] for layer in net.layers]
    head = [torch.from_numpy(net.head.params[k].T.copy()).requires_grad_() for k in ("W", "b")]
    means = [torch.from_numpy(layer.state["mean"].copy()) for layer in net.layers]

    def optimiser(params, kind, lr, decay):
        groups = [{"params": params[:1], "weight_decay": decay}, {"params": params[1:], "weight_decay": 0.0}]
        if kind == "adam":
            return torch.optim.AdamW(groups, lr=lr, fused=None if usual else True)
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=None if usual else True)

    opts = [optimiser(params, cfg.optimiser, cfg.lr, cfg.weight_decay) for params in hidden]
    head_opt = optimiser(head, "sgd", cfg.head_lr, cfg.head_decay)

    def rows(pixels, codes):
        return scaled(torch.cat([codes, pixels.repeat(len(codes) // len(pixels), 1)], dim=1))

    def scaled(y):
        return y / (y.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()

    def step(pixels, labels, wrong):
        pixels, labels, wrong = (torch.from_numpy(v) for v in (pixels, labels, wrong))
        B, K = len(labels), 10
        with torch.no_grad():
            h, states = rows(pixels, torch.full((B, K), 0.1)), []
            for W, b in hidden:
                h = scaled(linear(h, W, b).relu())
                states.append(h)
        head_opt.zero_grad()
        cross_entropy(linear(torch.cat(states[1:], dim=1), *head), labels).backward()
        head_opt.step()
        right, other = torch.eye(K)[labels], torch.eye(K)[wrong]
        if usual:
            passes = [(rows(pixels, right), -1), (rows(pixels, other), 1)]
        else:
            t = -torch.ones(2 * B)
            t[B:] = 1
            passes = [(rows(pixels, torch.cat([right, other])), t)]
        for (W, b), mean, opt in zip(hidden, means, opts, strict=True):
            loss, handed_on = 0, []
            for h, t in passes:
                z = linear(h, W, b)
                y = z.relu()
                if not handed_on:
                    mean += 0.1 * (y[:B].detach().mean(dim=0) - mean)
                    pull = cfg.peer / (2 * B) * (mean - mean.mean())
                g = y.square().sum(dim=1)
                loss = loss + softplus(t * (g - cfg.theta * y.shape[1])).sum() / (2 * B) + (z * pull).sum()
                handed_on.append((scaled(y.detach()), t))
            opt.zero_grad()
            loss.backward()
            opt.step()
            passes = handed_on

    def goodness_of_labels(pixels):
        found = []
        with torch.no_grad():
            for some in in_batches(len(pixels), 200):
                p, per_layer = torch.from_numpy(pixels[some]), []
                codes = torch.eye(10).repeat_interleave(len(p), dim=0)
                for some_codes in codes.split(len(p)) if usual else [codes]:
                    h, of_layers = rows(p, some_codes), []
                    for W, b in hidden:
                        y = linear(h, W, b).relu()
                        of_layers.append(y.square().sum(dim=1).reshape(-1, len(p)).T)
                        h = scaled(y)
                    per_layer.append(torch.stack(of_layers))
                found.append(torch.cat(per_layer, dim=2))
        return torch.cat(found, dim=1).numpy()

    return step, goodness_of_labels, lambda: [W.detach().numpy().T for W, _ in hidden]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--sizes", default="2000,2000,2000,2000")
    parser.add_argument("--optimiser", choices=["sgd", "adam"], default="sgd")
    parser.add_argument("--dataset", default="auto")
    parser.add_argument("--epochs", type=int, default=2, help="of training before anything is timed")
    parser.add_argument("--batches", type=int, default=60, help="training steps that are timed; an epoch has 600")
    parser.add_argument("--images", type=int, default=2000, help="images of the prediction that is timed")
    args = parser.parse_args()
    threads, sgemm = start(args.threads)
    cfg = train.Config(sizes=args.sizes, optimiser=args.optimiser, lr=1e-4 if args.optimiser == "adam" else 1e-3)
    B, rng = cfg.batch_size, np.random.default_rng(0)
    data = Split(datasets.load(args.dataset, auto="mnist", quiet=True), cfg)
    ours = train.Net(cfg, data.size, 10, np.random.default_rng(1))
    for epoch in range(1, args.epochs + 1):
        train.train_epoch(ours, data, rng, cfg, epoch)
    for opt in [*ours.opts, ours.head_opt]:  # PyTorch's begin anew as well
        opt.t = 0
        for average in opt.state.values():
            average[...] = 0
    pixels, labels = data.batch(rng.permutation(len(data.train[0]))[: args.batches * B], 0, rng)
    pixels = pixels[:, 10:]
    wrong, settled, zeros = look(ours, pixels, labels, cfg, rng)

    plain = copy.deepcopy(ours)
    peers = [peer for peer in (torch_network(ours, cfg, threads, usual) for usual in (False, True)) if peer]
    for net in (ours, plain):  # deepcopy of an optimiser copies its layer's parameters: tie them again
        for layer, opt in zip([*net.layers, net.head], [*net.opts, net.head_opt], strict=True):
            opt.params = layer.params

    def our_step(x, y, w, net=ours):
        train.ff_step(net, x, y, cfg, Given(w, y), 10)

    def plain_step(x, y, w):
        with plain_path():
            our_step(x, y, w, plain)

    def steps(step, n=args.batches):
        begin = time.perf_counter()
        for rows in in_batches(n * B, B):
            step(pixels[rows], labels[rows], wrong[rows])
        return (time.perf_counter() - begin) / n

    steps(our_step, 3), steps(plain_step, 3)
    differences = [worst(a.params["W"], b.params["W"]) for a, b in zip(ours.layers, plain.layers, strict=True)]
    g = train.goodness_of_labels(ours, pixels[:B], cfg, 10)
    for peer in peers:
        steps(peer[0], 3)
        differences += [worst(a.params["W"], w) for a, w in zip(ours.layers, peer[2](), strict=True)]
        differences.append(np.abs(g / peer[1](pixels[:B]) - 1).max())
    print("relative differences:", ", ".join(f"{d:.1e}" for d in differences))
    assert max(differences) < 1e-4, "the implementations disagree"

    candidates = [our_step, plain_step, *(peer[0] for peer in peers)]
    seconds = 600 * np.median([[steps(step) for step in candidates] for _ in range(3)], axis=0)
    sizes = train.runs.numbers(cfg.sizes)
    above = sum(n * m for n, m in zip(sizes, sizes[1:], strict=False))
    # forward: the first layer's image part once, the others neutral, right and wrong; gradient: once, and two rows
    flop = 2 * 60000 * (774 * sizes[0] * (1 + 1) + above * (3 + 2) + 10 * sum(sizes[1:]) * 2)
    print(f"one FF epoch, 60 000 images, {cfg.sizes}, {cfg.optimiser}, all included, after {args.epochs} of training:")
    for name, s in zip(("ours", "plain path", "PyTorch", "as usual"), seconds, strict=False):
        print(f"  {name:11s} {s:7.1f} s   {s / seconds[0]:5.2f} x ours")
    print(f"  ours: {flop / 1e12:.1f} TFLOP in products, {100 * flop / seconds[0] / sgemm:.0f} % of sgemm")
    for name, shares in (("settled rows", settled), ("zeros that a layer sees", zeros)):
        print(f"  {name}, layer by layer: {', '.join(f'{100 * share:.0f} %' for share in shares)}")

    x = np.ascontiguousarray(pixels[: args.images])
    ways = [lambda: train.goodness_of_labels(ours, x, cfg, 10), *(lambda f=peer[1]: f(x) for peer in peers)]
    ten = timed(ways, repeats=3)
    flop = 2 * len(x) * (774 * sizes[0] + 10 * above)
    print(f"ten labels, {len(x)} images: {ten[0]:.2f} s, {100 * flop / ten[0] / sgemm:.0f} % of sgemm", end="")
    print("".join(f"; {who} {s / ten[0]:.2f} x ours" for who, s in zip(("PyTorch", "as usual"), ten[1:], strict=False)))


def look(net, pixels, labels, cfg, rng):
    """-> wrong labels drawn from the softmax (N,), share of settled rows and of zeros in what each layer sees."""
    part = net.layers[0].image_part(pixels)
    logits = net.head.forward(train.neutral_states(net.layers, part, cfg, 10))[0]
    wrong = sampled_labels(logits, labels, rng)
    h, settled, zeros = None, [], [(pixels == 0).mean()]
    for i, layer in enumerate(net.layers):
        codes = one_hot(np.concatenate([labels, wrong]), 10)
        y, _ = layer.forward(h) if i else layer.forward(part, codes)
        g, _ = goodness.SumSquare().forward(y)
        _, dg = train.ff_loss(g.reshape(2, -1), labels, wrong[None], train.threshold(y, cfg), cfg)
        settled.append(1 - len(goodness.unsettled(dg.ravel())) / len(y))
        zeros.append((y == 0).mean())
        h = train.scaled(y, cfg.norm)
    return wrong, settled, zeros[:-1]


class Given:
    """In place of a generator: makes `sampled_labels` draw the labels that all implementations are given."""

    def __init__(self, wrong, labels):
        self.wrong = wrong

    def gumbel(self, size):
        return 1e9 * one_hot(self.wrong, size[1])


if __name__ == "__main__":
    main()
