import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "ff_cifar_lc"), str(ROOT / "tests")]
os.environ.setdefault("NUMBA_NUM_THREADS", "2")  # the same-bits tests want two threads, also on one core
