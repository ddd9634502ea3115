"""Product: the gradient of a dense layer's weights, x^T dz, not multiplied out.

The gradient is as large as the weights, and all that ever happens to it is one optimiser step. `SGD` and `Adam` compute
it tile by tile and use each tile up while it is in the cache: nothing of the weights' size is written or read for it.
"""

import numpy as np

from common.arrays import gpu_kernels, kernels, namespace

LEAST = 64  # columns: narrower products go to BLAS, whose edges are finer


class Product:
    """parts: pairs x (B, K), dz (B, N); the gradient (K + K' + ..., N) is their products, one below the other."""

    def __init__(self, *parts):
        self.parts = [(np.ascontiguousarray(x), np.ascontiguousarray(dz)) for x, dz in parts]

    def __array__(self, dtype=None, copy=None):
        return np.concatenate([x.T @ dz for x, dz in self.parts]).astype(dtype or np.float32, copy=False)

    def __add__(self, other):
        """The gradient of both batches together: the rows of one below those of the other."""
        pairs = zip(self.parts, other.parts, strict=True)
        return Product(*([np.concatenate(both) for both in zip(mine, theirs, strict=True)] for mine, theirs in pairs))

    def rows(self):
        """(rows of the weights, x, dz) of every part."""
        first = 0
        for x, dz in self.parts:
            yield slice(first, first + x.shape[1]), x, dz
            first += x.shape[1]


def matmul(x, W):
    """x W: x (B, K), W (K, N) -> (B, N)."""
    fused = gpu_kernels(x)
    return fused.matmul(x, W) if fused else x @ W


def gradient(*parts):
    """A Product where there are kernels that make one worthwhile, and the array itself elsewhere."""
    _, dz = parts[0]
    if kernels(dz) and dz.shape[1] >= LEAST:
        return Product(*parts)
    if len(parts) == 1:
        return matmul(parts[0][0].T, dz)
    return namespace(dz).concatenate([matmul(x.T, each) for x, each in parts])
