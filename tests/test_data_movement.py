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


WAYS = {"ff": dm.ff_trace, "greedy": dm.greedy_trace, "bp": dm.bp_trace}


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
    trace = WAYS[way](replace(SMALL, steps=2))[0].all()
    found = distances(trace)
    for blocks in (16, 128, 1024):
        assert misses(found, blocks) == lru_misses(trace, blocks)


def lines_of(*arrays):
    return {line for array in arrays for line in range(array.first, array.first + array.n)}


def touched(memory, begin=0):
    return set(np.concatenate(memory.trace[begin:]).tolist())


@pytest.mark.parametrize("channels", [4, 16, 24, 32])
def test_a_layers_kernels_touch_all_of_their_arrays_and_nothing_else(channels):
    memory, B = dm.Memory(), 2 * k.BLOCK
    layer = dm.Layer(memory, 7, 7, 3, 3, channels, 10)
    x = memory.array(7, 7, 3, B)
    packed, y = layer.forward(memory, x, B)
    assert touched(memory) == lines_of(x, packed, y, layer.params["w"], layer.params["b"])
    begin = len(memory.trace)
    dz, before = memory.array(layer.OH, layer.OW, channels, B), memory.lines
    grads = layer.gradient(memory, packed, dz, B)
    scratch = set(range(before, memory.lines))
    assert lines_of(packed, dz, *grads.values()) <= touched(memory, begin)
    assert touched(memory, begin) <= lines_of(packed, dz) | scratch
    begin = len(memory.trace)
    layer.step(memory, grads)
    assert touched(memory, begin) == lines_of(
        *grads.values(), *(array for name in grads for array in (layer.params[name], *layer.adam[name]))
    )


@pytest.mark.parametrize("channels", [4, 16, 24, 32])
def test_input_gradient_reads_all_weights(channels):
    memory, B = dm.Memory(), k.BLOCK
    layer = dm.Layer(memory, 7, 7, channels, 3, channels, 0)
    dz = dm.pack(memory, memory.array(5, 5, channels, B), B, 5, 5 * channels)
    dx, before = memory.array(7, 7, channels, B), len(memory.trace)
    dm.input_grad(memory, dz, layer.params["w"], dx, *layer.shape, B)
    assert touched(memory, before) == lines_of(dz, dx, layer.params["w"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", [4, 16])
def test_a_step_touches_all_that_it_has(way, channels):
    """Weights, both averages of Adam, images: no layer is left out of the trace, nor its update."""
    memory, begin = WAYS[way](replace(SMALL, channels=channels, steps=2))
    assert len(memory.kept) >= 9 and lines_of(*memory.kept) <= touched(memory, begin)


def test_new_arrays_take_the_first_gap_that_is_large_enough():
    memory = dm.Memory()
    a, b, c = memory.array(100), memory.array(160), memory.array(16)  # 7, 10 and 1 lines
    memory.drop(a)
    assert memory.array(110).first == a.first and memory.array(16).first == c.first + 1
    memory.drop(b, c)  # neighbours: one gap of 11
    assert memory.array(170).first == b.first and memory.gaps == []


def test_a_larger_cache_fetches_less_and_a_deeper_network_touches_more():
    caches = (4, 64, 1024)
    found = dm.ways(SMALL, caches)
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
