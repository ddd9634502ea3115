"""What a convolutional block measures of its activities z (B, H, W, C), and what it hands on to the next block.

    Parts       z cut into n x n parts: mean of z^2 (goodness per part and channel) and mean of z, in one pass
    HandOn      pool, norm over the channels of each location, dropout: the next block's input
    Grad        dL/dz of such measurements: one number per part and channel, times z or alone; never written out in
                full unless someone asks, because a convolution's weight gradient can read it as it is

float32 takes the kernels, other types the formulas, which are the definition.
"""

import numpy as np

from common.arrays import gpu_kernels, kernels, like, namespace
from common.layers import kept, least


class Grad:
    """dL/dy (B, H, W, C) from d (B, h, w, C), constant over each of h x w parts; times y, if `squares`."""

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
    rows, columns = (like(d, part_of(n, m)) for n, m in zip(shape[1:3], d.shape[1:3], strict=True))
    return d[:, rows][:, :, columns]


def part_of(n, parts):
    """To which of `parts` parts each of n places belongs; part i goes from i n // parts up to (i + 1) n // parts."""
    return ((np.arange(n) + 1) * parts - 1) // n


class Parts:
    """u, m = mean of z^2, mean of z over each of h x w parts: z (B, H, W, C) -> (B, h, w, C) each. No parameters."""

    def __init__(self, h, w=None):
        self.params, self.state, self.h, self.w = {}, {}, h, w or h

    def forward(self, z):
        xp = namespace(z)
        if fast := _kernels(z):
            u, m = (xp.empty((len(z), self.h, self.w, z.shape[3]), np.float32) for _ in range(2))
            fast.part_moments(z, u, m)
            return (u, m), z
        rows, columns = (
            [slice(i * n // parts, (i + 1) * n // parts) for i in range(parts)]
            for n, parts in zip(z.shape[1:3], (self.h, self.w), strict=True)
        )
        both = (
            xp.stack([xp.stack([x[:, i, j].mean(axis=(1, 2)) for j in columns], 1) for i in rows], 1)
            for x in (z * z, z)
        )
        return tuple(both), z

    def of_map(self, m, z):
        """The mean over the whole map (B, C), from those over parts m, and z."""
        equal = z.shape[1] % self.h == 0 and z.shape[2] % self.w == 0
        return (m if equal else z).mean(axis=(1, 2))

    def backward_squares(self, du, cache):
        """dL/dz = 2 z dL/du / places in a part, as a Grad."""
        return Grad(du * self.shares(du, cache, 2), cache, squares=True)

    def backward_means(self, dm, cache):
        """dL/dz = dL/dm / places in a part, as a Grad."""
        return Grad(dm * self.shares(dm, cache, 1), cache)

    def shares(self, d, z, factor):
        """factor over the number of places in each part: a number, or (h, w, 1) where the parts are unequal."""
        H, W = z.shape[1:3]
        if H % self.h == 0 and W % self.w == 0:
            return d.dtype.type(factor * self.h * self.w / (H * W))
        high, wide = (np.bincount(part_of(n, m)) for n, m in ((H, self.h), (W, self.w)))
        return like(d, (factor / np.outer(high, wide)[..., None]).astype(d.dtype))


class HandOn:
    """h = dropout(norm(pool(z))): z (B, H, W, C) -> h (B, H / pool, W / pool, C). No parameters.

    kind: of pooling, over windows of pool x pool: "average", "rms" (root of the mean square; ASGE) or "max".
    norm: "layer" (minus the mean over a location's channels, over the standard deviation; Ba et al. 2016, no gain or
    shift), "rms" (over the root of the mean square), or "none". dropout: share of values set to 0, in training.
    """

    def __init__(self, pool=1, norm="layer", dropout=0.0, kind="average", eps=1e-5):
        self.params, self.state = {}, {}
        self.pool, self.norm, self.dropout, self.kind, self.eps = pool, norm, dropout, kind, eps

    def forward(self, z, train=True, key=0):
        """key: 32 bits, other ones for every step and layer."""
        cache = self.cache(z, key, train)
        rate = cache[2]
        if fast := _kernels(z):
            B, H, W, C = z.shape
            h = namespace(z).empty((B, H // self.pool, W // self.pool, C), np.float32)
            fast.hand_on(z, *self._numbers(key, rate), h)
            return h, cache
        x, _ = self._normed(self._pooled(z))
        return (x * kept(x.shape, key, rate, x.dtype, namespace(x)) if rate else x), cache

    def cache(self, z, key, train=True):
        """What `backward` needs: all that is handed on can be computed again from it."""
        return z, key, self.dropout if train else 0.0

    def backward(self, dh, cache):
        """dL/dh -> dL/dz. For backpropagation: Forward-Forward hands nothing back."""
        z, key, rate = cache
        xp = namespace(z)
        if _kernels(z) and _kernels(dh):
            dz = xp.empty_like(z) if z.shape[1] == dh.shape[1] * self.pool else xp.zeros_like(z)
            _kernels(z).hand_back(xp.ascontiguousarray(dh), z, *self._numbers(key, rate), dz)
            return dz
        d = dh * kept(dh.shape, key, rate, dh.dtype, xp) if rate else dh
        pooled = self._pooled(z)
        x, factor = self._normed(pooled)
        if self.norm != "none":
            mean = d.mean(axis=3, keepdims=True) if self.norm == "layer" else 0
            d = (d - mean - x * (x * d).mean(axis=3, keepdims=True)) * factor
        dz, (h, w) = xp.zeros_like(z), (n * self.pool for n in dh.shape[1:3])
        shape, inside = (0, h, w), z[:, :h, :w]
        if self.kind == "max" and self.pool > 1:
            dz[:, :h, :w] = (inside == spread(pooled, shape)) * spread(d, shape)
        elif self.kind == "rms" and self.pool > 1:
            dz[:, :h, :w] = inside * spread(d / pooled / self.pool**2, shape)
        else:
            dz[:, :h, :w] = spread(d / self.pool**2, shape)
        return dz

    def _pooled(self, z):
        B, n, C = len(z), self.pool, z.shape[3]
        h, w = z.shape[1] // n, z.shape[2] // n  # rows and columns that do not fill a window are left out
        cut = z[:, : h * n, : w * n].reshape(B, h, n, w, n, C)
        if n == 1 or self.kind == "average":
            return cut.mean(axis=(2, 4))
        return cut.max(axis=(2, 4)) if self.kind == "max" else namespace(z).sqrt((cut**2).mean(axis=(2, 4)) + 1e-8)

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
        kind = ("average", "rms", "max").index(self.kind)  # AVERAGE, RMS, MAX of the kernels
        return self.pool, kind, self.norm != "none", self.norm == "layer", eps, key, least(rate), grow
