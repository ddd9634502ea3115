"""One training step of ff_cnn, DTG-FF and backpropagation, against the same algorithms in PyTorch.

    ours       ff_cnn/train.py as it is, step of the head and optimisers included, images already changed
    PyTorch    the same algorithm written as one would: autograd inside each block, detach between blocks, AdamW
               (fused), gradients clipped block by block; channels last or first, whichever is faster

Ours and PyTorch start from the same weights and must agree in their losses and weights after two steps before anything
is timed. Dropout is off for that, and on when timed. Changing the images is timed by itself.

    python benchmarks/cnn_step.py [--width 0.25] [--batch 128] [--threads 2]
"""

import argparse
import importlib.util
import sys
from dataclasses import replace

from timing import start, timed, worst  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common import ROOT
from common.data import datasets

spec = importlib.util.spec_from_file_location("ff_cnn_train", ROOT / "ff_cnn" / "train.py")
cnn = sys.modules["ff_cnn_train"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cnn)


class Theirs:
    """The network of ours, before it has been moved anywhere, in PyTorch."""

    def __init__(self, net, cfg, layout, torch, device="cpu"):
        self.torch, self.cfg, self.layout, self.device = torch, cfg, layout, device
        self.blocks, self.opts = [], []
        for block in net.blocks:
            W = torch.from_numpy(block.conv.params["W"].transpose(3, 2, 0, 1).copy()).contiguous(memory_format=layout)
            part = {"W": W, "b": torch.from_numpy(block.conv.params["b"].copy()), "alpha": torch.zeros(())}
            part = {k: p.to(device).requires_grad_() for k, p in part.items()}
            fixed = [torch.from_numpy(block.projection.state[k].copy()).to(device) for k in "Rb"]
            self.blocks.append((part, *fixed, block.parts.h, block.hand_on.pool))
        D, K = net.head.params["W"].shape
        self.norm, self.linear = torch.nn.BatchNorm1d(D).to(device), torch.nn.Linear(D, K).to(device)
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(net.head.params["W"].T.copy()))
            self.linear.bias.zero_()
        self.seen = net.seen
        groups = [list(part.values()) for part, *_ in self.blocks]
        groups.append([*self.norm.parameters(), *self.linear.parameters()])
        if cfg.credit == "bp":  # no temperatures there
            groups = [[p for p in group if p.ndim] for group in groups]
        self.groups = groups
        self.opts = [torch.optim.AdamW(g, lr=cfg.lr, weight_decay=0.0, fused=True) for g in groups]

    def images(self, x):
        return self.torch.from_numpy(x.transpose(0, 3, 1, 2)).contiguous(memory_format=self.layout).to(self.device)

    def step(self, x, labels):
        F, cfg, losses, features = self.torch.nn.functional, self.cfg, [], []
        h, local = x, cfg.credit == "local"
        for (part, R, c, n, pool), opt, group in zip(self.blocks, self.opts, self.groups, strict=False):
            z = F.conv2d(h, part["W"], part["b"], padding=1).relu()
            if local:
                u = F.adaptive_avg_pool2d(z.square(), n).permute(0, 2, 3, 1).flatten(1)
                psi = u / (0.5 + 1.5 * self.torch.sigmoid(part["alpha"])) @ R + c
                loss = F.cross_entropy(psi, labels)
                loss.backward()
                self.update(group, opt)
                losses.append(loss.detach())
                z = z.detach()
            features.append(z.mean(dim=(2, 3)))
            h = F.avg_pool2d(z, pool) if pool > 1 else z
            h = F.layer_norm(h.permute(0, 2, 3, 1), (h.shape[1],)).permute(0, 3, 1, 2)
            h = F.dropout(h, cfg.dropout) if cfg.dropout else h
        f = F.dropout(self.norm(self.torch.cat(features[self.seen], dim=1)), cfg.head_dropout)
        loss = F.cross_entropy(self.linear(f), labels, label_smoothing=cfg.smoothing)
        loss.backward()
        for group, opt in zip(self.groups[-1:] if local else self.groups, self.opts[-1:] if local else self.opts):  # noqa: B905
            self.update(group, opt)
        return [*losses, loss.detach()]

    def update(self, group, opt):
        self.torch.nn.utils.clip_grad_norm_(group, self.cfg.clip)
        opt.step()
        opt.zero_grad()


