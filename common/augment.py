"""Random changes of training images that leave their class as it is: mirror images and small shifts."""

import numpy as np

from common.arrays import gpu_kernels, like, namespace


def flip(images, rng):
    """Mirror every image with probability 1/2, left to right: (B, H, W, C) -> the same shape."""
    mirrored = like(images, np.flatnonzero(rng.random(len(images)) < 0.5))
    images = images.copy()
    images[mirrored] = images[mirrored, :, ::-1]
    return images


def shift(images, most, rng):
    """Move every image by up to `most` pixels in each direction; zeros move in: (B, H, W, C) -> the same shape."""
    B, H, W, _ = images.shape
    top, left = moved = rng.integers(0, 2 * most + 1, (2, B))
    if gpu_kernels(images):
        return gpu_kernels(images).shift(images, like(images, moved), most)
    xp = namespace(images)
    padded = xp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    return xp.stack([image[i : i + H, j : j + W] for image, i, j in zip(padded, top, left, strict=True)])
