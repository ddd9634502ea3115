"""What a convolutional block measures of its activities z (B, H, W, C), and what it hands on to the next block.

    Parts       z cut into n x n equal parts: mean of z^2 (goodness per part and channel) and mean of z, in one pass
    HandOn      average pool, norm over the channels of each location, dropout: the next block's input
    Grad        dL/dz of such measurements: one number per part and channel, times z or alone; never written out in
                full unless someone asks, because a convolution's weight gradient can read it as it is
    RMSPool, MaxPool   for rules that pool otherwise

float32 takes the kernels, other types the formulas, which are the definition.
"""

import numpy as np

from common.arrays import gpu_kernels, kernels, namespace
from common.layers import kept, least


class Grad:
    """dL/dy (B, H, W, C) from d (B, h, w, C), constant over each of h x w equal parts; times y, if `squares`."""

    def __init__(self, d, y, squares=False):
        self.d, self.y, self.squares = d, y, squares

    def full(self, relu=False):
        """The whole array; relu: 0 where y is not more than 0."""
        mode = 2 if self.squares else int(relu)  # PLAIN, MASKED, TIMES of the kernels
        fast = _kernels(self.y)
        if fast:
            dz = namespace(self.y).empty_like(self.y)
            fast.spread(self.d, self.y, mode, dz)
            return dz
        full = spread(self.d, self.y.shape)
        return full * self.y if self.squares else full * (self.y > 0) if relu else full


def full(dy):
    """A gradient written out, if it is a Grad; else as it is."""
    return dy.full() if isinstance(dy, Grad) else dy


def _kernels(x):
    """The module of compiled passes over images for array x, or None."""
    if kernels(x):
        from common import kernels_image

        return kernels_image
    return gpu_kernels(x)


