"""NumPy or CuPy: the data decide. The only place that chooses an array module or a kernel module."""

import sys

import numpy as np


def namespace(x):
    """The module whose functions work on array x: `numpy` for NumPy arrays, `cupy` for CuPy arrays."""
    return sys.modules[type(x).__module__.partition(".")[0]]


def kernels(x):
    """The module of compiled kernels for array x, or None where only the reference formulas apply.

    NumPy float32 arrays have numba kernels. Everything else (float64 in gradient checks, CuPy arrays) takes the
    reference path.
    """
    if type(x) is np.ndarray and x.dtype == np.float32:
        from common import kernels_cpu

        return kernels_cpu
    return None


def aligned(shape):
    """An uninitialised NumPy float32 array that starts on a cache line, so that no vector straddles two."""
    size = int(np.prod(shape))
    room = np.empty(size + 16, np.float32)
    skip = -(room.ctypes.data // 4) % 16
    return room[skip : skip + size].reshape(shape)
