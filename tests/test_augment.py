"""Augmentation: images are mirrored or moved, never mixed, and the caller's stay as they are."""

import numpy as np

from common import augment

IMAGES = np.random.default_rng(0).random((400, 6, 5, 3)).astype(np.float32)


def test_flip_mirrors_about_half():
    kept = IMAGES.copy()
    x = augment.flip(IMAGES, np.random.default_rng(1))
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(x, IMAGES, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(x, IMAGES, strict=True)]
    assert np.array_equal(IMAGES, kept) and x.dtype == np.float32
    assert np.all(np.logical_xor(mirrored, same)) and abs(np.mean(mirrored) - 0.5) < 0.1  # four standard deviations


def test_shift_moves_every_way_and_fills_with_zeros():
    x = augment.shift(IMAGES, 2, np.random.default_rng(1))
    assert x.shape == IMAGES.shape
    found = set()
    for moved, image in zip(x, IMAGES, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        ways = [(i, j) for i in range(5) for j in range(5) if np.array_equal(moved, padded[i : i + 6, j : j + 5])]
        assert len(ways) == 1
        found.add(ways[0])
    assert len(found) == 25  # all of them, in 400 draws


def test_no_shift():
    assert np.array_equal(augment.shift(IMAGES, 0, np.random.default_rng(1)), IMAGES)
