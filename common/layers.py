"""Dense, ReLU, RMSNorm, BatchNorm, Flatten; every layer is forward(x) -> y, cache and backward(dy, cache) -> dx, grads.

No base class and no hidden state between calls. `need_dx=False` is all that Forward-Forward ever asks for: a layer
that hands no gradient to the layer below cannot be part of backpropagation.
"""

import math

import numpy as np

from common.arrays import gpu_kernels, kernels, namespace
from common.goodness import MeanSquare, rms_inverse, scale_rows
from common.product import gradient, matmul
from common.sparse import times


class Dense:
    """y = ReLU(x W + b), or without the ReLU. params: W (n_in, n_out), normal, sd gain / sqrt(n_in); b (n_out,), 0."""

    def __init__(self, n_in, n_out, rng, relu=True, gain=2**0.5, dtype=np.float32):
        self.params = {
            "W": (gain / np.sqrt(n_in) * rng.standard_normal((n_in, n_out))).astype(dtype),
            "b": np.zeros(n_out, dtype),
        }
        self.state = {}
        self.relu = relu

    def forward(self, x, train=True):
        """x (B, n_in) -> y (B, n_out)."""
        y = times(x, self.params["W"])
        y = activate(y, self.params["b"]) if self.relu else y + self.params["b"]
        return y, (x, y)

    def backward(self, dy, cache, need_dx=False, pull=None, rows=None):
        """dy (B, n_out) -> dx (B, n_in) or None, grads summed over the batch.

        rows (M,) or slice(None), from goodness.unsettled: dy (M, n_out) is of these rows only, the others' is 0; dx is
        theirs too.
        pull (n_out,), from goodness.peer_pull: added to every row's gradient by what enters the ReLU.
        """
        every, y = cache
        x, y = (every, y) if rows is None else (every[rows], y[rows])
        dz = relu_grad(dy, y) if self.relu else dy
        dx, db = None, dz.sum(axis=0)
        if need_dx:
            dx = matmul(dz if pull is None else dz + pull, self.params["W"].T)
        if pull is not None:  # the same in every row: in x^T dz one row, the sum of all x, stands for them
            x, dz = stack(x, every.sum(axis=0)), stack(dz, pull)
            db += len(every) * pull
        return dx, {"W": gradient((x, dz)), "b": db}


def activate(z, b):
    """ReLU(z + b), z (B, ...) and b (...); z is used up."""
    k = kernels(z) or gpu_kernels(z)
    if k and z.ndim == 2 and z.flags.c_contiguous:
        k.bias_relu(z, b)
        return z
    z += b
    return namespace(z).maximum(z, 0, out=z)


def relu_grad(dy, y):
    """dL/dz from dL/dy and y = ReLU(z), both (B, n)."""
    k = kernels(y) or gpu_kernels(y)
    if k and y.flags.c_contiguous:
        dz = namespace(y).empty_like(y)
        k.relu_grad_rows(dy.astype(np.float32, copy=False), y, dz)
        return dz
    return dy * (y > 0)


def dropout(x, rate, key):
    """x (...) with a share `rate` of its values set to 0 and the others divided by 1 - rate (inverted dropout).

    key: 32 bits, other ones for every step and layer.
    """
    return x * kept(x.shape, key, rate, x.dtype, namespace(x))


def coins(shape, key, xp=np):
    """Dropout's coins, uint32 of this shape: a hash of each place's number and the key (MurmurHash3's last steps).

    A hash needs no state, so backpropagation throws the same coins again instead of keeping them.
    """
    key = key if hasattr(key, "get") else np.uint32(key)
    x = xp.arange(math.prod(shape), dtype=np.uint32).reshape(shape) * np.uint32(0x9E3779B9) ^ key
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    x = (x ^ x >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return x ^ x >> np.uint32(16)


def kept(shape, key, rate, dtype, xp=np):
    """What dropout multiplies by: 0 for a share `rate` of the places, 1 / (1 - rate) for the others."""
    return (coins(shape, key, xp) >= least(rate)) * np.dtype(dtype).type(1 / (1 - rate))


def least(rate):
    """The smallest coin that keeps its value."""
    return np.uint32(round(rate * 2**32))


def stack(x, row):
    """x (B, n) with one more row (n,) below."""
    return namespace(x).concatenate([x, row[None]])


class ReLU:
    """y = max(x, 0), for stacks whose layers do not have it built in."""

    def __init__(self):
        self.params, self.state = {}, {}

    def forward(self, x, train=True):
        return namespace(x).maximum(x, 0), x

    def backward(self, dy, cache, need_dx=False):
        return dy * (cache > 0) if need_dx else None, {}


class RMSNorm:
    """y = x / r per row, r = sqrt(mean of x^2 + eps): `goodness.normalise` for those who need its gradient.

    dx = (dy - y mean(y dy)) / r.
    """

    def __init__(self, eps=1e-8):
        self.params, self.state, self.eps = {}, {}, eps

    def forward(self, x, train=True):
        g, _ = MeanSquare().forward(x)
        r_inverse = rms_inverse(g, self.eps)
        y = scale_rows(x, r_inverse)
        return y, (y, r_inverse)

    def backward(self, dy, cache, need_dx=False):
        if not need_dx:
            return None, {}
        y, r_inverse = cache
        along = (y * dy).mean(axis=tuple(range(1, y.ndim)))  # (B,)
        return scale_rows(dy - scale_rows(y, along), r_inverse), {}


class BatchNorm:
    """y = gamma (x - m) / sqrt(v + eps) + beta for every unit, by its mean m and variance v (Ioffe & Szegedy 2015).

    In training m and v are those of x (..., n) over all axes but the last; otherwise, running averages of them.
    params: gamma (n,), beta (n,); state: mean (n,), var (n,).
    """

    def __init__(self, n, momentum=0.1, eps=1e-5, dtype=np.float32):
        self.params = {"gamma": np.ones(n, dtype), "beta": np.zeros(n, dtype)}
        self.state = {"mean": np.zeros(n, dtype), "var": np.ones(n, dtype)}
        self.momentum, self.eps = momentum, eps

    def forward(self, x, train=True):
        axes = tuple(range(x.ndim - 1))
        mean, var = self.state["mean"], self.state["var"]
        if train:
            n = x.size // x.shape[-1]
            mean_now = x.mean(axis=axes)
            var_now = ((x - mean_now) ** 2).mean(axis=axes)
            mean += self.momentum * (mean_now - mean)
            var += self.momentum * (var_now * (n / max(1, n - 1)) - var)
            mean, var = mean_now, var_now
        r_inverse = 1 / namespace(x).sqrt(var + x.dtype.type(self.eps))
        x_hat = (x - mean) * r_inverse
        return x_hat * self.params["gamma"] + self.params["beta"], (x_hat, r_inverse)

    def backward(self, dy, cache, need_dx=False):
        """Of a forward pass in training: the statistics depend on x, too."""
        x_hat, r_inverse = cache
        axes = tuple(range(dy.ndim - 1))
        grads = {"gamma": (dy * x_hat).sum(axis=axes), "beta": dy.sum(axis=axes)}
        if not need_dx:
            return None, grads
        n = dy.size // dy.shape[-1]
        dx = dy - (grads["beta"] + x_hat * grads["gamma"]) / n
        return dx * (self.params["gamma"] * r_inverse), grads


class Flatten:
    """(B, ...) -> (B, D)."""

    def __init__(self):
        self.params, self.state = {}, {}

    def forward(self, x, train=True):
        return x.reshape(len(x), -1), x.shape

    def backward(self, dy, cache, need_dx=False):
        return dy.reshape(cache) if need_dx else None, {}
