"""Forward-Forward on convolutional networks whose blocks add up their goodness, and what later blocks learn then.

Idea
    A block is judged by the goodness that all blocks up to it have collected, not by its own. So a block behind good
    ones has little left to do: the gradient that reaches it dies out exponentially with the margin that others have
    collected. It rides free. Three remedies: each block alone, a gate that hides what was collected, and an extra loss
    of its own that grows with depth. (Yousefiramandi 2026, arXiv 2605.06240)

Symbols
    h    (B, H, W, C)   what a block sees: an image, or what the block below hands on, without any label
    a    (B, H, W, O)   h * W + b;   y_k = ReLU(a + U_k), activity under label k: label units reach every location
    g    (B, K)         goodness of every label: scale times the mean of y_k^2 over the block
    m    (B,)           margin of the block: g of the right label less g of a wrong one
    G    (B, K)         goodness collected before it, by every label: a sum over the blocks below, a constant
    M    (B,)           margin collected before it: G of the right label less G of the wrong one
    loss a number       mean of softplus(-beta (m + gamma M))
                        so dL/dm = -beta sigmoid(-beta (m + gamma M)), about -beta e^(-beta m) e^(-beta gamma M)
    next h              dropout(norm(pool(ReLU(a))))
    Prediction: the label with the most goodness, summed over the blocks; one pass.

Settings of the paper
    --gamma 1              layer collaboration;  --gamma 0.7: its default;  --gamma 0: each block alone
    --remedy gated         gamma sigmoid(-G) for the right and for the wrong label, each by what it has collected
    --remedy scaled        gamma 0.7, and 0.25 (1 + 3 d / (L - 1)) softplus(-beta m) for block d of L, of samples that
                           the block below finds hard: weights sigmoid(-beta m_{d-1}), on average 1
Deviates
    Its network is a vision transformer with four parts of goodness and three more losses; here it is the goodness of
    the first pages, on plain convolutions, because the question is what adding up does. Its goodness lies around 0, a
    mean of squares far above, where its gate would always be shut: here the gate counts G from its mean over the
    labels. The term of weight 0.2 that keeps its blocks in order is left out. Wrong labels are drawn from the goodness
    that counts, g + gamma G, so that with --gamma 0 each block is really alone.

Run
    python ff_cnn/cumulative.py --gamma 1 --seed 0
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, compilation, record, runs  # before NumPy, see common/__init__.py

# isort: split
import numpy as np
import train

from common import split as splits
from common.evaluate import accuracy, in_batches
from common.functions import relu, sigmoid, softplus
from common.label_conv import LabelConv
from common.labels import hardest_labels, sampled_labels, wrong_labels
from common.optim import Adam, clip
from common.pool import HandOn


@dataclass
class Config:
    seed: int = 0  # random seed: weights, wrong labels, order of images, their changes, dropout
    gamma: float = 0.7  # share of the collected margin that counts
    remedy: str = "none"  # against free-riding: none, gated or scaled, see above
    beta: float = 4.0  # sharpness of the loss
    scale: float = 64.0  # by which mean squares are multiplied
    negatives: str = "sampled"  # the wrong label: uniform, hard (the most goodness) or sampled in proportion to it
    backbone: str = "vgg8"  # a name in train.py's BACKBONES, of plain convolutions
    width: float = 0.25  # times the backbone's channels
    n_epochs: int = 12  # passes over the training images
    batch_size: int = 128  # images per step
    lr: float = 0.002  # AdamW's learning rate, falling by a cosine
    lr_end: float = 0.00001  # the rate that it falls to, and rises from
    warmup: float = 0.5  # epochs in which the rate rises
    weight_decay: float = 0.001  # AdamW's
    clip: float = 1.0  # longest gradient (its norm) of a block's step
    norm: str = "layer"  # of what is handed on: layer, rms or none
    dropout: float = 0.1  # share of what is handed on that is dropped
    crop: int = 4  # move training images at random by up to so many pixels
    flip: bool = True  # mirror half of them
    jitter: float = 0.2  # change brightness, contrast and saturation by up to this share
    cutout: int = 16  # side of the square that is cut out of training images
    train_subset: int = 0  # training images, drawn by the seed (0: all that are not held out)
    validation: int = 5000  # training images held out (0: train on all of them)
    eval_subset: int = 2000  # images behind each point of the curves


CHOICES = {
    "remedy": ("none", "gated", "scaled"),
    "negatives": ("uniform", "hard", "sampled"),
    "backbone": tuple(name for name in train.BACKBONES if name not in ("resnet18", "mlp")),
    "norm": ("layer", "rms", "none"),
}


class Net:
    """Blocks with label units, what each hands on, and an optimiser for each."""

    def __init__(self, cfg, shape, n_classes, rng):
        channels, pooled = train.BACKBONES[cfg.backbone]
        self.layers, self.hand_on, C = [], [], shape[2]
        for i, at_width_1 in enumerate(channels):
            O = max(1, round(cfg.width * at_width_1))
            own = np.random.default_rng([cfg.seed, 4, i])  # so that the convolutions start as train.py's do
            self.layers.append(LabelConv(C, O, n_classes, rng, label_rng=own))
            self.hand_on.append(HandOn(2 if i in pooled else 1, cfg.norm, cfg.dropout))
            C = O
        self.opts = [Adam(layer.params, cfg.lr, decay=cfg.weight_decay) for layer in self.layers]


def criterion(m, before, below, d, L, cfg):
    """A block's loss from its margins m (B,), goodness collected before it by right and wrong labels (2, B), less its
    mean over all labels, margins of the block below (B,); block d of L -> loss, dL/dm (B,)."""
    B = len(m)
    gate = cfg.gamma
    if cfg.remedy == "gated":
        gate = cfg.gamma * sigmoid(-before)  # for each stream by what it has collected itself
    gated = gate * before
    x = -cfg.beta * (m + gated[0] - gated[1])
    loss, dm = softplus(x).mean(), -cfg.beta * sigmoid(x) / B
    if cfg.remedy == "scaled":
        weight = sigmoid(-cfg.beta * below) if d else np.ones_like(m)
        weight = 0.25 * (1 + 3 * d / max(1, L - 1)) * weight / weight.mean()
        x = -cfg.beta * m
        loss, dm = loss + (weight * softplus(x)).mean(), dm - weight * cfg.beta * sigmoid(x) / B
    return loss, dm


def pick(g, labels, cfg, rng):
    """One wrong label per image, from the goodness of every label g (B, K) -> (B,)."""
    if cfg.negatives == "hard":
        return hardest_labels(g, labels)
    if cfg.negatives == "sampled":
        return sampled_labels(cfg.beta * g, labels, rng)
    return wrong_labels(labels, g.shape[1], rng)


def judged(g, collected, below, labels, wrong, d, L, cfg):
    """A block's loss from its own goodness, what the blocks below have collected, and that of the block right below,
    all (B, K); right and wrong labels (B,); block d of L -> loss, margins m (B,), dL/dm (B,), dL/dg (B, K)."""
    rows = np.arange(len(labels))
    m, of_below = (some[rows, labels] - some[rows, wrong] for some in (g, below))
    centred = collected - collected.mean(axis=1, keepdims=True)
    loss, dm = criterion(m, np.stack([centred[rows, labels], centred[rows, wrong]]), of_below, d, L, cfg)
    dg = np.zeros_like(g)
    dg[rows, labels], dg[rows, wrong] = dm, -dm
    return loss, m, dm, dg


def step(net, x, labels, cfg, rng):
    """One step of all blocks: x (B, H, W, C), labels (B,) -> per block: loss, g+, g-, margin, what is left of it."""
    h, rows, L, log = x, np.arange(len(x)), len(net.layers), []
    collected = below = np.zeros((len(x), net.layers[0].params["U"].shape[0]), x.dtype)
    keys = rng.integers(2**32, size=L, dtype=np.uint32)
    for d, (layer, on, opt) in enumerate(zip(net.layers, net.hand_on, net.opts, strict=True)):
        a, cache = layer.image_part(h)
        g = layer.goodness(a) * x.dtype.type(cfg.scale)
        wrong = pick(g + x.dtype.type(cfg.gamma) * collected, labels, cfg, rng)
        loss, m, dm, dg = judged(g, collected, below, labels, wrong, d, L, cfg)
        grads = layer.backward_goodness(dg * x.dtype.type(cfg.scale), a, cache)  # nothing leaves this block
        opt.step(clip(grads, cfg.clip))
        h, _ = on.forward(relu(a), key=keys[d])
        collected, below = collected + g, g  # constants for the blocks above
        log.append((loss, g[rows, labels].mean(), g[rows, wrong].mean(), m.mean(), abs(dm).mean() * len(m) / cfg.beta))
    return np.array(log)  # (n_blocks, 5)


def goodness_of_labels(net, x, cfg):
    """x (N, H, W, C) -> goodness of every label in every block (n_blocks, N, K), in one pass."""
    found = []
    for rows in in_batches(len(x), 250):
        h, g = x[rows], []
        for layer, on in zip(net.layers, net.hand_on, strict=True):
            a, _ = layer.image_part(h, train=False)
            g.append(layer.goodness(a) * x.dtype.type(cfg.scale))
            h, _ = on.forward(relu(a), train=False)
        found.append(np.stack(g))
    return np.concatenate(found, axis=1)


def free_riding(net, x, labels, cfg, rng):
    """What the theorem is about, for every block and image, with wrong labels as in training: the margin collected
    before it, the norm of its own loss's gradient with respect to a, and |dL/dm| as a share of what it would be if
    nothing had been collected -> three arrays (n_blocks, N), float64: in float32 small gradients would be 0."""
    L, found = len(net.layers), []
    for some in in_batches(len(x), 250):
        h, of_blocks = x[some], []
        B, rows = len(h), np.arange(len(h))
        collected = below = np.zeros((B, net.layers[0].params["U"].shape[0]))
        for d, (layer, on) in enumerate(zip(net.layers, net.hand_on, strict=True)):
            a, _ = layer.image_part(h, train=False)
            g = layer.goodness(a) * np.float64(cfg.scale)
            wrong = pick(g + cfg.gamma * collected, labels[some], cfg, rng)
            _, m, dm, _ = judged(g, collected, below, labels[some], wrong, d, L, cfg)
            one = np.zeros(g.shape, np.float32)
            one[rows, labels[some]], one[rows, wrong] = cfg.scale, -cfg.scale  # dm/dg
            da, _ = layer.error(one, a)
            norm = abs(dm) * B * np.sqrt((np.float64(da) ** 2).sum(axis=(1, 2, 3)))  # of one image's loss
            M = collected[rows, labels[some]] - collected[rows, wrong]
            of_blocks.append((M, norm, abs(dm) * B / (cfg.beta * sigmoid(-cfg.beta * m))))
            h, _ = on.forward(relu(a), train=False)
            collected, below = collected + g, g
        found.append(np.array(of_blocks))  # (n_blocks, 3, B)
    return tuple(np.concatenate(found, axis=2).transpose(1, 0, 2))


def check(cfg, ds):
    """Say in one line what cannot work, before anything is computed."""
    splits.check(ds, cfg)
    runs.at_least(cfg, 1, "n_epochs", "batch_size", "eval_subset")
    runs.at_least(cfg, 0, "gamma", "warmup", "weight_decay", "crop", "jitter", "cutout")
    runs.at_least(cfg, 0, "lr_end")
    runs.positive(cfg, "width", "lr", "clip", "beta", "scale")
    train.check_images(ds, cfg)
    if cfg.lr_end > cfg.lr:
        raise cli.UsageError(f"--lr-end {cfg.lr_end:g}: at most --lr, which falls to it")
    if not 0 <= cfg.dropout < 1:
        raise cli.UsageError(f"--dropout {cfg.dropout}: from 0 to less than 1")


def train_epoch(net, data, rng, cfg, epoch):
    """One pass over the training images -> means over the epoch."""
    n = len(data.train[0])
    order, start = rng.permutation(n), time.perf_counter()
    batches, log = in_batches(n, cfg.batch_size), []
    rates = train.rates(cfg.lr, cfg, epoch, len(batches))
    for rows, lr in zip(cli.progress(batches, f"{epoch}/{cfg.n_epochs}"), rates, strict=True):
        for opt in net.opts:
            opt.lr = lr
        log.append(step(net, *data.changed(order[rows], cfg, rng), cfg, rng))
    keys = ("loss", "g_pos", "g_neg", "margin", "gradient_left")
    seconds = time.perf_counter() - start
    line = {"seconds": seconds, "images_per_second": n / seconds}
    return dict(zip(keys, np.mean(log, axis=0).T, strict=True)) | line


def evaluate(net, images, labels, cfg, data):
    """Accuracies, and how well each block tells the right label from a random wrong one, on uint8 images -> dict, and
    the goodness of all labels (n_blocks, N, K)."""
    start, found = time.perf_counter(), []
    for rows in in_batches(len(images), 1000):
        found.append(goodness_of_labels(net, data.floats(images[rows]), cfg))
    g, seconds = np.concatenate(found, axis=1), time.perf_counter() - start
    rows = np.arange(len(labels))
    wrong = wrong_labels(labels, g.shape[2], np.random.default_rng(0))
    m = g[:, rows, labels] - g[:, rows, wrong]
    log = {
        "sum_acc": accuracy(g.sum(axis=0).argmax(axis=1), labels),
        "layer_acc": [accuracy(each.argmax(axis=1), labels) for each in g],
        "so_far_acc": [accuracy(each.argmax(axis=1), labels) for each in np.cumsum(g, axis=0)],
        "separation": m.mean(axis=1),
        "right_order": (m > 0).mean(axis=1),
        "images_per_second": len(labels) / seconds,
    }
    return log, g


def run(cfg, options, threads):
    """One run from its start, or from its checkpoint, to its end -> the last line of its record."""
    compilation.announce("conv")
    this = runs.open_run(cfg, options, threads, "ff_cnn_cumulative", runs.images("cifar10"), check, train.Split)
    cfg, data = this.cfg, this.split
    net = Net(cfg, data.shape, data.n_classes, np.random.default_rng([cfg.seed, 0]))
    saved, rng = {"net": (net.layers, net.opts)}, np.random.default_rng([cfg.seed, 3])
    this.restore(saved, {"rng": rng})
    clock = runs.Clock(this.done, cfg.n_epochs)
    for epoch in range(this.done + 1, cfg.n_epochs + 1):
        log = train_epoch(net, data, rng, cfg, epoch)
        for key, (images, labels) in data.parts("train", "val").items():
            log[key], _ = evaluate(net, images[: cfg.eval_subset], labels[: cfg.eval_subset], cfg, data)
        record.append(this.folder, {"epoch": epoch} | log)
        this.checkpoint(epoch, saved, {"rng": rng})
        seen = log.get("val", log["train"])
        line = " ".join(f"{s:.2f}" for s in seen["separation"])
        print(f"epoch {epoch:3d}/{cfg.n_epochs}  {100 * seen['sum_acc']:.1f} %  separation {line}  "
              f"| {clock(log['seconds'], epoch)}", flush=True)  # fmt: skip

    final = {key: evaluate(net, *part, cfg, data)[0] for key, part in data.parts("test", "val").items()}
    images, labels = (part[:2000] for part in data.train)
    before, norm, left = free_riding(net, data.floats(images), labels, cfg, np.random.default_rng(1))
    (this.folder / "snapshots").mkdir(exist_ok=True)
    arrays = {"before": before, "norm": norm, "left": left}
    record.save_arrays(this.folder / "snapshots" / "free-riding.npz", arrays, {"beta": cfg.beta, "gamma": cfg.gamma})
    record.append(this.folder, {"final": final | runs.cost(clock, net.layers)})
    print(f"test accuracy {100 * final['test']['sum_acc']:.2f} %")
    this.finish(options, net.layers, "viz/ff_cnn_cumulative.py")
    return final


def main():
    cfg, options = cli.parse(Config, __doc__, choices=CHOICES)
    threads = runs.threads(options)
    finals = []
    for seed in options.seeds:
        cfg.seed = seed
        finals.append(run(cfg, options, threads))
    runs.report("test accuracy", [100 * final["test"]["sum_acc"] for final in finals])


if __name__ == "__main__":
    cli.run(main)
