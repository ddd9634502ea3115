"""Reuse distances against a cache simulated literally; traces that touch what a step touches, no more and no less."""

import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scripts

from common import kernels_cpu as k
from common import record
from common.reuse import FIRST, distances, misses, movement

ROOT = Path(__file__).resolve().parent.parent
dm = scripts.load("ff_cifar_lc/data_movement.py")
SMALL = dm.Config(side=9, channels=4, rf="3,3", batch_size=32)


def lru_misses(trace, blocks):
    """A cache that throws out what was used longest ago, step by step."""
    cache, missed = OrderedDict(), 0
    for block in trace.tolist():
        if block in cache:
            cache.move_to_end(block)
            continue
        missed += 1
        cache[block] = None
        if len(cache) > blocks:
            cache.popitem(last=False)
    return missed


def test_distances_by_hand():
    assert distances(np.array([0, 1, 2, 0, 0, 2, 1])).tolist() == [FIRST, FIRST, FIRST, 2, 0, 1, 2]
    assert len(distances(np.zeros(0, np.int64))) == 0
    assert np.isclose(movement(np.array([FIRST, 4, 0, 9]), 16), 4 + 2 + 0 + 3)


@pytest.mark.parametrize("seed", range(3))
def test_misses_are_those_of_a_simulated_cache(seed):
    rng = np.random.default_rng(seed)
    trace = rng.integers(0, 60, 3000) if seed else np.tile(np.arange(40), 20)
    found = distances(trace)
    for blocks in (1, 2, 7, 30, 39, 40, 60, 100):
        assert misses(found, blocks) == lru_misses(trace, blocks)


@pytest.mark.parametrize("way", ["ff", "greedy", "bp"])
def test_misses_of_a_whole_step(way):
    trace, _ = dm.greedy_trace(SMALL, 2) if way == "greedy" else {"ff": dm.ff_trace, "bp": dm.bp_trace}[way](SMALL)
    found = distances(trace)
    for blocks in (16, 128, 1024):
        assert misses(found, blocks) == lru_misses(trace, blocks)


def test_a_layers_kernels_touch_their_arrays_and_nothing_else():
    memory, B = dm.Memory(), 2 * k.BLOCK
    layer = dm.Layer(memory, 9, 9, 3, 3, 4, 10)
    x = memory.array(9, 9, 3, B)
    packed, y = layer.forward(memory, x, B)
    touched, arrays = set(memory.all().tolist()), [x, packed, y, layer.params["w"], layer.params["b"]]
    every = {line for array in arrays for line in range(array.first, array.first + array.n)}
    assert touched == every
    before = len(memory.trace)
    dz = memory.array(layer.OH, layer.OW, 4, B)
    layer.learn(memory, packed, dz, B)
    touched = set(np.concatenate(memory.trace[before:]).tolist())
    wanted = [packed, dz, layer.params["w"], *layer.adam["w"]]
    assert all(set(range(array.first, array.first + array.n)) <= touched for array in wanted)
    assert not touched & set(range(layer.params["u"].first, layer.params["u"].first + layer.params["u"].n))


def test_input_gradient_reads_all_weights():
    memory, B = dm.Memory(), k.BLOCK
    layer = dm.Layer(memory, 7, 7, 4, 3, 4, 0)
    dz = dm.pack(memory, memory.array(5, 5, 4, B), B, 5, 20)
    dx, before = memory.array(7, 7, 4, B), len(memory.trace)
    dm.input_grad(memory, dz, layer.params["w"], dx, *layer.shape, B)
    touched = set(np.concatenate(memory.trace[before:]).tolist())
    assert touched == {line for a in (dz, dx, layer.params["w"]) for line in range(a.first, a.first + a.n)}


def test_freed_arrays_leave_their_place():
    memory = dm.Memory()
    a, b = memory.array(100), memory.array(100)
    memory.drop(a)
    assert memory.array(10, 10).first == a.first and memory.array(100).first not in (a.first, b.first)


def test_backpropagation_touches_more_and_a_larger_cache_fetches_less():
    caches = (4, 64, 1024)
    found = dm.ways(SMALL, caches)
    assert found["BP"]["accesses"] > 0 and found["FF"]["accesses"] > 0
    for line in found.values():
        fetched = [line["fetched"][str(kb)] for kb in caches]
        assert fetched == sorted(fetched, reverse=True) and fetched[0] <= dm.LINE * line["accesses"]
    deeper = dm.ways(replace(SMALL, n_layers=3), caches)
    assert all(deeper[name]["accesses"] > found[name]["accesses"] for name in found)


def test_script_and_figure(tmp_path):
    words = "--side 8 --channels 4 --rf 3,3 --batch-size 32 --caches 4,64 --sweep --out out".split()
    done = subprocess.run(
        [sys.executable, str(ROOT / "ff_cifar_lc/data_movement.py"), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "does not fit" in done.stderr and done.stderr.count("\n") == 1
    words[1] = "12"
    done = subprocess.run(
        [sys.executable, str(ROOT / "ff_cifar_lc/data_movement.py"), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    folder = max((tmp_path / "out").iterdir(), key=lambda path: len(record.read(path)))
    lines = [line for line in record.read(folder) if "ways" in line]
    assert {(line["layers"], line["batch"]) for line in lines} >= {(1, 32), (4, 32), (2, 16), (2, 128)}
    command = [sys.executable, str(ROOT / "viz/ff_cifar_lc_data_movement.py"), str(folder), "--out", "dm.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "dm.png").stat().st_size < 200_000, done.stderr
