"""Sparse: x W where much of x is zero, as in what leaves a ReLU or in a picture of a digit.

Forward-Forward's layers are quiet: a negative row has little activity in it, and normalising keeps zeros. On MNIST four
of five inputs of the upper layers are zero. BLAS multiplies with all of them; here each row takes its own rows of W.
"""

import numpy as np

from common.arrays import kernels
from common.product import matmul

DENSEST = 0.65  # share of x that is not zero, from which BLAS is faster
FEWEST = 32  # rows of x, below which packing W does not pay


def times(x, W):
    """x (B, K), W (K, N) -> x W (B, N)."""
    k = kernels(x)
    if k is None or kernels(W) is None or len(x) < FEWEST or W.shape[1] < k.SPAN or not W.flags.c_contiguous:
        return matmul(x, W)
    some = x[:: len(x) // 8]
    if np.count_nonzero(some) > (DENSEST + 0.1) * some.size:  # no need to look at every row
        return matmul(x, W)
    values, places, counts = k.nonzeros(np.ascontiguousarray(x))
    if counts.sum() > DENSEST * x.size:
        return matmul(x, W)
    out = np.empty((len(x), W.shape[1]), np.float32)
    k.sparse_product(values, places, counts, W, out)
    return out
