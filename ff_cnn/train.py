"""Forward-Forward on convolutional networks: DTG-FF, and the backpropagation controls that it is judged by.

Idea
    Every convolutional block has a goodness: the mean square of each channel, over parts of its map. A fixed random
    map turns it into one score per class, and softmax cross-entropy on these scores is all that the block learns from.
    What it hands to the next block carries no gradient. Controls: a learned head on plain activities instead of the
    random one on squares over a temperature (--rule linear); the same with the missing line put back, which is the
    paper's BP-DeepSup (--rule linear --credit deepsup); one head at the end and backpropagation through everything
    (--credit bp).

Symbols
    h    (B, H, W, C)    what a block sees; the first one, the image
    z    (B, H, W, O)    ReLU(h * W + b), its activity; no norm, for goodness is to vary
    u    (B, n n O)      mean of z^2 over each of n x n parts, and channel             (DTG-FF, arXiv 2606.06539, eq. 1)
    T    a number        the block's temperature, learned, 0.5 to 2                    (eq. 2)
    psi  (B, K)          (u / T) R + b, R and b fixed and random                       (eq. 4)
    loss a number        cross-entropy of softmax(psi) with the right class: of this block alone
    next h               dropout(norm(2 x 2 average pool(z))), the norm over each location's channels
    f    (B, sum of O)   mean of z over the map, of all blocks but the first: what the head sees; it hands nothing back
    Prediction: the largest sum of psi over the blocks (sum; upper: from the middle one up), that of the block that is
    best on held-out images (best), or the head's (head).

Other rules
    asge     u R + b without T; more parts where there are fewer channels (--alpha); roots of mean squares are pooled
    hff      scale times the cosine between the means of z over the parts and a learned prototype of every class
    cwc      scale times the mean square of a group of channels of the class's own; maxima are pooled
    linear   a learned map of the means of z over the parts
    Adding up the blocks' goodness under labels: cumulative.py.

Deviates from DTG-FF's paper
    12 epochs at 0.002 with a warm-up, where it has 400 at 0.0002, and so a rate of its own for T's alpha, which would
    hardly move. It clips gradients and changes colours by amounts that it does not print. Small grey images get
    a black border. Weight decay leaves alone what is named b. With --credit bp all learn from the head's loss, smoothed
    and with its dropout, and with --accumulate that head's BatchNorm sees each micro-batch by itself.

Run
    python ff_cnn/train.py --seed 0                                      # about ten minutes on two cores
    python ff_cnn/train.py --rule linear --credit deepsup --seed 0
    python ff_cnn/train.py --credit bp --seed 0
"""

import sys
import time
from contextlib import closing
from dataclasses import dataclass
from operator import iadd
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, compilation, record, runs  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common import augment
from common import split as splits
from common.arrays import host, like, namespace
from common.conv import Conv2d, Residual
from common.data import Pictures, load, pieces, upsampled
from common.evaluate import accuracy, in_batches
from common.goodness import softmax_cross_entropy
from common.layers import BatchNorm, Dense, kept
from common.optim import Adam, clip, cosine
from common.pool import HandOn, Parts, full
from common.prototypes import Prototypes
from common.readouts import ChannelGroups, RandomMap, Temperature
from common.steps import Steps


