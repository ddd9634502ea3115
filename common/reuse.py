"""Reuse distances: how much else is touched before the same memory is touched again.

The LRU stack distance of an access is the number of different blocks touched since the last access to its block
(Mattson et al. 1970). A cache of C blocks that throws out what was used longest ago misses exactly the accesses with a
distance of C or more, and the first ones; so one pass over a trace answers for caches of every size.
"""

import numpy as np
from numba import njit

FIRST = -1  # the distance of a block's first access


@njit(cache=True)
def distances(trace):
    """trace (N,) of block numbers from 0 up -> LRU stack distances (N,), FIRST where a block is new. O(N log N).

    A Fenwick tree over time holds a 1 at every block's latest access; the distance is the number of ones since.
    """
    N = len(trace)
    tree = np.zeros(N + 1, np.int64)
    latest = np.full(trace.max() + 1 if N else 1, -1, np.int64)
    found = np.empty(N, np.int64)
    alive = 0
    for now in range(N):
        block = trace[now]
        before = latest[block]
        if before < 0:
            found[now] = FIRST
            alive += 1
        else:
            older, i = 0, before + 1  # ones up to and with the last access of this block
            while i > 0:
                older += tree[i]
                i -= i & -i
            found[now] = alive - older
            i = before + 1
            while i <= N:
                tree[i] -= 1
                i += i & -i
        i = now + 1
        while i <= N:
            tree[i] += 1
            i += i & -i
        latest[block] = now
    return found


def misses(found, blocks):
    """How many accesses a cache of so many blocks has to fetch, first ones included."""
    return int(np.sum((found >= blocks) | (found == FIRST)))


def movement(found, footprint):
    """The data movement distance: the sum over accesses of the root of the distance (Smith et al. 2022). A first access
    comes from as far as all the `footprint` blocks that are ever touched."""
    return float(np.sqrt(np.where(found == FIRST, footprint, found).astype(np.float64)).sum())
