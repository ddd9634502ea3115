"""Sparse: x W where much of x is zero, as in what leaves a ReLU or in a picture of a digit.

Forward-Forward's layers are quiet: a negative row has little activity in it, and normalising keeps zeros. On MNIST four
of five inputs of the upper layers are zero. BLAS multiplies with all of them; here each row takes its own rows of W.

Where x has few zeros, it is multiplied as it is. A batch of 100 is too few rows for BLAS's way of working: its product
is ours, too.
"""

import numpy as np

from common.arrays import kernels
from common.product import matmul

DENSEST = 0.65  # share of x that is not zero, from which it is not worth looking for the others
FEWEST = 32  # rows of x, below which packing W does not pay
MOST = 256  # rows of x, above which BLAS is faster if there are few zeros


def times(x, W):
    """x (B, K), W (K, N) -> x W (B, N)."""
    k = kernels(x)
    if k is None or kernels(W) is None or len(x) < FEWEST or W.shape[1] < k.SPAN or not W.flags.c_contiguous:
        return matmul(x, W)
    x, out = np.ascontiguousarray(x), np.empty((len(x), W.shape[1]), np.float32)
    some = x[:: len(x) // 8]
    if np.count_nonzero(some) < (DENSEST + 0.1) * some.size:  # otherwise there is no need to look at every row
        values, places, counts = k.nonzeros(x)
        if counts.sum() < DENSEST * x.size:
            k.sparse_product(values, places, counts, W, out)
            return out
    if len(x) > MOST:
        return matmul(x, W)
    k.dense_product(x, W, out)
    return out
