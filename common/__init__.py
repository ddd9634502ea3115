"""What every experiment shares. Import this package before NumPy: it says how idle threads wait and memory is kept.

The kernels run on numba's threads, matrix products on BLAS's, in turn. By default the threads of either pool spin for
milliseconds after their work, on the cores that the other pool needs: on two cores that made every kernel four times
slower. Both read these settings when they are loaded; your own settings, if any, stand.

A step makes and drops arrays of megabytes. glibc hands their pages back to the system, which zeroes new ones for the
next step. Keeping them makes a step of ff_mnist/amsga.py 1.8 times as fast (results/benchmarks/amsga.txt).
"""

import ctypes
import os
from pathlib import Path

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")  # sleep after 2^16 cycles, about 20 microseconds
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # about as long, for OpenMP under numba


def _keep_memory():
    """Freed memory stays ours, but for arrays above 1 GiB: mallopt(3) M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD."""
    try:
        glibc = os.confstr("CS_GNU_LIBC_VERSION").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # another system, whose allocator is another one
        return
    if glibc and not any(name.startswith("MALLOC_") for name in os.environ):
        for option, value in ((-1, -1), (-2, 64 << 20), (-3, 1 << 30)):
            ctypes.CDLL(None).mallopt(option, value)  # 1 if it is heeded, as by glibc 2.36; if not, nothing is lost


_keep_memory()

ROOT = Path(__file__).resolve().parent.parent
