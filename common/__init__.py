"""What every experiment shares. Import this package before NumPy: it says how idle threads wait, once and for all.

The kernels run on numba's threads, matrix products on BLAS's, in turn. By default the threads of either pool spin for
milliseconds after their work, on the cores that the other pool needs: on two cores that made every kernel four times
slower. Both read these settings when they are loaded; your own settings, if any, stand.
"""

import os
from pathlib import Path

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")  # sleep after 2^16 cycles, about 20 microseconds
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # about as long, for OpenMP under numba

ROOT = Path(__file__).resolve().parent.parent