def spread(d, shape):
    """d (B, h, w, C) -> (B, H, W, C): each value at all places of its part."""
    return namespace(d).repeat(namespace(d).repeat(d, shape[1] // d.shape[1], axis=1), shape[2] // d.shape[2], axis=2)


def parts(x, h, w):
    """(B, H, W, C) -> (B, h, H / h, w, W / w, C). Raises ValueError where the parts would not be equal."""
    B, H, W, C = x.shape
    if H % h or W % w:
        raise ValueError(f"a map of {H} x {W} cannot be cut into {h} x {w} equal parts")
    return x.reshape(B, h, H // h, w, W // w, C)


class Parts:
    """u, m = mean of z^2, mean of z over each of h x w parts: z (B, H, W, C) -> (B, h, w, C) each. No parameters."""

    def __init__(self, h, w=None):
        self.params, self.state, self.h, self.w = {}, {}, h, w or h

    def forward(self, z):
        cut = parts(z, self.h, self.w)
        if fast := _kernels(z):
            u, m = (namespace(z).empty((len(z), self.h, self.w, z.shape[3]), np.float32) for _ in range(2))
            fast.part_moments(z, u, m)
            return (u, m), z
        return ((cut**2).mean(axis=(2, 4)), cut.mean(axis=(2, 4))), z

    def backward_squares(self, du, cache):
        """dL/dz = 2 z dL/du / places in a part, as a Grad."""
        return Grad(du * du.dtype.type(2 / self.places(cache)), cache, squares=True)

    def backward_means(self, dm, cache):
        """dL/dz = dL/dm / places in a part, as a Grad."""
        return Grad(dm * dm.dtype.type(1 / self.places(cache)), cache)

    def places(self, z):
        return z.shape[1] * z.shape[2] / (self.h * self.w)


class HandOn:
    """h = dropout(norm(average pool(z))): z (B, H, W, C) -> h (B, H / pool, W / pool, C). No parameters.

    norm: "layer" (minus the mean over a location's channels, over the standard deviation; Ba et al. 2016, no gain or
    shift), "rms" (over the root of the mean square), or "none". dropout: share of values set to 0, in training.
    """

    def __init__(self, pool=1, norm="layer", dropout=0.0, eps=1e-5):
        self.params, self.state = {}, {}
        self.pool, self.norm, self.dropout, self.eps = pool, norm, dropout, eps

    def forward(self, z, train=True, key=0):
        """key: 32 bits, other ones for every step and layer."""
        rate = self.dropout if train else 0.0
        cache = z, key, rate
        if fast := _kernels(z):
            B, H, W, C = z.shape
            h = namespace(z).empty((B, H // self.pool, W // self.pool, C), np.float32)
            fast.hand_on(z, *self._numbers(key, rate), h)
            return h, cache
        x, _ = self._normed(self._pooled(z))
        return (x * kept(x.shape, key, rate, x.dtype, namespace(x)) if rate else x), cache

    def backward(self, dh, cache):
        """dL/dh -> dL/dz. For backpropagation: Forward-Forward hands nothing back."""
        z, key, rate = cache
        xp = namespace(z)
        if _kernels(z) and _kernels(dh):
            dz = xp.empty_like(z) if z.shape[1] == dh.shape[1] * self.pool else xp.zeros_like(z)
            _kernels(z).hand_back(xp.ascontiguousarray(dh), z, *self._numbers(key, rate), dz)
            return dz
        d = dh * kept(dh.shape, key, rate, dh.dtype, xp) if rate else dh
        x, factor = self._normed(self._pooled(z))
        if self.norm != "none":
            mean = d.mean(axis=3, keepdims=True) if self.norm == "layer" else 0
            d = (d - mean - x * (x * d).mean(axis=3, keepdims=True)) * factor
        dz = xp.zeros_like(z)
        dz[:, : dh.shape[1] * self.pool, : dh.shape[2] * self.pool] = spread(
            d / self.pool**2, (0, dh.shape[1] * self.pool, dh.shape[2] * self.pool)
        )
        return dz

    def _pooled(self, z):
        n = self.pool
        h, w = z.shape[1] // n, z.shape[2] // n  # rows and columns that do not fill a window are left out
        return parts(z[:, : h * n, : w * n], h, w).mean(axis=(2, 4))

    def _normed(self, x):
        if self.norm == "none":
            return x, 1
        if self.norm == "layer":
            x = x - x.mean(axis=3, keepdims=True)
        factor = 1 / namespace(x).sqrt((x * x).mean(axis=3, keepdims=True) + self.eps)
        return x * factor, factor

    def _numbers(self, key, rate):
        eps, grow = np.float32(self.eps), np.float32(1 / (1 - rate))
        key = key if hasattr(key, "get") else np.uint32(key)
        return self.pool, self.norm != "none", self.norm == "layer", eps, key, least(rate), grow


class RMSPool:
    """Root of the mean square over s x s windows: z (B, H, W, C) -> (B, H / s, W / s, C). (ASGE)"""

    def __init__(self, s, eps=1e-8):
        self.params, self.state, self.s, self.eps = {}, {}, s, eps

    def forward(self, z, train=True):
        (u, _), _ = Parts(z.shape[1] // self.s, z.shape[2] // self.s).forward(z)
        y = namespace(z).sqrt(u + z.dtype.type(self.eps))
        return y, (z, y)

    def backward(self, dy, cache):
        z, y = cache
        return z * spread(dy / y / self.s**2, z.shape)


class MaxPool:
    """Largest value of s x s windows: z (B, H, W, C) -> (B, H / s, W / s, C). Of equal values each gets its share."""

    def __init__(self, s):
        self.params, self.state, self.s = {}, {}, s

    def forward(self, z, train=True):
        y = parts(z, z.shape[1] // self.s, z.shape[2] // self.s).max(axis=(2, 4))
        return y, (z, y)

    def backward(self, dy, cache):
        z, y = cache
        first = z == spread(y, z.shape)
        shared = parts(first, *y.shape[1:3]).sum(axis=(2, 4))
        return first * spread(dy / shared, z.shape)
