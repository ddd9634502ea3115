"""Dense, ReLU, RMSNorm, Flatten; every layer is forward(x) -> y, cache and backward(dy, cache) -> dx, grads.

No base class and no hidden state between calls. `need_dx=False` is all that Forward-Forward ever asks for: a layer
that hands no gradient to the layer below cannot be part of backpropagation.
"""

import numpy as np

from common.arrays import kernels, namespace
from common.goodness import MeanSquare, rms_inverse, scale_rows
from common.product import gradient
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

        rows (M,), from goodness.unsettled: dy (M, n_out) is of these rows only, the others' is 0; dx is theirs too.
        pull (n_out,), from goodness.peer_pull: added to every row's gradient by what enters the ReLU.
        """
        every, y = cache
        x, y = (every, y) if rows is None else (every[rows], y[rows])
        dz = relu_grad(dy, y) if self.relu else dy
        dx, db = None, dz.sum(axis=0)
        if need_dx:
            dx = (dz if pull is None else dz + pull) @ self.params["W"].T
        if pull is not None:  # the same in every row: in x^T dz one row, the sum of all x, stands for them
            x, dz = stack(x, every.sum(axis=0)), stack(dz, pull)
            db += len(every) * pull
        return dx, {"W": gradient((x, dz)), "b": db}


def activate(z, b):
    """ReLU(z + b), z (B, n) and b (n,); z is used up."""
    if kernels(z) and z.flags.c_contiguous:
        kernels(z).bias_relu(z, b)
        return z
    z += b
    return namespace(z).maximum(z, 0, out=z)


def relu_grad(dy, y):
    """dL/dz from dL/dy and y = ReLU(z), both (B, n)."""
    if kernels(y) and y.flags.c_contiguous:
        dz = np.empty_like(y)
        kernels(y).relu_grad_rows(dy.astype(np.float32, copy=False), y, dz)
        return dz
    return dy * (y > 0)


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


class Flatten:
    """(B, ...) -> (B, D)."""

    def __init__(self):
        self.params, self.state = {}, {}

    def forward(self, x, train=True):
        return x.reshape(len(x), -1), x.shape

    def backward(self, dy, cache, need_dx=False):
        return dy.reshape(cache) if need_dx else None, {}
