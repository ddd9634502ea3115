"""NumPy or CuPy: the data decide. The only place that chooses an array module or a kernel module.

A script makes everything in NumPy, moves it where --device says (`module`, `move`), and from then on every function
asks its arguments. Random numbers are always drawn by NumPy: a run sees the same ones on every device.
"""

import sys

import numpy as np


def namespace(x):
    """The module whose functions work on array x: `numpy` for NumPy arrays, `cupy` for CuPy arrays."""
    return sys.modules[type(x).__module__.partition(".")[0]]


def module(device):
    """The array module of --device: NumPy for "cpu", CuPy for "cuda". Raises UsageError where that cannot work."""
    if device == "cpu":
        return np
    from common.cli import UsageError

    try:
        import cupy
    except ImportError:
        raise UsageError("--device cuda needs CuPy: pip install cupy-cuda12x (or -cuda13x), or leave it out") from None
    try:
        cupy.zeros(1)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise UsageError(f"--device cuda: CuPy finds no GPU that works ({error})") from None
    return cupy


def move(xp, *dicts):
    """Replace the arrays of these dicts by copies that the array module xp works on."""
    for each in dicts:
        for key, value in each.items():
            each[key] = xp.asarray(value)


def like(x, values):
    """NumPy values where array x is: uploaded if it is on a GPU."""
    return namespace(x).asarray(values)


def host(x):
    """x as a NumPy array, for printing, saving and counting; this waits for a GPU."""
    return x.get() if hasattr(x, "get") else np.asarray(x)


def float32(x):
    """A number as float32, also if it is an array on a GPU."""
    return x.astype(np.float32) if hasattr(x, "get") else np.float32(x)


def kernels(x):
    """The module of compiled kernels for array x, or None where only the reference formulas apply.

    NumPy float32 arrays have numba kernels. Everything else (float64 in gradient checks, CuPy arrays) takes the
    reference path, except for what `gpu_kernels` has.
    """
    if type(x) is np.ndarray and x.dtype == np.float32:
        from common import kernels_cpu

        return kernels_cpu
    return None


def gpu_kernels(x):
    """The module of fused kernels for CuPy array x (float32, or uint8 images), or None for any other array."""
    if type(x).__module__.partition(".")[0] == "cupy" and x.dtype.name in ("float32", "uint8"):
        from common import kernels_gpu

        return kernels_gpu
    return None


def aligned(shape):
    """An uninitialised NumPy float32 array that starts on a cache line, so that no vector straddles two."""
    size = int(np.prod(shape))
    room = np.empty(size + 16, np.float32)
    skip = -(room.ctypes.data // 4) % 16
    return room[skip : skip + size].reshape(shape)