@dataclass
class Config:
    seed: int = 0  # random seed: weights, random heads, order of images, their changes, dropout
    rule: str = "dtg"  # what a block is read by: a name in RULES
    credit: str = "local"  # who learns from whom: local, deepsup (all heads, through all blocks) or bp (one head)
    backbone: str = "vgg8"  # a name in BACKBONES
    width: float = 0.25  # times the backbone's channels
    n_epochs: int = 12  # passes over the training images
    batch_size: int = 128  # images per step
    lr: float = 0.002  # AdamW's learning rate, falling by a cosine
    lr_end: float = 0.00001  # the rate that it falls to, and rises from
    warmup: float = 0.5  # epochs in which the rate rises
    temperature_lr: float = 0.02  # of T's alpha, which the blocks' own rate would hardly move in a short run
    weight_decay: float = 0.001  # AdamW's
    clip: float = 1.0  # longest gradient (its norm) of a step
    clip_by: str = "block"  # a gradient: of a block, or of the whole network
    temperature: bool = True  # learn T (--no-temperature: T = 1)
    goodness_norm: str = "none"  # what is squared: z (none), or BatchNorm of z (batch)
    projection: str = "rule"  # goodness to scores: the rule's own, random, unit (columns of length 1), or learned
    pooling: str = "rule"  # of what is handed on: the rule's own, average, rms or max
    alpha: float = 1.0  # parts on a map's side: alpha C_L / C_l, channels at width 1 (C_L: 512; asge: the last block's)
    scale: float = 10.0  # by which hff's cosines and cwc's means are multiplied
    norm: str = "layer"  # of what is handed on: layer, rms or none
    dropout: float = 0.1  # share of what is handed on that is dropped
    head: str = "concat"  # what the head sees: concat (means of all blocks but the first), last, or goodness (of all)
    head_dropout: float = 0.2  # share of its features that the head does not see while it learns
    smoothing: float = 0.1  # label smoothing of the head
    pipelined: bool = True  # hand on what was computed before the block's step (--no-pipelined: compute it again)
    accumulate: int = 1  # micro-batches per step, for deepsup and bp
    recompute: bool = False  # activation checkpointing for deepsup and bp: compute z again instead of keeping it
    crop: int = 4  # move training images at random by up to so many pixels (in files: see Split; 0: the middle)
    flip: bool = True  # mirror half of them
    jitter: float = 0.2  # change brightness, contrast and saturation by up to this share
    cutout: int = 16  # side of the square that is cut out of training images
    train_subset: int = 0  # training images, drawn by the seed (0: all that are not held out)
    validation: int = 5000  # training images held out (0: train on all of them)
    eval_subset: int = 2000  # images behind each point of the curves
    tf32: bool = True  # on a GPU, multiply with factors rounded to TF32 (10 bits of mantissa)


# Channels of the blocks at width 1, and the blocks after which 2 x 2 places are averaged, counted from 0.
BACKBONES = {
    "vgg8": ([128, 256, 256, 512, 512, 512, 512], [1, 3, 4, 5]),
    "vgg11": ([64, 128, 256, 256, 512, 512, 512, 512], [0, 1, 3, 5]),
    "vgg13": ([64, 64, 128, 128, 256, 256, 512, 512, 512, 512], [1, 3, 5, 7]),
    "resnet18": ([64, 64, 64, 128, 128, 256, 256, 512, 512], [2, 4, 6]),  # there, strides of the next block
    "plain4": ([256] * 4, [0, 1, 2]),  # one width, one resolution at each quarter: only depth differs
    "plain8": ([256] * 8, [1, 3, 5]),
    "plain12": ([256] * 12, [2, 5, 8]),
    "mlp": ([2048] * 4, []),  # the image as one place with many channels
}
# What a block is read by: squares of z or z itself, over a temperature or not, how they become scores; how it pools.
RULES = {
    "dtg": {"squares": True, "temperature": True, "projection": "random", "pooling": "average"},
    "asge": {"squares": True, "temperature": False, "projection": "random", "pooling": "rms"},
    "hff": {"squares": False, "temperature": False, "projection": "prototypes", "pooling": "average"},
    "cwc": {"squares": True, "temperature": False, "projection": "groups", "pooling": "max"},
    "linear": {"squares": False, "temperature": False, "projection": "learned", "pooling": "average"},
}
PRESETS = {  # data sets on which the defaults would not do: digits have no mirror images, few images to hold out
    "mnist": {"flip": False},
    "stl10": {"validation": 500},
    "dermamnist": {"validation": 700},
}
CHOICES = {
    "rule": tuple(RULES),
    "credit": ("local", "deepsup", "bp"),
    "backbone": tuple(BACKBONES),
    "clip_by": ("block", "network"),
    "goodness_norm": ("none", "batch"),
    "projection": ("rule", "random", "unit", "learned"),
    "norm": ("layer", "rms", "none"),
    "pooling": ("rule", "average", "rms", "max"),
    "head": ("concat", "last", "goodness"),
}


class Head:
    """BatchNorm -> dropout -> linear: features (B, D) -> scores (B, K)."""

    def __init__(self, D, n_classes, rng, rate):
        self.norm, self.dense, self.rate = BatchNorm(D), Dense(D, n_classes, rng, relu=False, gain=1.0), rate
        self.params, self.state = self.norm.params | self.dense.params, self.norm.state

    def forward(self, f, key=None):
        """key: of dropout's coins, in training; without it, f is only looked at."""
        for part in (self.norm, self.dense):  # params may have been replaced, on their way to a GPU
            part.params = {k: self.params[k] for k in part.params}
        x, normed = self.norm.forward(f, train=key is not None)
        drop = key is not None and self.rate
        mask = kept(x.shape, key, self.rate, x.dtype, namespace(x)) if drop else np.float32(1)
        scores, cache = self.dense.forward(x * mask)
        return scores, (normed, mask, cache)

    def backward(self, dscores, cache, need_dx=False):
        normed, mask, seen = cache
        dx, dense = self.dense.backward(dscores, seen, need_dx=True)  # down to BatchNorm's gain, inside this head
        df, norm = self.norm.backward(dx * mask, normed, need_dx)
        return df, dense | norm