def ours(cfg, shape, K):
    net = cnn.Net(cfg, shape, K, np.random.default_rng(0))
    for opt in net.layers[1]:
        opt.lr = cfg.lr
    return net


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dataset", default="auto")
    parser.add_argument("--data-dir")
    args = parser.parse_args()
    threads, rate = start(args.threads)
    rng = np.random.default_rng(0)
    ds = datasets.load(args.dataset, args.data_dir, auto="cifar10")
    cfg = cnn.Config(width=args.width, batch_size=args.batch, weight_decay=0.0, validation=0)
    data, K = cnn.Split(ds, cfg), len(ds.class_names)
    x, labels = data.changed(np.arange(args.batch), cfg, rng)
    try:
        import torch

        torch.set_num_threads(threads)
    except ImportError:
        torch = None

    def conv_flop(passes):
        found, side = 0, x.shape[1]
        for i, block in enumerate(net.blocks):
            n = passes - (1 if i == 0 and passes == 3 else 0)  # nobody asks for the image's gradient
            found += n * 2 * args.batch * side**2 * block.conv.params["W"].size
            side //= block.hand_on.pool
        return found

    seconds = {}
    for credit in ("local", "bp"):
        quiet = replace(cfg, credit=credit, dropout=0.0, head_dropout=0.0)
        loud = replace(cfg, credit=credit)
        net, twins = ours(quiet, data.shape, K), []
        if torch:
            layouts = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}
            twins = [(name, Theirs(net, quiet, layout, torch)) for name, layout in layouts.items()]
        for _ in range(2):
            losses = cnn.STEPS[credit](net, x, labels, quiet, rng)
            for name, twin in twins:
                found = [float(loss) for loss in twin.step(twin.images(x), torch.from_numpy(labels))]
                mine = losses if credit == "local" else losses[-1:]
                assert np.allclose(mine, found, rtol=2e-3), f"losses of PyTorch, {name}: {found}, ours {mine}"
        for name, twin in twins:
            for block, (part, *_) in zip(net.blocks, twin.blocks, strict=True):
                theirs = part["W"].detach().numpy().transpose(2, 3, 1, 0)
                assert worst(theirs, block.conv.params["W"]) < 1e-2, f"weights of PyTorch, {name}, are others"
        for block in net.blocks:
            block.hand_on.dropout = loud.dropout
        net.head.rate = loud.head_dropout
        functions = {"ours": lambda c=credit, net=net: cnn.STEPS[c](net, x, labels, loud, rng)}
        for name, twin in twins:
            twin.cfg, given = loud, (twin.images(x), torch.from_numpy(labels))
            functions[f"PyTorch, {name}"] = lambda twin=twin, given=given: twin.step(*given)
        found = dict(zip(functions, timed(list(functions.values()), repeats=args.repeats), strict=True))
        seconds[credit] = found
        flop = conv_flop(2 if credit == "local" else 3)
        what = "DTG-FF" if credit == "local" else "backpropagation, one head"
        print(f"\n{what}, VGG8 x {args.width:g}, batch {args.batch}; losses agree")
        for name, s in found.items():
            print(f"  {name:24s} {1e3 * s:8.1f} ms   {args.batch / s:7.0f} images/s   {s / found['ours']:5.2f} x ours")
        print(f"  ours: convolutions alone would be {100 * flop / rate / found['ours']:.0f} % of it at the sgemm rate")
    if torch:
        best = {c: min(s for name, s in of.items() if name != "ours") for c, of in seconds.items()}
        print(
            f"\nour DTG-FF step: {best['local'] / seconds['local']['ours']:.2f} x as fast as PyTorch's,"
            f" {best['bp'] / seconds['local']['ours']:.2f} x as fast as PyTorch's backpropagation"
        )
    (change,) = timed([lambda: data.changed(np.arange(args.batch), cfg, rng)], repeats=args.repeats)
    print(f"changing {args.batch} images at random: {1e3 * change:.1f} ms")


if __name__ == "__main__":
    main()
