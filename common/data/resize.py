"""Images made larger: `upsampled(images, 32)` gives networks for 32x32 MedMNIST's 28x28 without a black border.

In whole numbers throughout, so that it gives the same images on every machine.
"""

import numpy as np

MAX_SIDE = 2048  # with it, 255 (2 side)^2, the largest number on the way, still fits into 32 bits
CHUNK = 1 << 22  # numbers per chunk of images, or else one image: 16 MB for each of some four arrays


def upsampled(images, side):
    """uint8 (N, H, W, C) -> uint8 (N, side, side, C), bilinear; H and W are at most `side`.

    Pixels are squares: the middle of new pixel i lies at old place (i + 1/2) H / side - 1/2, and beyond the outermost
    middles the image goes on as it ends. As PyTorch's interpolate(mode="bilinear", align_corners=False), rounded to the
    nearest whole number, halves up. Raises ValueError.
    """
    if images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype} {images.shape}, not uint8 (N, H, W, C)")
    N, H, W, C = images.shape
    if not 1 <= min(H, W) <= max(H, W) <= side <= MAX_SIDE:
        raise ValueError(f"images of {H}x{W} cannot be upsampled to {side}x{side}: from their own size to {MAX_SIDE}")
    top, bottom, down = _neighbours(H, side)
    left, right, across = _neighbours(W, side)
    down, across = down[:, None, None], across[:, None]
    result = np.empty((N, side, side, C), np.uint8)
    step = max(1, CHUNK // (side * side * max(1, C)))
    for start in range(0, N, step):
        x = images[start : start + step].astype(np.uint32)
        x = x[:, top] * (2 * side - down) + x[:, bottom] * down  # (n, side, W, C), times 2 side
        x = x[:, :, left] * (2 * side - across) + x[:, :, right] * across  # (n, side, side, C), times (2 side)^2
        x += 2 * side**2
        x //= 4 * side**2
        result[start : start + step] = x
    return result


def _neighbours(n, side):
    """The two of n old places that each new one lies between, and the later one's share times 2 side: three (side,)."""
    place = (2 * np.arange(side) + 1) * n - side  # times 2 side
    place = np.clip(place, 0, 2 * side * (n - 1))
    first, share = np.divmod(place, 2 * side)
    return first, np.minimum(first + 1, n - 1), share.astype(np.uint32)