class Block:
    """A convolution, how its goodness is read, and what it hands on. opts: an optimiser for each of its layers.

    rng: of the map to scores alone, so that all rules start from the same convolutions.
    """

    def __init__(self, conv, channels, n, pool, n_classes, cfg, rng):
        rule, M = RULES[cfg.rule], n * n * channels
        kind = rule["projection"] if cfg.projection == "rule" else cfg.projection
        self.conv, self.parts, self.squares = conv, Parts(n), rule["squares"]
        self.head, self.n_features = cfg.head, M if cfg.head == "goodness" else channels  # of what the head sees
        self.norm = BatchNorm(channels) if cfg.goodness_norm == "batch" else None
        self.temperature = Temperature() if rule["temperature"] and cfg.temperature else None
        if kind == "learned":  # from where the random map stays, unless the rule's own map is learned
            start = RandomMap(M, n_classes, rng).state if cfg.projection == "learned" else None
            self.projection = Dense(M, n_classes, rng, relu=False, gain=1.0)
            if start:
                self.projection.params = {"W": start["R"], "b": start["b"]}
        elif kind == "prototypes":
            self.projection = Prototypes(M, n_classes, rng, scale=cfg.scale)
        elif kind == "groups":
            self.projection = ChannelGroups(channels, n_classes, cfg.scale)
        else:
            self.projection = RandomMap(M, n_classes, rng, unit=kind == "unit")
        pooling = rule["pooling"] if cfg.pooling == "rule" else cfg.pooling
        self.hand_on = HandOn(pool, cfg.norm, cfg.dropout, pooling)
        parts = {"conv": conv, "norm": self.norm, "temperature": self.temperature, "projection": self.projection}
        self.layers = {name: layer for name, layer in parts.items() if layer}
        self.opts = {name: Adam(layer.params, cfg.lr, decay=cfg.weight_decay) for name, layer in self.layers.items()}

    def read(self, z, train=True):
        """z (B, H, W, O) -> scores psi (B, K), mean of z over the map (B, O), cache."""
        y, normed = self.norm.forward(z, train) if self.norm else (z, None)
        (u, m), _ = self.parts.forward(y)
        goodness = u if self.squares else m
        scaled, heat = self.temperature.forward(goodness) if self.temperature else (goodness, None)
        psi, seen = self.projection.forward(scaled.reshape(len(z), -1))
        return psi, self.features(z, u, m), (y, normed, heat, seen)

    def features(self, z, u=None, m=None):
        """What the head sees of z (B, H, W, O), from squares u and means m of its parts if they are known -> (B, D)."""
        if self.head == "goodness":
            return (self.parts.forward(z)[0][0] if u is None else u).reshape(len(z), -1)
        return z.mean(axis=(1, 2)) if m is None or self.norm else self.parts.of_map(m, z)

    def read_back(self, dpsi, cache):
        """The gradient of `read` as far as z: dpsi (B, K) -> dz, and for each layer that is passed its gradients."""
        y, normed, heat, seen = cache
        du, grads = self.projection.backward(dpsi, seen, need_dx=True)
        du, grads = du.reshape(len(y), self.parts.h, self.parts.w, -1), {"projection": grads}
        if self.temperature:
            du, grads["temperature"] = self.temperature.backward(du, heat)
        dz = (self.parts.backward_squares if self.squares else self.parts.backward_means)(du, y)
        if self.norm:
            dz, grads["norm"] = self.norm.backward(full(dz), normed, need_dx=True)
        return dz, grads

    def renormalise(self):
        """After a step: prototypes back to length 1."""
        if isinstance(self.projection, Prototypes):
            self.projection.renormalise()

    @property
    def T(self):
        return float(host(self.temperature.T)[0]) if self.temperature else 1.0


