"""Random changes of training images that leave their class as it is: mirror images and small shifts."""

import numpy as np


def flip(images, rng):
    """Mirror every image with probability 1/2, left to right: (B, H, W, C) -> the same shape."""
    mirrored = np.flatnonzero(rng.random(len(images)) < 0.5)
    images = images.copy()
    images[mirrored] = images[mirrored, :, ::-1]
    return images


def shift(images, most, rng):
    """Move every image by up to `most` pixels in each direction; zeros move in: (B, H, W, C) -> the same shape."""
    B, H, W, _ = images.shape
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    top, left = rng.integers(0, 2 * most + 1, (2, B))
    return np.stack([image[i : i + H, j : j + W] for image, i, j in zip(padded, top, left, strict=True)])
