"""Split: which images a run trains on, which are held out to choose settings, and which are for the test at its end."""

from functools import cached_property

import numpy as np

from common import augment, cli
from common.arrays import like
from common.data import Pictures, pieces

SAMPLE = 10_000  # training images behind mean and sd where they are in files


class Split:
    """train, val, test: each uint8 images (N, H, W, C), or Pictures, and int64 labels (N,).

    The last cfg.validation training images of the canonical order are held out; of the others cfg.seed draws
    cfg.train_subset (0: all of them).
    """

    def __init__(self, ds, cfg):
        n = len(ds.x_train) - cfg.validation
        drawn = np.random.default_rng([cfg.seed, 2]).permutation(n)[: cfg.train_subset or n]
        self.train = ds.x_train[drawn], ds.y_train[drawn].astype(np.int64)
        self.val = ds.x_train[n:], ds.y_train[n:].astype(np.int64)
        self.test = ds.x_test, ds.y_test.astype(np.int64)
        self.about = {"train": len(self.train[1])}
        self.n_classes, self.size = len(ds.class_names), int(np.prod(ds.x_train.shape[1:]))

    def parts(self, *names):
        """{name: (images, labels)} of those that hold any."""
        return {name: getattr(self, name) for name in names if len(getattr(self, name)[1])}

    def to(self, xp):
        """All images and labels as arrays of the module xp; Pictures stay in their files."""
        mean_sd = self.mean_sd
        for name in ("train", "val", "test"):
            images, labels = getattr(self, name)
            setattr(self, name, (images if isinstance(images, Pictures) else xp.asarray(images), xp.asarray(labels)))
        self.mean_sd = tuple(xp.asarray(part) for part in mean_sd)

    def batch(self, rows, jitter, rng, flip=False):
        """Training images of these rows as pixels (B, D) from 0 to 1, moved by up to `jitter` pixels and, with `flip`,
        half of them mirrored; labels (B,)."""
        rows = like(self.train[0], rows)
        x = self.train[0][rows]
        x = augment.flip(x, rng) if flip else x
        return pixels(augment.shift(x, jitter, rng) if jitter else x), self.train[1][rows]

    @cached_property
    def mean_sd(self):
        """Mean and standard deviation of the training images' channels, repeated for every pixel: two (D,) arrays.

        Of Pictures, the first SAMPLE count, each seen in its middle.
        """
        images, C = self.train[0], self.train[0].shape[-1]
        images = images[:SAMPLE] if isinstance(images, Pictures) else images
        counts = np.zeros((C, 256))  # how often each channel has each value
        for piece in pieces(images, 250):
            for channel, some in zip(counts, piece.reshape(-1, C).T, strict=True):
                channel += np.bincount(some, minlength=256)
        share, values = counts * (C / images.size), np.arange(256) / 255
        mean = share @ values
        sd = np.sqrt(share @ values**2 - mean**2)
        return tuple(np.tile(part, self.size // len(mean)).astype(np.float32) for part in (mean, sd))


def pixels(images):
    """uint8 (N, H, W, C) -> float32 (N, D), from 0 to 1."""
    return images.reshape(len(images), -1) * np.float32(1 / 255)


def check(ds, cfg):
    """UsageError where the data set cannot be split as cfg says."""
    n = len(ds.x_train)
    if not 0 <= cfg.validation < n:
        raise cli.UsageError(f"--validation {cfg.validation}: {ds.name} has {n} training images")
    if not 0 <= cfg.train_subset <= n - cfg.validation:
        raise cli.UsageError(
            f"--train-subset {cfg.train_subset}: {ds.name} has {n} training images, {cfg.validation} of them held out"
        )