class Net:
    """Blocks and a head."""

    def __init__(self, cfg, shape, n_classes, rng):
        channels, pooled = BACKBONES[cfg.backbone]
        mlp, residual = cfg.backbone == "mlp", cfg.backbone.startswith("resnet")
        side, C = (1, int(np.prod(shape))) if mlp else (shape[0], shape[2])
        self.flat, self.blocks = mlp, []
        for i, at_width_1 in enumerate(channels):
            O = max(1, round(cfg.width * at_width_1))
            if RULES[cfg.rule]["projection"] == "groups" and cfg.projection == "rule":
                O = -(-O // n_classes) * n_classes  # as many channels for each class
            if residual and i:
                conv = Residual(C, O, rng, stride=2 if i - 1 in pooled else 1)
            else:
                conv = Conv2d(C, O, rng, k=1 if mlp else 3, padding=0 if mlp else 1)
            side = conv.out_size(side)
            widest = channels[-1] if cfg.rule == "asge" else 512  # DTG-FF, App. D.1: the same for VGG8
            n = 1 if mlp or cfg.rule == "cwc" else min(side, max(1, int(cfg.alpha * widest / at_width_1)))
            pool = 2 if i in pooled and not residual else 1
            own = np.random.default_rng([cfg.seed, 4, i])
            self.blocks.append(Block(conv, O, n, pool, n_classes, cfg, own))
            side, C = side // pool, O
        first = {"concat": min(1, len(channels) - 1), "last": len(channels) - 1, "goodness": 0}[cfg.head]
        self.seen = slice(first, None)
        self.head = Head(sum(block.n_features for block in self.blocks[self.seen]), n_classes, rng, cfg.head_dropout)
        self.head_opt = Adam(self.head.params, cfg.lr, decay=cfg.weight_decay)
        self.steps = Steps()

    @property
    def layers(self):
        """All layers, and an optimiser for each, in one order."""
        layers = [layer for block in self.blocks for layer in block.layers.values()]
        return [*layers, self.head], [opt for block in self.blocks for opt in block.opts.values()] + [self.head_opt]

    def of_blocks(self, df):
        """dL/df (B, D) of the head's features -> for each block its part (B, O), None where the head does not look."""
        n = len(self.blocks)
        looked = set(range(n)[self.seen])
        cuts = [0]
        for i, block in enumerate(self.blocks):
            cuts.append(cuts[i] + (block.n_features if i in looked else 0))
        return [df[:, cuts[i] : cuts[i + 1]] if i in looked else None for i in range(n)]

    def inputs(self, x):
        """Images (B, H, W, C) as the first block sees them."""
        return x.reshape(len(x), 1, 1, -1) if self.flat else x

    def head_step(self, features, labels, cfg, key):
        """One step of the head on features (B, D) that nothing is handed back to -> loss."""
        scores, cache = self.head.forward(features, key)
        loss, d = softmax_cross_entropy(scores, labels, cfg.smoothing)
        self.head_opt.step(clip(self.head.backward(d, cache)[1], cfg.clip))
        return loss


def local_step(net, x, labels, cfg, rng):
    """One step of all blocks, each from its own loss: x (B, H, W, C), labels (B,) -> losses of blocks and head."""
    h, features, losses, xp = net.inputs(x), [], [], namespace(x)
    keys = rng.integers(2**32, size=len(net.blocks) + 1, dtype=np.uint32)
    for block, key in zip(net.blocks, keys[:-1], strict=True):
        z, cache = block.conv.forward(h)
        psi, f, seen = block.read(z)
        loss, dpsi = softmax_cross_entropy(psi, labels)
        dz, grads = block.read_back(dpsi, seen)
        grads["conv"] = block.conv.backward(dz, cache, need_dx=False)[1]  # nothing leaves this block
        clip_and_step([(block.opts, grads)], cfg)
        block.renormalise()
        del cache, seen, dz, grads  # before anything is handed on: one block's activities at a time
        if not cfg.pipelined:
            del z
            z = block.conv.forward(h)[0]
            f = block.features(z)
        h = None  # gone before what replaces it is there
        h = block.hand_on.forward(z, key=key)[0]
        features.append(f)
        losses.append(loss)
        del z
    losses.append(net.head_step(xp.concatenate(features[net.seen], axis=1), labels, cfg, keys[-1]))
    return xp.stack(losses)  # (n_blocks + 1,)


def backprop_step(net, x, labels, cfg, rng):
    """The same by backpropagation, from all blocks' losses (deepsup) or the head's alone (bp)."""
    xp, losses, grads, features = namespace(x), 0, None, []
    for rows in in_batches(len(x), -(-len(x) // cfg.accumulate)):
        more, other, some = backprop(net, x, labels, rows, cfg, rng)
        losses, grads = losses + more, added(grads, other)
        features.append(some)
        del other  # before the next micro-batch: its gradients have been added
    features = xp.concatenate(features)
    opts = [block.opts for block in net.blocks] + [{"head": net.head_opt}]
    clip_and_step(list(zip(opts, grads, strict=True)), cfg)
    for block in net.blocks:
        block.renormalise()
    if cfg.credit == "deepsup":  # as in local_step, the head looks on
        key = rng.integers(2**32, size=1, dtype=np.uint32)[0]
        losses = xp.stack([*losses, net.head_step(features, labels, cfg, key)])
    return losses


def added(grads, more):
    """Gradients of blocks and head, [{layer: {name: array}}, ...], plus others (None: there are none yet), in place."""
    if grads is None:
        return more
    for mine, theirs in zip(grads, more, strict=True):
        for layer, own in mine.items():
            for k in own:
                own[k] += theirs[layer][k]
    return grads


def backprop(net, x, labels, rows, cfg, rng):
    """These rows' part of a batch -> the losses that learn, gradients of blocks and head, features of the head."""
    h, labels, share = net.inputs(x[rows]), labels[rows], np.float32((rows.stop - rows.start) / len(x))
    features, every, losses, xp = [], [], [], namespace(x)
    keys = rng.integers(2**32, size=len(net.blocks) + 1, dtype=np.uint32)
    for block, key in zip(net.blocks, keys[:-1], strict=True):
        below = h
        z, cache = block.conv.forward(h)
        psi, f, seen = block.read(z)
        loss, dpsi = softmax_cross_entropy(psi, labels)
        h, on = block.hand_on.forward(z, key=key)
        seen = seen if cfg.credit == "deepsup" else None
        every.append((below, key, dpsi * share, None if cfg.recompute else (cache, seen, on)))
        features.append(f)
        losses.append(loss * share)
        del z, cache, seen, on, below  # with --recompute nothing holds them now
    features = xp.concatenate(features[net.seen], axis=1)
    grads, df, dh = [{}], [None] * len(net.blocks), None
    if cfg.credit == "bp":
        scores, cache = net.head.forward(features, keys[-1])
        loss, d = softmax_cross_entropy(scores, labels, cfg.smoothing)
        dfeatures, own = net.head.backward(d * share, cache, need_dx=True)
        losses, grads, df = [loss * share], [{"head": own}], net.of_blocks(dfeatures)
    for block, df_own in reversed(list(zip(net.blocks, df, strict=True))):
        below, key, dpsi, caches = every.pop()  # what a block kept goes when its gradients are there
        if caches is None:
            z, cache = block.conv.forward(below)
            caches = cache, block.read(z)[2] if cfg.credit == "deepsup" else None, block.hand_on.cache(z, key)
            del z
        cache, seen, on = caches
        dz, own = 0, {}
        if cfg.credit == "deepsup":
            dz, own = block.read_back(dpsi, seen)
        elif df_own is not None:
            dz = Parts(1).backward_means(df_own[:, None, None], on[0])
        if dh is not None:  # the line that Forward-Forward does without, in place
            dz = iadd(block.hand_on.backward(dh, on), full(dz))
        dh, own["conv"] = block.conv.backward(dz, cache, need_dx=block is not net.blocks[0])
        grads.insert(0, own)
        del below, caches, cache, seen, on, dz
    return xp.stack(losses), grads, features


def clip_and_step(groups, cfg):
    """One step of each group: optimisers {layer: one}, their gradients {layer: {name: array}}; clipped as cfg says."""
    if cfg.clip_by == "network":
        every = [({}, {})]
        for i, group in enumerate(groups):
            for whole, own in zip(every[0], group, strict=True):
                whole.update({(i, layer): part for layer, part in own.items()})
        groups = every
    for opts, grads in groups:
        clipped = clip({(layer, k): g for layer, own in grads.items() for k, g in own.items()}, cfg.clip)
        for layer, own in grads.items():
            opts[layer].step({k: clipped[layer, k] for k in own})


STEPS = {"local": local_step, "deepsup": backprop_step, "bp": backprop_step}


def scores_of(net, x):
    """Images (N, H, W, C) -> scores of all classes: of the blocks (n_blocks, N, K), of the head (N, K)."""
    found, heads = [], []
    for rows in in_batches(len(x), 250):
        h, psis, features = net.inputs(x[rows]), [], []
        for block in net.blocks:
            z, _ = block.conv.forward(h, train=False)
            psi, f, _ = block.read(z, train=False)
            h, _ = block.hand_on.forward(z, train=False)
            psis.append(psi)
            features.append(f)
        heads.append(host(net.head.forward(namespace(x).concatenate(features[net.seen], axis=1))[0]))
        found.append(host(namespace(x).stack(psis)))
    return np.concatenate(found, axis=1), np.concatenate(heads)


class Split(splits.Split):
    """The images of one run, all of 32 x 32 or more, grey ones in three channels.

    Pictures are read from their files when they are needed. There, `crop` (unless 0) means a new place anywhere in the
    file's picture, whose shorter side is 8/7 of what is cut out, while arrays' images are moved and black moves in.
    """

    def __init__(self, ds, cfg):
        super().__init__(ds, cfg)
        for name in ("train", "val", "test"):
            images, labels = getattr(self, name)
            setattr(self, name, (at_least_32(images), labels))
        self.shape = self.train[0].shape[1:]
        self.size = int(np.prod(self.shape))
        mean, sd = (part[: self.shape[2]] for part in self.mean_sd)
        self.scale, self.offset = (np.tile(part, self.shape[1]) for part in (1 / (255 * sd), mean / sd))  # (W C,)
        self.about["mean"], self.about["sd"] = mean, sd
        if isinstance(self.train[0], Pictures):
            self.about["streamed"] = True

    def to(self, xp):
        super().to(xp)
        self.scale, self.offset = xp.asarray(self.scale), xp.asarray(self.offset)

    def floats(self, images):
        """uint8 (N, H, W, C) -> float32 with mean 0 and standard deviation 1 in each channel of the training set."""
        N, H, W, C = images.shape
        x = images.reshape(N, H, W * C).astype(np.float32)
        x *= self.scale
        x -= self.offset
        return x.reshape(images.shape)

    def read(self, batches, cfg, rng):
        """Training images in files, of these batches of rows, one batch after the other, decoded ahead of their use.

        -> a generator of uint8 (B, H, W, C), where the labels are. The places are drawn here, before it begins.
        """
        order, labels = np.concatenate(batches), host(self.train[1])
        keys = rng.integers(2**32, size=len(order), dtype=np.uint32) if cfg.crop else None
        reader = self.train[0][order].batches(cfg.batch_size, keys)

        def each():
            for rows, (images, own) in zip(batches, reader, strict=True):
                if not np.array_equal(own, labels[rows]):  # rather no training than one on other images
                    raise RuntimeError("the reader gave other images than the batch's")
                yield like(self.train[1], images)

        return each()

    def changed(self, rows, cfg, rng, images=None):
        """Training images of these rows, changed at random as cfg says -> float32 (B, H, W, C), labels (B,).

        images: those of the rows, where `read` gave them.
        """
        rows = like(self.train[1], rows)
        x = self.train[0][rows] if images is None else images
        x = augment.flip(x, rng) if cfg.flip else x
        x = augment.shift(x, cfg.crop, rng) if cfg.crop and images is None else x
        x = augment.jitter(x, cfg.jitter, rng) if cfg.jitter else x
        x = self.floats(x)
        return (augment.cutout(x, cfg.cutout, rng) if cfg.cutout else x), self.train[1][rows]


def at_least_32(images):
    """uint8 (N, H, W, 1 or 3) -> (N, 32 or more, 32 or more, 3): colour images (MedMNIST) grow (DTG-FF, App. D.2), grey
    ones get a border. Pictures have the size that was asked for."""
    if isinstance(images, Pictures):
        return images
    if images.shape[3] == 3 and max(images.shape[1:3]) < 32:
        return upsampled(images, 32)
    border = [max(0, 32 - n) for n in images.shape[1:3]]
    if any(border):
        images = np.pad(images, ((0, 0), *((n // 2, n - n // 2) for n in border), (0, 0)))
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


def check_images(ds, cfg):
    """Raises UsageError for images that the backbones' pooling does not divide."""
    H, W, _ = at_least_32(ds.x_train[:1]).shape[1:]
    if H != W or (H % 32 and cfg.backbone != "mlp"):
        raise cli.UsageError(f"{ds.name} has images of {H} x {W}: the networks take squares of 32, 64, 96, ...")


def check(cfg, ds):
    """Say in one line what cannot work, before anything is computed."""
    splits.check(ds, cfg)
    runs.at_least(cfg, 1, "n_epochs", "batch_size", "accumulate", "eval_subset")
    runs.at_least(cfg, 0, "alpha", "warmup", "weight_decay", "crop", "jitter", "cutout", "lr_end")
    runs.positive(cfg, "width", "lr", "temperature_lr", "clip", "scale")
    if cfg.lr_end > min(cfg.lr, cfg.temperature_lr):
        raise cli.UsageError(f"--lr-end {cfg.lr_end:g}: at most --lr and --temperature-lr, which fall to it")
    for name in ("dropout", "head_dropout", "smoothing"):
        if not 0 <= getattr(cfg, name) < 1:
            raise cli.UsageError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: from 0 to less than 1")
    check_images(ds, cfg)
    if cfg.credit == "bp" and cfg.head == "goodness":
        raise cli.UsageError("--head goodness: with --credit bp no block is read")
    if cfg.credit == "local" and (cfg.accumulate > 1 or cfg.recompute):
        raise cli.UsageError("--accumulate and --recompute save memory in backpropagation: --credit deepsup or bp")
    if cfg.credit == "local" and cfg.clip_by == "network":
        raise cli.UsageError("--clip-by network: with --credit local every block's step is its own")
    if cfg.credit != "local" and not cfg.pipelined:
        raise cli.UsageError(f"--no-pipelined is an order of local steps: --credit {cfg.credit} has one step for all")
    if cfg.credit == "bp" and (cfg.projection, cfg.goodness_norm) != ("rule", "none"):
        raise cli.UsageError("--projection and --goodness-norm: with --credit bp no block is read")
    idle = {"scale": cfg.rule not in ("hff", "cwc"), "alpha": cfg.rule == "cwc" or cfg.backbone == "mlp"}
    idle |= {"temperature": cfg.rule != "dtg", "pooling": cfg.backbone.startswith("resnet")}
    for name in (name for name, nothing in idle.items() if nothing and getattr(cfg, name) != getattr(Config, name)):
        raise cli.UsageError(f"--{name}: nothing that --rule {cfg.rule} --backbone {cfg.backbone} would use")
    if cfg.recompute and cfg.goodness_norm == "batch":
        raise cli.UsageError("--recompute would count a batch twice in the averages of --goodness-norm batch")


def rates(highest, cfg, epoch, n):
    """The learning rates of an epoch's n steps, from lr_end up to the highest one, and back: a list of n numbers."""
    steps = range((epoch - 1) * n, epoch * n)
    factors = (cosine(t, cfg.n_epochs * n, round(cfg.warmup * n)) for t in steps)
    return [float(cfg.lr_end + (highest - cfg.lr_end) * factor) for factor in factors]


def train_epoch(net, data, rng, cfg, epoch):
    """One pass over the training images -> losses, means over the epoch, and temperatures at its end."""
    n = len(data.train[0])
    order, start = rng.permutation(n), time.perf_counter()
    batches = [order[rows] for rows in in_batches(n, cfg.batch_size)]
    every, warmer = (rates(lr, cfg, epoch, len(batches)) for lr in (cfg.lr, cfg.temperature_lr))
    _, opts = net.layers

    def one(rng, rows, rate, alpha_rate, *images):
        for opt in opts:
            opt.lr = alpha_rate if "alpha" in opt.params else rate
        return [STEPS[cfg.credit](net, *data.changed(rows, cfg, rng, *images), cfg, rng)]

    label = f"{epoch}/{cfg.n_epochs}"
    if isinstance(data.train[0], Pictures):  # not recorded: that would take all images of the epoch to the GPU at once
        with closing(data.read(batches, cfg, rng)) as images:
            each = zip(cli.progress(batches, label), every, warmer, images, strict=True)
            log = [one(rng, *inputs) for inputs in each]
    else:
        log = net.steps(one, opts, rng, label, batches, every, warmer)
    *loss, head = np.mean([host(losses) for (losses,) in log], axis=0)
    seconds = time.perf_counter() - start
    log = {"head_loss": head, "seconds": seconds, "images_per_second": n / seconds}
    if cfg.credit != "bp":
        log |= {"loss": loss, "T": [block.T for block in net.blocks]}
    return log


def evaluate(net, images, labels, cfg, data):
    """Accuracies on uint8 images or Pictures -> dict, scores of the blocks (n_blocks, N, K)."""
    start, found = time.perf_counter(), []
    for some in pieces(images, 250):
        found.append(scores_of(net, data.floats(like(labels, some) if isinstance(images, Pictures) else some)))
    psi, head = (np.concatenate(part, axis=axis) for part, axis in zip(zip(*found, strict=True), (1, 0), strict=True))
    seconds = time.perf_counter() - start
    labels = host(labels)
    log = {"head_acc": accuracy(head.argmax(axis=1), labels), "images_per_second": len(labels) / seconds}
    return (log | of_blocks(psi, labels) if cfg.credit != "bp" else log), psi


def of_blocks(psi, labels):
    """What the blocks' scores (n_blocks, N, K) are worth, in sum (upper: from the middle up) and alone -> dict."""
    single = psi.argmax(axis=2)  # (n_blocks, N)
    return {
        "sum_acc": accuracy(psi.sum(axis=0).argmax(axis=1), labels),
        "upper_acc": accuracy(psi[len(psi) // 2 :].sum(axis=0).argmax(axis=1), labels),
        "layer_acc": [accuracy(layer, labels) for layer in single],
        "any_acc": float((single == labels).any(axis=0).mean()),  # of an oracle that knows which block to ask
        "disagreement": [[float((a != b).mean()) for b in single] for a in single],
    }


def progress_line(epoch, cfg, log, clock):
    """An epoch in one line, for people."""
    layers = " ".join(f"{100 * acc:.0f}" for acc in log["val"].get("layer_acc", []))
    found = "  ".join(f"{k} {100 * log['val'][k + '_acc']:.1f}" for k in ("sum", "head") if k + "_acc" in log["val"])
    blocks = f"  blocks {layers}" if layers else ""
    return f"epoch {epoch:3d}/{cfg.n_epochs}  val %  {found}{blocks}  | {clock(log['seconds'], epoch)}"


def snapshot(folder, epoch, net):
    """What figures need beside the record: the first block's filters."""
    (folder / "snapshots").mkdir(exist_ok=True)
    filters = host(net.blocks[0].conv.params["W"])
    record.save_arrays(folder / "snapshots" / f"epoch-{epoch:03d}.npz", {"filters": filters}, {"epoch": epoch})


def load_data(name, cfg, options):
    """The data set of that name, however large it is: see Split."""
    return load(name, options.data_dir, auto=options.preset or "cifar10", stream=True)


def run(cfg, options, threads):
    """One run from its start, or from its checkpoint, to its end -> the last line of its record."""
    if options.device == "cpu":
        compilation.announce("conv")
    this = runs.open_run(cfg, options, threads, "ff_cnn", load_data, check, Split)
    cfg, data = this.cfg, this.split
    net = Net(cfg, data.shape, data.n_classes, np.random.default_rng([cfg.seed, 0]))
    saved, rng = {"net": net.layers}, np.random.default_rng([cfg.seed, 3])
    this.restore(saved, {"rng": rng})
    if options.device == "cuda":
        from common import kernels_gpu

        kernels_gpu.tf32(cfg.tf32)
    weights = sum(p.size for layer in net.layers[0] for p in layer.params.values())
    print(f"{cfg.rule}, {cfg.credit}: {cfg.backbone} x {cfg.width:g}, {weights:,} learned numbers", flush=True)
    clock = runs.Clock(this.done, cfg.n_epochs)
    for epoch in range(this.done + 1, cfg.n_epochs + 1):
        log = train_epoch(net, data, rng, cfg, epoch)
        for key, (images, labels) in data.parts("train", "val").items():
            images, labels = images[: cfg.eval_subset], labels[: cfg.eval_subset]
            log[key], _ = evaluate(net, images, labels, cfg, data)
            log[key].pop("disagreement", None)
        if epoch == cfg.n_epochs:
            snapshot(this.folder, epoch, net)
        record.append(this.folder, {"epoch": epoch} | log)
        this.checkpoint(epoch, saved, {"rng": rng})
        print(progress_line(epoch, cfg, {"val": log["train"]} | log, clock), flush=True)

    parts = data.parts("test", "val")
    final = {key: evaluate(net, *part, cfg, data)[0] for key, part in parts.items()}
    if "layer_acc" in final.get("val", ()):  # which block is best, held-out images say
        best = int(np.argmax(final["val"]["layer_acc"]))
        final["test"] |= {"best": best, "best_acc": final["test"]["layer_acc"][best]}
    record.append(this.folder, {"final": final | runs.cost(clock, net.layers[0])})
    print("test accuracy  " + "  ".join(f"{k} {100 * v:.2f} %" for k, v in answers(final["test"]).items()))
    this.finish(options, net.layers[0], "viz/ff_cnn.py")
    return final


def answers(scores):
    """The accuracies of one evaluation that could be called the network's: name -> share."""
    return {k: scores[k + "_acc"] for k in ("sum", "upper", "best", "head") if k + "_acc" in scores}


def main():
    cfg, options = cli.parse(Config, __doc__, choices=CHOICES, presets=PRESETS, device=True)
    threads = runs.threads(options)
    finals = []
    for seed in options.seeds:
        cfg.seed = seed
        finals.append(answers(run(cfg, options, threads)["test"]))
    for name in finals[0]:
        runs.report(f"test accuracy, {name}", [100 * final[name] for final in finals])


if __name__ == "__main__":
    cli.run(main)
