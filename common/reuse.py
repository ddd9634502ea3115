"""Reuse distances: how much else is touched before the same memory is touched again.

The LRU stack distance of an access is the number of other blocks touched since the last access to its block (Mattson
et al. 1970). A cache of C blocks that throws out what was used longest ago misses exactly the accesses with a distance
of C or more, and the first ones; so one pass over a trace answers for caches of every size.

What was written is written back when it is thrown out. `stays` says for every access which caches will not keep its
block until it is touched again, and in which caches the block is dirty, that is, differs from memory.
"""

import numpy as np
from numba import njit

FAR = 2**31 - 1  # a distance beyond every cache: of a block's first access, or to an access that never comes


@njit(cache=True)
def distances(trace):
    """trace (N,) of block numbers from 0 up -> LRU stack distances (N,), int32, FAR where a block is new. O(N log N).

    A Fenwick tree over time holds a 1 at every block's latest access; the distance is the number of ones since.
    """
    N = len(trace)
    tree = np.zeros(N + 1, np.int32)
    latest = np.full(trace.max() + 1 if N else 1, -1, np.int64)
    found = np.empty(N, np.int32)
    alive = 0
    for now in range(N):
        block = trace[now]
        before = latest[block]
        if before < 0:
            found[now] = FAR
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


@njit(cache=True)
def stays(trace, written, found):
    """trace (N,), written (N,) of bool, found (N,) from `distances` -> ahead, dirty, int32 (N,) each.

    ahead: the distance of the next access to the same block, FAR where there is none. Caches of so many blocks or
        fewer will have thrown the block out by then.
    dirty: the largest distance since the block was last written, FAR where it never was. After the access the block is
        dirty in caches of more than so many blocks; smaller ones have written it back and fetched it again since.
    """
    N = len(trace)
    latest = np.full(trace.max() + 1 if N else 1, -1, np.int64)
    ahead, dirty = np.full(N, FAR, np.int32), np.full(N, FAR, np.int32)
    for now in range(N):
        before = latest[trace[now]]
        if before >= 0:
            ahead[before] = found[now]
            dirty[now] = max(dirty[before], found[now])
        if written[now]:
            dirty[now] = 0
        latest[trace[now]] = now
    return ahead, dirty


def misses(found, blocks, begin=0):
    """Numbers of the accesses, from `begin` on, that a cache of so many blocks has to fetch, first ones included."""
    return begin + np.flatnonzero(found[begin:] >= blocks)


def write_backs(found, ahead, dirty, blocks, begin=0):
    """What a cache of so many blocks writes back at its misses from access `begin` on -> (W,): for every block that is
    thrown out dirty, the number of the last access before."""
    fetched = misses(found, blocks)[blocks:]  # a full cache throws one block out at every miss:
    last = np.flatnonzero(ahead >= blocks)[: len(fetched)]  # the one that was used longest ago, so in this order
    return last[(dirty[last] < blocks) & (fetched >= begin)]


def data_movement_distance(found, footprint, size):
    """Sum over the bytes that are accessed of the root of their reuse distance in bytes (Smith et al. 2022).

    found (N,): distances in blocks of `size` bytes. An access is to all bytes of its block, so it adds
    size sqrt(size distance); a first one comes from as far as all the `footprint` blocks that are ever touched.
    The distance counts other blocks only: the same block again, with nothing in between, moves nothing.
    """
    distance = np.where(found == FAR, footprint, found)
    return size**1.5 * float(np.sqrt(distance, dtype=np.float64).sum())
