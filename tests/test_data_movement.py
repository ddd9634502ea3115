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
from common.reuse import FAR, data_movement_distance, distances, misses, stays, write_backs

ROOT = Path(__file__).resolve().parent.parent
dm = scripts.load("ff_cifar_lc/data_movement.py")
SMALL = dm.Config(side=9, channels=4, rf="3,3", batch_size=32)
BATCHES = [k.BLOCK // 2, k.BLOCK + k.BLOCK // 2, 2 * k.BLOCK, k.BLOCK + 1]
CACHES = 4, 64, 1024
WAYS = {"ff": dm.ff_trace, "greedy": dm.greedy_trace, "bp": dm.bp_trace}


def lru(trace, written, blocks, begin=0):
    """A cache that throws out what was used longest ago, step by step -> what it fetches and writes back."""
    cache, fetched, out = OrderedDict(), [], []  # block -> the numbers of its last access and of its last write
    for now, (block, write) in enumerate(zip(trace.tolist(), written.tolist(), strict=True)):
        if block not in cache:
            fetched.append(now)
            if len(cache) == blocks:
                _, (last, dirty) = cache.popitem(last=False)
                if dirty and now >= begin:
                    out.append(last)
        _, dirty = cache.pop(block, (None, False))
        cache[block] = now, dirty or write
    return [now for now in fetched if now >= begin], out


def agree_with_lru(trace, written, sizes, begin):
    found = distances(trace)
    ahead, dirty = stays(trace, written, found)
    total = 0
    for blocks in sizes:
        fetched, out = lru(trace, written, blocks, begin)
        assert misses(found, blocks, begin).tolist() == fetched
        assert write_backs(found, ahead, dirty, blocks, begin).tolist() == out
        total += len(out)
    return total


def test_distances_by_hand():
    assert distances(np.array([0, 1, 2, 0, 0, 2, 1])).tolist() == [FAR, FAR, FAR, 2, 0, 1, 2]
    assert len(distances(np.zeros(0, np.int64))) == 0


def test_data_movement_distance_counts_every_byte():
    """Blocks of 4 bytes: 4 accesses of 4 bytes each, from 16, 1, 0 and 9 blocks away."""
    expected = 4 * (64**0.5 + 4**0.5 + 0 + 36**0.5)
    assert np.isclose(data_movement_distance(np.array([FAR, 1, 0, 9]), 16, 4), expected)


@pytest.mark.parametrize("seed", range(4))
def test_misses_and_write_backs_are_those_of_a_simulated_cache(seed):
    rng = np.random.default_rng(seed)
    trace = rng.integers(0, 60, 3000) if seed else np.tile(np.arange(40), 20)
    written = rng.random(len(trace)) < (0.1, 0.3, 0.9, 0.02)[seed]
    for begin in (0, 1, 400):
        assert agree_with_lru(trace, written, (1, 2, 7, 30, 39, 40, 60, 100), begin) > 50


def test_a_write_back_by_hand():
    """Room for two blocks. 0 is written and thrown out by 2, comes back clean and is thrown out by 2 once more."""
    trace, written = np.array([0, 1, 2, 0, 1, 2]), np.array([1, 0, 0, 0, 0, 0], bool)
    found = distances(trace)
    assert write_backs(found, *stays(trace, written, found), 2).tolist() == [0]
    assert write_backs(found, *stays(trace, written, found), 2, begin=3).tolist() == []
    assert write_backs(found, *stays(trace, written, found), 3).tolist() == []  # all three stay


def pieces(memory, begin=0):
    """-> lines, tags, which are writes."""
    trace = np.concatenate(memory.trace[begin:])
    return trace >> 3, trace >> 1 & 3, trace & 1 > 0


@pytest.mark.parametrize("way", WAYS)
def test_misses_and_write_backs_of_a_whole_step(way):
    memory, begin = WAYS[way](replace(SMALL, steps=2))
    lines, _, written = pieces(memory)
    assert agree_with_lru(lines, written, (16, 128, 1024), sum(map(len, memory.trace[:begin]))) > 1000


def lines_of(*arrays):
    return {line for array in arrays for line in range(array.first, array.first + array.n)}


def touched(memory, begin=0):
    """-> all lines, those written."""
    lines, _, written = pieces(memory, begin)
    return set(lines.tolist()), set(lines[written].tolist())


class Watched(dm.Memory):
    """Fails when an access is to no array that is alive, or under another name than its array's."""

    def __init__(self):
        super().__init__()
        self.owner = {}

    def array(self, tag, *shape):
        found = super().array(tag, *shape)
        self.owner |= dict.fromkeys(lines_of(found), dm.TAGS.index(tag))
        return found

    def drop(self, *arrays):
        super().drop(*arrays)
        for line in lines_of(*arrays):
            del self.owner[line]

    def touch(self, *accesses):
        before = len(self.trace)
        super().touch(*accesses)
        for each in set((np.concatenate(self.trace[before:]) >> 1).tolist() if len(self.trace) > before else ()):
            assert self.owner[each >> 2] == each & 3 or each & 3 == dm.TAGS.index("head")


PROCESSORS = {"AVX-512": (16, 8, 12), "AVX2": (8, 4, 8), "NEON": (4, 8, 12)}  # LANES, ROWS, GRAD_ROWS


@pytest.mark.parametrize("blocks", [0.5, 1.5, 2, 0])
@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_touched_but_arrays_that_are_alive(way, processor, blocks, monkeypatch):
    lanes, tile, grad = PROCESSORS[processor]
    numbers = {"LANES": lanes, "ROWS": tile, "GRAD_ROWS": grad, "BLOCK": 2 * lanes, "SLACK": 2 * lanes * grad}
    for name, value in numbers.items():
        monkeypatch.setattr(k, name, value)
    monkeypatch.setattr(dm, "Memory", Watched)
    batch = int(blocks * 2 * lanes) or 1
    WAYS[way](replace(SMALL, side=7, batch_size=batch, steps=2, n_classes=3))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("channels", [4, 16, 24, 32])
def test_a_layers_kernels_touch_all_of_their_arrays_and_nothing_else(channels, batch):
    memory, Q = dm.Memory(), -(-batch // k.BLOCK)
    layer = dm.Layer(memory, 7, 7, 3, 3, channels, 10, images_first=True)
    x = memory.array("activities", batch, 7, 7, 3)
    packed, y = layer.forward(memory, x, batch, relu=True)
    scratch = set(range(y.first + y.n, memory.lines))
    assert len(scratch) == -(-channels * k.BLOCK // 16)
    every, written = touched(memory)
    assert written == lines_of(packed, y) | scratch
    assert every == written | lines_of(x, layer.params["w"], layer.params["b"])

    memory.gaps = []  # what comes now is new
    dz, begin = memory.array("gradients", *layer.out_shape, batch), len(memory.trace)
    grads = layer.gradient(memory, packed, dz, batch)
    scratch = set(range(grads["b"].first + grads["b"].n, memory.lines))
    most = ((k.LANES - 1) // channels + 1 + 3) * 3  # as in the kernel
    sizes = Q * k.BLOCK * k.LANES, k.LANES, (most + k.GRAD_ROWS) * k.LANES
    assert len(scratch) == sum(-(-size // 16) for size in sizes)
    every, written = touched(memory, begin)
    assert lines_of(*grads.values()) <= written <= lines_of(*grads.values()) | scratch
    assert every - written >= lines_of(dz) and every - written <= lines_of(packed, dz)
    assert lines_of(packed) - every <= set(range(packed.first + packed.n - k.SLACK // 16 - 1, packed.first + packed.n))

    begin = len(memory.trace)
    layer.step(memory, grads)
    kept = lines_of(*(array for name in grads for array in (layer.params[name], *layer.adam[name])))
    assert touched(memory, begin) == (kept | lines_of(*grads.values()), kept)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("channels", [4, 16, 24, 32])
def test_input_gradient_reads_all_weights(channels, batch):
    memory = dm.Memory()
    layer = dm.Layer(memory, 7, 7, channels, 3, channels, 0, images_first=False)
    dz = memory.array("gradients", *layer.out_shape, batch)
    below, before = memory.lines, len(memory.trace)
    dx = layer.input_gradient(memory, dz, batch)
    every, written = touched(memory, before)
    scratch = -(-channels * k.BLOCK // 16)
    assert every - written == lines_of(dz, layer.params["w"])
    assert written == set(range(below, memory.lines)) and memory.lines == dx.first + dx.n + scratch


@pytest.mark.parametrize("images_first", [True, False])
def test_pack_reads_images_where_they_lie(images_first):
    """One image row of 16 numbers: a line for each image, or a line for every 16 images of a number."""
    memory, B, N = dm.Memory(), k.BLOCK, 16
    x, packed = memory.array("activities", B, N), memory.array("activities", N, k.BLOCK)
    dm.pack(memory, x, packed, B, 1, N, images_first)
    lines, _, written = pieces(memory)
    turns = [range(lane, lane + k.LANES) for _ in range(0, N, k.LANES) for lane in range(0, B, k.LANES)]
    numbers = [(n * B + b) // 16 for n in range(N) for b in range(0, B, 16)]
    assert (lines[~written] - x.first).tolist() == ([b for turn in turns for b in turn] if images_first else numbers)
    assert set(lines[written].tolist()) == lines_of(packed)


@pytest.mark.parametrize("way", WAYS)
def test_the_first_layer_reads_its_images_one_after_another(way):
    memory, begin = WAYS[way](SMALL)
    images = memory.trace[begin] >> 3  # a new batch is written
    read = memory.trace[begin + 2] >> 3  # then zeros behind the packed images, then this
    assert len(images) == SMALL.batch_size * SMALL.side**2 * 3 // 16
    starts = np.arange(k.LANES) * SMALL.side**2 * 3 // 16  # images side by side start in these lines
    assert set((images[0] + starts).tolist()) <= set(read.tolist()) <= set(images.tolist())


def plain(events):
    """[(line, written)] in order -> the same with one entry for the same line several times in a row."""
    found = []
    for line, write in events:
        if found and found[-1][0] == line:
            found[-1] = line, found[-1][1] or write
        else:
            found.append((line, write))
    return found


class Events:
    """Accesses as (line, written), number by number, of arrays by their names."""

    def __init__(self, **arrays):
        self.arrays, self.found = arrays, []

    def __call__(self, name, offsets, write=False):
        array = self.arrays[name]
        first = array if isinstance(array, int) else array.first
        self.found += [(first + offset // 16, write) for offset in np.ravel(offsets).tolist()]

    def check(self, memory, begin=0):
        lines, _, written = pieces(memory, begin)
        assert plain(zip(lines.tolist(), written.tolist(), strict=True)) == plain(self.found)


def label_arrays(places, K, O, B):
    memory, width = dm.Memory(), {"a": O * B, "u": K * O, "g": K * B, "da": O * B, "du": K * O, "pull": O}
    arrays = {name: memory.array("activities", places * n) for name, n in width.items()}
    return memory, arrays | {"c": memory.array("gradients", K * B)}


def test_label_goodness_is_traced_as_the_kernel_runs():
    places, K, O, B = 3, 4, 5, 32
    memory, at = label_arrays(places, K, O, B)
    dm.label_goodness(memory, at["a"], at["u"], at["g"], places, K, O, B)
    event = Events(**at)
    for place in range(places):  # the kernel's own loops, 16 images at a time
        for label in range(K):
            for i in range(0, B, 16):
                event("g", (place * K + label) * B + i, True)
            for o in range(O):
                event("u", (place * K + label) * O + o)
                for i in range(0, B, 16):
                    event("a", (place * O + o) * B + i)
                    event("g", (place * K + label) * B + i, True)
            for i in range(0, B, 16):
                event("g", (place * K + label) * B + i, True)
    event.check(memory)


def tiles(rows):
    """As `_tiles` cuts them."""
    cuts = [range(m, m + k.ROWS) for m in range(0, rows - k.ROWS + 1, k.ROWS)]
    left = range(len(cuts) * k.ROWS, rows)
    return cuts + [left[m : m + 2] for m in range(0, len(left), 2)]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("B", BATCHES)
def test_forward_is_traced_as_the_kernel_runs(B, relu):
    H, C, rf, O = 4, 2, 3, k.ROWS + 3
    memory, OH, Q, lane = dm.Memory(), H - rf + 1, -(-B // k.BLOCK), np.arange(k.BLOCK)
    sizes = {"xp": Q * H * H * C * k.BLOCK, "w": OH * OH * rf * rf * C * O, "b": OH * OH * O, "y": OH * OH * O * B}
    arrays = {name: memory.array("activities", size) for name, size in sizes.items()}
    event = Events(out=memory.lines, **arrays)
    dm.forward(memory, *arrays.values(), H, H, C, rf, O, B, relu)
    for oy, q, ox in np.ndindex(OH, Q, OH):
        place = oy * OH + ox
        for o in range(O):
            event("b", place * O + o)
            event("out", o * k.BLOCK + lane, True)
        for tile in tiles(O):
            for o in tile:
                event("out", o * k.BLOCK + lane)
            for ky, j in np.ndindex(rf, rf * C):
                event("xp", (((q * H + oy + ky) * H + ox) * C + j) * k.BLOCK + lane)
                event("w", ((place * rf + ky) * rf * C + j) * O + np.array(tile))
            for o in tile:
                event("out", o * k.BLOCK + lane, True)
        if relu:
            event("out", np.arange(O * k.BLOCK), True)
        for o in range(O):
            event("out", o * k.BLOCK + lane)
            event("y", (place * O + o) * B + q * k.BLOCK + lane[: B - q * k.BLOCK], True)
    event.check(memory)


@pytest.mark.parametrize("B", BATCHES)
def test_input_gradient_is_traced_as_the_kernel_runs(B):
    H, C, rf, O = 4, k.ROWS + 1, 3, 16
    memory, OH, Q, lane = dm.Memory(), H - rf + 1, -(-B // k.BLOCK), np.arange(k.BLOCK)
    sizes = {"dzp": Q * OH * OH * O * k.BLOCK, "w": OH * OH * rf * rf * C * O, "dx": H * H * C * B}
    arrays = {name: memory.array("gradients", size) for name, size in sizes.items()}
    event = Events(out=memory.lines, **arrays)
    dm.input_grad(memory, *arrays.values(), H, H, C, rf, O, B)
    for iy, ix, q in np.ndindex(H, H, Q):
        event("out", np.arange(C * k.BLOCK), True)
        for oy in range(max(0, iy - rf + 1), min(OH - 1, iy) + 1):
            for tile in tiles(C):
                for c in tile:
                    event("out", c * k.BLOCK + lane)
                for ox in range(max(0, ix - rf + 1), min(OH - 1, ix) + 1):
                    event("dzp", ((q * OH + oy) * OH + ox) * O * k.BLOCK + np.arange(O * k.BLOCK))
                    for c in tile:  # every line once: the kernel takes number by number in turn with dz
                        event("w", ((((oy * OH + ox) * rf + iy - oy) * rf + ix - ox) * C + c) * O + np.arange(O))
                for c in tile:
                    event("out", c * k.BLOCK + lane, True)
        for c in range(C):
            event("out", c * k.BLOCK + lane)
            event("dx", ((iy * H + ix) * C + c) * B + q * k.BLOCK + lane[: B - q * k.BLOCK], True)
    event.check(memory)


@pytest.mark.parametrize("B", [2 * k.LANES, 2 * k.LANES + 3])
def test_label_error_is_traced_as_the_kernel_runs(B):
    places, K, O = 3, 4, 5
    memory, at = label_arrays(places, K, O, B)
    sums = memory.lines  # where the scratch will lie
    dm.label_error(memory, *[at[name] for name in ("a", "u", "c", "pull", "da", "du")], places, K, O, B)
    event = Events(sums=sums, **at)
    whole = B // k.LANES * k.LANES
    for place in range(places):  # the kernel's own loops
        for o in range(O):
            unit = place * O + o
            for label in range(K):
                event("sums", label * k.LANES, True)
            for i in [*range(0, whole, k.LANES), *range(whole, B)]:
                event("a", unit * B + i)
                event("pull", unit)
                for label in range(K):
                    event("u", (place * K + label) * O + o)
                    event("c", label * B + i)
                    event("sums", label * k.LANES, True)
                event("da", unit * B + i, True)
            for label in range(K):
                event("sums", label * k.LANES)
                event("du", (place * K + label) * O + o, True)
    event.check(memory)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", [4, 16])
def test_a_step_touches_all_that_it_has(way, channels):
    """Weights, both averages of Adam, images: no layer is left out of the trace, nor its update."""
    cfg = replace(SMALL, channels=channels, steps=2)
    memory, begin = WAYS[way](cfg)
    weights = dm.Memory()
    dm.stack(weights, cfg, 0 if way == "bp" else cfg.n_classes)  # a trace begins with these
    images = cfg.batch_size * cfg.side**2 * 3 // 16
    lines, tags, written = pieces(memory, begin)
    assert set(lines[(tags == dm.TAGS.index("weights")) & written].tolist()) == set(range(weights.lines))
    assert set(range(weights.lines, weights.lines + images)) <= set(lines[written].tolist())


def test_greedy_stores_what_a_layer_hands_on_and_copies_nothing():
    cfg = replace(SMALL, steps=2)
    memory, begin = dm.greedy_trace(cfg)
    weights = dm.Memory()
    layers = dm.stack(weights, cfg, cfg.n_classes)
    images = cfg.steps * cfg.batch_size * cfg.side**2 * 3 // 16
    stored = cfg.steps * cfg.batch_size * np.prod(layers[0].out_shape) // 16
    first = weights.lines + images
    lines, _, written = pieces(memory, begin)
    here = (lines >= first) & (lines < first + stored)
    # written once, and read once by `pack` for every SIMD block of images
    assert np.sum(here & written) == stored
    assert np.sum(here & ~written) == stored * max(1, 16 // k.BLOCK)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_greedy_step_is_ffs_but_for_what_the_last_layer_hands_on(n_layers):
    cfg = replace(SMALL, n_layers=n_layers, steps=1)
    counts = [sum(map(len, memory.trace[begin:])) for memory, begin in (dm.ff_trace(cfg), dm.greedy_trace(cfg))]
    y = cfg.batch_size * (cfg.side - 2 * n_layers) ** 2 * cfg.channels // 16
    assert counts[0] - counts[1] == 3 * y  # its mean square, and one pass from y to h


def test_new_arrays_take_the_first_gap_that_is_large_enough():
    memory = dm.Memory()
    a, b, c = [memory.array("head", size) for size in (100, 160, 16)]  # 7, 10 and 1 lines
    memory.drop(a)
    assert memory.array("head", 110).first == a.first and memory.array("head", 16).first == c.first + 1
    memory.drop(b, c)  # neighbours: one gap of 11
    assert memory.array("head", 170).first == b.first and memory.gaps == []


def test_a_line_several_times_in_a_row_is_one_access_and_a_write_if_any_is():
    memory = dm.Memory()
    a = memory.array("weights", 64)
    memory.touch(np.append(a.at([0, 1, 17, 3]), dm.written(a.at([5, 20]))))
    memory.touch(a.at([0, 16]), dm.written(a.at([[1, 40], [17, 40]])))  # rows side by side
    lines, tags, written = pieces(memory)
    assert lines.tolist() == [0, 1, 0, 1, 0, 2, 1, 2] and not tags.any()
    assert np.flatnonzero(~written).tolist() == [0, 1]


def test_the_flatten_belongs_to_the_head_and_fetches_a_line_for_every_image():
    memory, B, D = dm.Memory(), 32, 640
    maps, flat = memory.array("activities", D, B), memory.array("head", B, D)
    dm.flatten(memory, maps, flat, D, B)
    lines, tags, written = pieces(memory)
    assert (tags == dm.TAGS.index("head")).all()
    found = distances(lines)
    fetched = lines[misses(found, 64)]
    assert np.sum(fetched < maps.n) == B * D  # each of the D B / 16 lines 16 times
    assert set(lines[written].tolist()) == lines_of(flat)


@pytest.fixture(scope="module")
def found():
    return dm.ways(replace(SMALL, steps=2), CACHES)


def test_parts_add_up_and_only_backpropagation_has_a_head(found):
    for name, line in found.items():
        for each in (line["data_movement_distance"], *line["fetched"].values(), *line["written"].values()):
            assert np.isclose(each["total"], sum(each[tag] for tag in dm.TAGS)) and min(each.values()) >= 0
        head = [line[key]["4"]["head"] for key in ("fetched", "written")]
        assert (min(head) > 0) if name == "BP" else (head == [0, 0])


def test_a_larger_cache_moves_less_and_a_deeper_network_touches_more(found):
    for line in found.values():
        fetched, out = [[line[key][str(kb)]["total"] for kb in CACHES] for key in ("fetched", "written")]
        assert fetched == sorted(fetched, reverse=True) and fetched[0] <= dm.LINE * line["accesses"]
        assert out == sorted(out, reverse=True) and all(low <= high for low, high in zip(out, fetched, strict=True))
        assert out[0] > 0
    deeper = dm.ways(replace(SMALL, steps=2, n_layers=3), CACHES)
    assert all(deeper[name]["accesses"] > found[name]["accesses"] for name in found)


def script(folder, words):
    command = [sys.executable, str(ROOT / "ff_cifar_lc/data_movement.py"), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("words", ["--side 8 --rf 3,3 --sweep", "--rf 3,x", "--caches 0,4", "--steps 0"])
def test_what_cannot_work_leaves_no_folder(tmp_path, words):
    done = script(tmp_path, [*words.split(), "--out", "out"])
    assert done.returncode == 2 and done.stderr.startswith("error: --") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_script_and_figure(tmp_path):
    words = (
        "--side 9 --channels 2 --rf 3,2 --n-classes 3 --batch-size 32 --steps 1 --caches 4,64 --sweep --out out".split()
    )
    done = script(tmp_path, words)
    assert done.returncode == 0 and "head" in done.stdout, done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    first, *lines, _ = record.read(folder)
    assert {"cpu", "numba"} <= first["machine"].keys() and first["lanes"] == k.LANES
    assert first["command"] == "python ff_cifar_lc/data_movement.py " + " ".join(words[:-2])
    assert {(line["layers"], line["batch"]) for line in lines} >= {(1, 32), (4, 32), (2, 16), (2, 128)}
    command = [sys.executable, str(ROOT / "viz/ff_cifar_lc_data_movement.py"), str(folder), "--out", "dm.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "dm.png").stat().st_size < 200_000, done.stderr
