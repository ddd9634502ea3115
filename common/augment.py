"""Random changes of training images that leave their class as it is: mirror, shift, colours, a square cut out."""

import numpy as np

from common.arrays import gpu_kernels, like, namespace

GREY = 0.299, 0.587, 0.114  # shares of red, green and blue


def flip(images, rng):
    """Mirror every image with probability 1/2, left to right: (B, H, W, C) -> the same shape."""
    mirrored = like(images, rng.random(len(images))) < 0.5
    return namespace(images).where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def shift(images, most, rng):
    """Move every image by up to `most` pixels in each direction; zeros move in: (B, H, W, C) -> the same shape."""
    B, H, W, _ = images.shape
    top, left = moved = rng.integers(0, 2 * most + 1, (2, B))
    if gpu_kernels(images):
        return gpu_kernels(images).shift(images, like(images, moved), most)
    xp = namespace(images)
    padded = xp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    return xp.stack([image[i : i + H, j : j + W] for image, i, j in zip(padded, top, left, strict=True)])


def jitter(images, most, rng):
    """Brightness, then contrast, then saturation times factors from 1 - most to 1 + most, other ones for each image.

    uint8 (B, H, W, 3) -> float32 from 0 to 255, cut off there. Contrast: distance from the image's mean grey;
    saturation: distance from each pixel's grey, 0.299 red + 0.587 green + 0.114 blue.
    """
    xp = namespace(images)
    factors = like(images, rng.uniform(1 - most, 1 + most, (3, len(images), 1, 1, 1))).astype(np.float32)
    brightness, contrast, saturation = factors[0], factors[1], factors[2]
    x = images.astype(np.float32)
    # grey is linear: brightness and contrast together are x -> scale x + offset, whose offset is grey
    scale, mean = brightness * contrast, _grey(x).mean(axis=(1, 2))[:, None, None, None]
    x *= scale
    x += (1 - contrast) * brightness * mean
    xp.clip(x, 0, 255, out=x)
    grey = _grey(x)[..., None]
    x -= grey
    x *= saturation
    x += grey
    return xp.clip(x, 0, 255, out=x)


def _grey(x):
    """(B, H, W, 3) -> (B, H, W)."""
    red, green, blue = GREY
    if namespace(x) is np:
        return x @ np.array(GREY, np.float32)
    return red * x[..., 0] + green * x[..., 1] + blue * x[..., 2]  # nothing comes from the host: see steps.py


def cutout(images, side, rng):
    """Set a square of side x side to 0, its middle anywhere in the image (DeVries & Taylor 2017): (B, H, W, C)."""
    B, H, W, _ = images.shape
    xp = namespace(images)
    rows, columns = (
        abs(xp.arange(n)[None] - (like(images, rng.integers(0, n, B))[:, None] - side // 2 + (side - 1) / 2)) < side / 2
        for n in (H, W)
    )  # (B, H), (B, W): which lie in the square
    return images * ~(rows[:, :, None] & columns[:, None])[..., None]
