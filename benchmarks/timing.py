"""Fair timing on an unfair machine: everything as a ratio to the large sgemm measured in the same process."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import cli, compilation, record  # before NumPy, see common/__init__.py

# isort: split
import numpy as np


def timed(functions, repeats=9, calls=1):
    """Median seconds of one call of each function.

    They take turns (a b c a b c ...), so that all see the same machine; a turn is one call that does not count, to
    bring back what the others have pushed out of the caches, then `calls` calls that do.
    """
    seconds = np.empty((repeats, len(functions)))
    for r in range(repeats):
        for i, f in enumerate(functions):
            f()
            start = time.perf_counter()
            for _ in range(calls):
                f()
            seconds[r, i] = (time.perf_counter() - start) / calls
    return np.median(seconds, axis=0)


def sgemm(n=3072):
    """A large float32 matrix product, with the threads that BLAS has now -> function, its FLOP."""
    a = np.random.default_rng(0).standard_normal((n, n), dtype=np.float32)
    return lambda: a @ a, 2 * n**3


def start(threads=0):
    """Set the threads, print the machine -> (threads, sgemm rate)."""
    threads = cli.set_threads(threads)
    compilation.announce("local")
    machine = record.machine(threads)
    product, flop = sgemm()
    rate = flop / timed([product], repeats=5)[0]
    print(
        f"{machine['cpu']}, {machine['cores']} cores, {threads} threads; "
        f"numpy {machine['numpy']}, numba {machine['numba']}"
    )
    print(f"sgemm {rate / 1e9:.0f} GFLOP/s (3072 x 3072 x 3072, float32)")
    return threads, rate


def worst(a, b):
    """Norm-wise relative difference of arrays a and b."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)
