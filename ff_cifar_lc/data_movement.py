"""What one training step moves through memory: Forward-Forward against backpropagation, cache line by cache line.

Idea
    Forward-Forward needs no activity after a layer has learnt from it, while backpropagation comes back for all of
    them. Does it move less? The reads and writes of a step are listed here in the order in which our kernels make them
    (common/kernels_cpu.py, one thread), as numbers of cache lines; the reuse distance of each then says which caches
    would have had it. Nothing is learnt and nothing is timed.

Ways
    FF       one step of ff_cifar_lc/train.py, all labels at once: each layer goes forward, learns, and is done with
    greedy   the same layers, one at a time for --steps steps; the activities of the layer below come from memory
    BP       one step of its twin: all layers forward, all layers back

Printed, per image of a step, for caches of several sizes that throw out what was used longest ago
    fetched   bytes that come in: a line is fetched before it is read, and before it is written
    written   bytes that go out: a line that was written since it was fetched, when it is thrown out
    distance  the data movement distance: every byte of every access counts the root of the number of bytes that were
              touched since its last access (Smith et al. 2022); no size of a cache enters

Parts, of each of these numbers
    weights (and Adam's two averages) · activities · gradients · head. The head is the twin's linear read-out together
    with the copy that NumPy makes to flatten the maps for it. That copy goes image by image through maps in which the
    images are neighbours, so a small cache fetches every line once for each image on it: a property of this read-out,
    not of backpropagation. The total without "head" leaves it out; its lines still take their place in the cache.
    What is fetched belongs to who asks for it, what is written back to who used the line last.

Deviates from the running code
    A gradient's tile comes back to its few dozen lines at once: each of them counts once a tile. Not listed: what asks
    for lines ahead of time; arrays with one number per image or unit, except biases, FF's pull, and its goodness and
    loss gradient under every label; how a batch is made, before its last copy; the softmax's temporaries.

Run
    python ff_cifar_lc/data_movement.py                    # the network of train.py, batches of 64
    python ff_cifar_lc/data_movement.py --sweep            # over depths and batch sizes: for the figure
"""

import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import ROOT, cli, record  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common import kernels_cpu as k
from common.reuse import FAR, data_movement_distance, distances, misses, stays, write_backs

LINE = 64  # bytes
FLOATS = LINE // 4
TAGS = "weights", "activities", "gradients", "head"


@dataclass
class Config:
    seed: int = 0  # nothing is drawn
    side: int = 32  # of the images, three colours
    n_layers: int = 2  # locally connected layers
    channels: int = 16  # units per location
    rf: str = "7,5"  # side of the receptive fields, layer by layer; the last one counts for all further layers
    n_classes: int = 10  # labels
    batch_size: int = 64  # images per step
    steps: int = 4  # of a layer in a row, before the next one has its turn (greedy)
    caches: str = "32,1024,32768"  # kilobytes
    sweep: bool = False  # depths 1 to 4, batches of 16 to 128


# ---- memory: an access is one integer, 8 line + 2 tag + (1 if it writes), so that lists of them are plain arrays


class Memory:
    """Arrays as ranges of cache lines, and the trace of what is touched. A new array takes the first gap that is large
    enough; arrays that are dropped leave gaps, and neighbouring gaps are one."""

    def __init__(self):
        self.lines, self.trace, self.gaps = 0, [], []  # gaps: (first, lines), in order

    def array(self, tag, *shape):
        """-> Array of float32 that starts on a line."""
        n = -(-int(np.prod(shape)) // FLOATS)
        for i, (first, size) in enumerate(self.gaps):
            if size >= n:
                self.gaps[i : i + 1] = [(first + n, size - n)] if size > n else []
                return Array(tag, first, n)
        first, self.lines = self.lines, self.lines + n
        return Array(tag, first, n)

    def drop(self, *arrays):
        for array in arrays:
            self.gaps.append((array.first, array.n))
        merged = []
        for first, n in sorted(self.gaps):
            if merged and sum(merged[-1]) == first:
                merged[-1] = merged[-1][0], merged[-1][1] + n
            else:
                merged.append((first, n))
        self.gaps = merged

    def touch(self, *accesses):
        """Accesses (n, ...), row by row; of several arrays the rows stand side by side. A line several times, with
        nothing in between, is one access, and a write if any of them is."""
        if not accesses[0].size:
            return
        accesses = np.concatenate([each.reshape(len(each), -1) for each in accesses], axis=1).ravel()
        lines = accesses >> 3
        starts = np.flatnonzero(np.append(True, lines[1:] != lines[:-1]))
        self.trace.append(np.bitwise_or.reduceat(accesses, starts).astype(np.int32))

    def stream(self, *accesses):
        """One pass over arrays side by side, element by element."""
        most = max(map(len, accesses))
        self.touch(*[each[np.arange(most) * len(each) // most] for each in accesses])


@dataclass
class Array:
    """tag: what it is, one of TAGS; first: its first line; n: lines."""

    tag: str
    first: int
    n: int

    def at(self, offsets):
        """Accesses to the floats at these offsets (...) -> (...)."""
        return (self.first + np.asarray(offsets, np.int64) // FLOATS) * 8 + TAGS.index(self.tag) * 2

    def runs(self, starts, n):
        """Accesses to runs of n floats that start at these offsets (...) -> (..., lines)."""
        starts = np.asarray(starts, np.int64)[..., None]
        over = FLOATS - 1 if n % FLOATS or np.any(starts % FLOATS) else 0  # of a run that does not start on a line
        return self.at(starts + np.minimum(np.arange(0, n + over, FLOATS), n - 1))

    def every(self):
        return self.at(np.arange(self.n) * FLOATS)


def written(accesses):
    """The same accesses, as writes (or as a read and a write)."""
    return accesses | 1


def rows(accesses, n):
    """Accesses (m,) -> (n, m): the same ones in every row."""
    return np.tile(accesses, (n, 1))


# ---- the kernels of common/kernels_cpu.py, loop by loop; their shapes are explained there


def blocks(B):
    return -(-B // k.BLOCK)


def pack(memory, x, packed, B, H, N, images_first):
    """pack: x, images (B, H, N) or (H, N, B) -> packed (Q, H, N, BLOCK)."""
    for i in range(H):
        for q in range(blocks(B)):
            b0, row, n = q * k.BLOCK, (q * H + i) * N, 0
            lanes = min(k.BLOCK, B - b0)
            while images_first and lanes == k.BLOCK and n + k.LANES <= N:
                for lane in range(0, k.BLOCK, k.LANES):  # LANES images times LANES numbers, turned in registers
                    memory.touch(x.runs(((b0 + lane + np.arange(k.LANES)) * H + i) * N + n, k.LANES))
                    memory.touch(written(packed.at((row + n + np.arange(k.LANES)) * k.BLOCK + lane)))
                n += k.LANES
            rest = np.arange(n, N)
            if images_first:
                read = x.at(((b0 + np.arange(lanes)) * H + i) * N + rest[:, None])  # (N - n, lanes)
            else:
                read = x.runs((i * N + rest) * B + b0, lanes)  # (N - n, lines)
            memory.touch(read, written(packed.runs((row + rest) * k.BLOCK, k.BLOCK)))


def tile_rows(M):
    """_tiles: how M rows are cut."""
    cuts, m = [], 0
    while m + k.ROWS <= M:
        cuts.append((m, k.ROWS))
        m += k.ROWS
    while m + 2 <= M:
        cuts.append((m, 2))
        m += 2
    return cuts + ([(m, 1)] if m < M else [])


def forward(memory, packed, w, b, y, H, W, C, rf, O, B, relu):
    """forward: packed images -> y (OH, OW, O, B), block of images by block, row by row."""
    OH, OW = H - rf + 1, W - rf + 1
    out = memory.array(y.tag, O, k.BLOCK)
    unit = out.runs(np.arange(O) * k.BLOCK, k.BLOCK)  # (O, lines)
    field = (np.arange(rf)[:, None] * W * C + np.arange(rf * C)).ravel()  # places in an image, (rf rf C,)
    for oy in range(OH):
        for q in range(blocks(B)):
            lanes = min(k.BLOCK, B - q * k.BLOCK)
            for ox in range(OW):
                units = (oy * OW + ox) * O + np.arange(O)
                memory.touch(b.at(units), written(unit))
                x = packed.runs((((q * H + oy) * W + ox) * C + field) * k.BLOCK, k.BLOCK)  # (rf rf C, lines)
                for m, n in tile_rows(O):
                    memory.touch(unit[m : m + n])
                    memory.touch(x, w.runs((oy * OW + ox) * rf * rf * C * O + np.arange(rf * rf * C) * O + m, n))
                    memory.touch(written(unit[m : m + n]))
                if relu:
                    memory.touch(written(unit))
                memory.touch(unit, written(y.runs(units * B + q * k.BLOCK, lanes)))
    memory.drop(out)


def weight_grad(memory, packed, dz, dw, db, H, W, C, rf, O, B):
    """weight_grad: dz (OH, OW, O, B) -> dw, db, row by row of the output, LANES neighbouring units at a time."""
    Q, OH, OW, LANES = blocks(B), H - rf + 1, W - rf + 1, k.LANES
    most = ((LANES - 1) // O + 1 + rf) * C
    turned, total = memory.array("gradients", Q * k.BLOCK, LANES), memory.array("gradients", LANES)
    acc, q = memory.array("gradients", most + k.GRAD_ROWS, LANES), np.arange(Q)[:, None]
    for oy in range(OH):
        memory.touch(written(turned.every()))  # zeros
        for low in range(0, OW * O, LANES):
            high = min(low + LANES, OW * O)
            units = (oy * OW * O + np.arange(low, high)) * B
            done = B // LANES * LANES if high - low == LANES else 0
            i = np.arange(0, done, LANES)[:, None]
            memory.touch(dz.runs(units + i, LANES), written(turned.at((i + np.arange(LANES)) * LANES)))
            if high - low < LANES:
                memory.touch(written(turned.every()))  # zeros
            rest = np.arange(done, B)
            for unit in units if len(rest) else ():
                memory.touch(dz.at(unit + rest), written(turned.at(rest * LANES)))
            memory.stream(turned.every(), written(total.every()))
            memory.touch(total.every())
            memory.touch(written(db.runs(oy * OW * O + low, high - low)))
            left, right = low // O, (high - 1) // O
            n = (right - left + rf) * C
            for ky in range(rf):
                x0 = ((oy + ky) * W + left) * C
                for m in range(0, n, k.GRAD_ROWS):  # a last tile's spare rows are read and written, too
                    tile = m + np.arange(k.GRAD_ROWS)
                    x = packed.runs((q * H * W * C + x0 + tile) * k.BLOCK, k.BLOCK)
                    memory.touch(x, turned.at((q * k.BLOCK + np.arange(k.BLOCK)) * LANES))
                    memory.touch(written(acc.at(tile * LANES)))
                for ox in range(left, right + 1):
                    first, last = max(ox * O, low), min(ox * O + O, high)
                    target = ((oy * OW + ox) * rf + ky) * rf * C * O + first - ox * O
                    source = acc.at(((ox - left) * C + np.arange(rf * C)) * LANES)
                    memory.touch(source, written(dw.runs(target + np.arange(rf * C) * O, last - first)))
    memory.drop(turned, total, acc)


def input_grad(memory, packed, w, dx, H, W, C, rf, O, B):
    """input_grad: packed dz (Q, OH, OW O, BLOCK) -> dx (H, W, C, B)."""
    OH, OW = H - rf + 1, W - rf + 1
    out = memory.array("gradients", C, k.BLOCK)
    unit = out.runs(np.arange(C) * k.BLOCK, k.BLOCK)  # (C, lines)
    for iy in range(H):
        for ix in range(W):
            top, bottom = max(0, iy - rf + 1), min(OH - 1, iy)
            columns = np.arange(max(0, ix - rf + 1), min(OW - 1, ix) + 1)
            for q in range(blocks(B)):
                memory.touch(written(out.every()))
                for oy in range(top, bottom + 1):
                    z = (((q * OH + oy) * OW + columns)[:, None] * O + np.arange(O)) * k.BLOCK
                    z = packed.runs(z, k.BLOCK)  # (columns, O, lines)
                    place = ((oy * OW + columns) * rf + iy - oy) * rf + ix - columns
                    for m, n in tile_rows(C):
                        memory.touch(unit[m : m + n])
                        memory.touch(z, w.runs(place * C * O + m * O, n * O))
                        memory.touch(written(unit[m : m + n]))
                dx0 = ((iy * W + ix) * C + np.arange(C)) * B + q * k.BLOCK
                memory.touch(unit, written(dx.runs(dx0, min(k.BLOCK, B - q * k.BLOCK))))
    memory.drop(out)


def label_goodness(memory, a, u, g, places, K, O, B):
    """label_goodness: a (places, O, B), u (places, K, O) -> g (places, K, B); a is read once for every label."""
    for place in range(places):
        units = a.runs((place * O + np.arange(O)) * B, B)  # (O, lines)
        for label in place * K + np.arange(K):
            own = g.runs(label * B, B)
            memory.touch(written(own))  # zeros
            both = np.stack(np.broadcast_arrays(units, written(own)), axis=2)  # (O, lines, 2)
            memory.touch(u.at(label * O + np.arange(O)), both)
            memory.touch(written(own))  # sum to mean


def label_error(memory, a, u, c, pull, da, du, places, K, O, B):
    """label_error: c (K, B), pull (places, O) -> da, du, shaped as a and u there. LANES images at a time under all
    labels, what is left image by image."""
    sums = memory.array("gradients", K, k.LANES)
    labels, whole = np.arange(K), B // k.LANES * k.LANES
    images = np.append(np.arange(0, whole, k.LANES), np.arange(whole, B))
    n = len(images)
    own, factors = sums.at(labels * k.LANES), c.at(labels * B + images[:, None])  # (K,), (n, K)
    for unit in range(places * O):
        place, o = divmod(unit, O)
        mine = (place * K + labels) * O + o
        memory.touch(written(sums.every()))  # zeros
        under = np.stack([rows(u.at(mine), n), factors, rows(written(own), n)], axis=2)  # (n, K, 3)
        here = unit * B + images
        memory.touch(a.at(here), rows(pull.at([unit]), n), under, written(da.at(here)))
        memory.touch(own, written(du.at(mine)))
    memory.drop(sums)


def flatten(memory, maps, flat, D, B, back=False):
    """The twin's head: maps (D, B) <-> flat (B, D), in the order of what NumPy makes, number by number."""
    maps, d, b = replace(maps, tag="head"), np.arange(D), np.arange(B)
    if back:  # for every place all images
        memory.touch(flat.at(b * D + d[:, None]), written(maps.runs(d * B, B)))
    else:  # for every image all places
        for image in b:
            memory.touch(maps.at(d * B + image), written(flat.at(image * D + d)))


def product(memory, *accesses):
    """The linear read-out, small enough for BLAS to pack once: every array is passed once."""
    for each in accesses:
        memory.touch(each)


# ---- a step


class Layer:
    """A locally connected layer's place in memory: weights, Adam's two averages; with K > 0 label units as well."""

    def __init__(self, memory, H, W, C, rf, O, K, images_first):
        self.OH, self.OW, self.O, self.K = H - rf + 1, W - rf + 1, O, K
        self.images_first = images_first  # whether its input is (B, H, W, C) in memory, not (H, W, C, B)
        self.in_shape, self.out_shape = (H, W, C), (self.OH, self.OW, O)
        self.places, units = self.OH * self.OW, self.OH * self.OW * O
        self.sizes = {"w": units * rf * rf * C, "b": units} | ({"u": units * K} if K else {})
        self.params = {name: memory.array("weights", size) for name, size in self.sizes.items()}
        self.adam = {name: [memory.array("weights", size) for _ in "mv"] for name, size in self.sizes.items()}
        self.shape = H, W, C, rf, O

    def forward(self, memory, x, B, relu):
        """x (H, W, C, B), or images (B, H, W, C) -> packed x, y (OH, OW, O, B)."""
        H, W, C = self.in_shape
        size = blocks(B) * H * W * C * k.BLOCK
        packed = memory.array(x.tag, size + k.SLACK)
        memory.touch(written(packed.runs([size], k.SLACK)))  # zeros behind the images
        pack(memory, x, packed, B, H, W * C, self.images_first)
        y = memory.array("activities", *self.out_shape, B)
        forward(memory, packed, self.params["w"], self.params["b"], y, *self.shape, B, relu)
        return packed, y

    def gradient(self, memory, packed, dz, B):
        """dz (OH, OW, O, B) -> dw, db."""
        grads = {name: memory.array("gradients", self.sizes[name]) for name in ("w", "b")}
        weight_grad(memory, packed, dz, grads["w"], grads["b"], *self.shape, B)
        return grads

    def input_gradient(self, memory, dz, B):
        """dz (OH, OW, O, B) -> dx (H, W, C, B)."""
        packed = memory.array("gradients", blocks(B), *self.out_shape, k.BLOCK)
        pack(memory, dz, packed, B, self.OH, self.OW * self.O, False)
        dx = memory.array("gradients", *self.in_shape, B)
        input_grad(memory, packed, self.params["w"], dx, *self.shape, B)
        memory.drop(packed)
        return dx

    def step(self, memory, grads):
        for name, g in grads.items():
            adam(memory, self.params[name], g, *self.adam[name])


def adam(memory, w, g, m, v):
    memory.stream(*[written(each.every()) for each in (w, m, v)], g.every())


def ff_layer(memory, layer, x, B, old):
    """One layer's part of train.ff_step, up to its update: x as in Layer.forward -> y (OH, OW, O, B).

    old: what the names of that function hold of the layer before, name -> arrays; each is dropped where Python drops
    it, when the name is given away.
    """

    def name(key, *arrays):
        memory.drop(*old.pop(key, ()))
        old[key] = arrays
        return arrays[0]

    K, u, sizes = layer.K, layer.params["u"], (layer.places, layer.K, layer.O, B)
    packed, a = layer.forward(memory, x, B, relu=False)
    name("a, cache", a, packed)
    means = memory.array("activities", layer.places, K, B)
    label_goodness(memory, a, u, means, *sizes)
    g = name("g", memory.array("activities", K, B))
    memory.touch(means.runs(np.arange(layer.places) * K * B, K * B), written(rows(g.every(), layer.places)))  # mean
    memory.drop(means)
    y = name("y", memory.array("activities", *layer.out_shape, B))
    memory.stream(a.every(), written(y.every()))  # ReLU
    pull = name("pull", memory.array("gradients", *layer.out_shape))
    memory.stream(y.every(), written(pull.every()))  # peer normalisation, from the mean over the images
    da, du = memory.array("gradients", *layer.out_shape, B), memory.array("gradients", layer.sizes["u"])
    c = memory.array("gradients", K, B)
    memory.stream(g.every(), written(c.every()))  # the loss's gradient
    label_error(memory, a, u, c, pull, da, du, *sizes)
    grads = layer.gradient(memory, packed, da, B) | {"u": du}
    memory.drop(da, c)
    layer.step(memory, grads)
    memory.drop(*grads.values())
    return y


def normalise(memory, y, h):
    """goodness.normalise: y -> h, what the next layer sees."""
    memory.stream(y.every())  # its mean square
    memory.stream(y.every(), written(h.every()))


def numbers(flag, text):
    """ "7,5" -> [7, 5]. Raises UsageError unless these are numbers from 1 up."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise cli.UsageError(f"--{flag} {text}: give numbers from 1 up, like 7,5")
    return [int(part) for part in parts]


def stack(memory, cfg, K):
    """-> the network's layers, with K label units each. Raises UsageError where a field does not fit."""
    fields, layers = numbers("rf", cfg.rf), []
    H, C = cfg.side, 3
    for i in range(cfg.n_layers):
        rf = fields[min(i, len(fields) - 1)]
        if rf > H:
            raise cli.UsageError(f"--rf {cfg.rf}: a field of {rf} does not fit on a map of {H}, layer {i}")
        layers.append(Layer(memory, H, H, C, rf, cfg.channels, K, images_first=i == 0))
        H, C = H - rf + 1, cfg.channels
    return layers


def ff_trace(cfg, steps=2):
    """Steps of all layers, one after the other -> memory, where in its trace the last one begins."""
    memory, B = Memory(), cfg.batch_size
    layers, old = stack(memory, cfg, cfg.n_classes), {}
    images = memory.array("activities", B, cfg.side, cfg.side, 3)
    for _ in range(steps):
        begin, h = len(memory.trace), images
        memory.touch(written(images.every()))  # a new batch
        for layer in layers:
            y = ff_layer(memory, layer, h, B, old)
            below, h = h, memory.array("activities", *layer.out_shape, B)
            normalise(memory, y, h)
            memory.drop(*([below] if below is not images else []))
        memory.drop(h, *(array for arrays in old.values() for array in arrays))
        old.clear()
    return memory, begin


def greedy_trace(cfg, passes=2):
    """Each layer for cfg.steps steps in a row, on activities that the layer below left in memory; all layers have their
    turn, `passes` times -> memory, where in its trace the last turn of all begins."""
    memory, B = Memory(), cfg.batch_size
    layers = stack(memory, cfg, cfg.n_classes)
    shapes = [(cfg.side, cfg.side, 3), *[layer.out_shape for layer in layers[:-1]]]
    stored = [[memory.array("activities", *shape, B) for _ in range(cfg.steps)] for shape in shapes]
    for _ in range(passes):
        begin = len(memory.trace)
        for i, layer in enumerate(layers):
            for step, x in enumerate(stored[i]):
                if i == 0:
                    memory.touch(written(x.every()))  # a new batch
                old = {}
                y = ff_layer(memory, layer, x, B, old)
                if layer is not layers[-1]:
                    normalise(memory, y, stored[i + 1][step])
                memory.drop(*(array for arrays in old.values() for array in arrays))
    return memory, begin


def bp_trace(cfg, steps=2):
    """Steps of backpropagation, train.bp_step -> memory, where in its trace the last one begins."""
    memory, B, K = Memory(), cfg.batch_size, cfg.n_classes
    layers, images = stack(memory, cfg, 0), memory.array("activities", B, cfg.side, cfg.side, 3)
    D = int(np.prod(layers[-1].out_shape))
    head, *averages = [memory.array("head", D, K) for _ in range(3)]
    for _ in range(steps):
        begin, h, kept = len(memory.trace), images, []
        memory.touch(written(images.every()))  # a new batch
        for layer in layers:
            kept.append(layer.forward(memory, h, B, relu=True))
            h = kept[-1][1]
        flat, logits = memory.array("head", B, D), memory.array("head", B, K)
        flatten(memory, h, flat, D, B)
        product(memory, flat.every(), head.every(), written(logits.every()))
        memory.touch(written(logits.every()))  # softmax and its error
        dflat, dhead = memory.array("head", B, D), memory.array("head", D, K)
        product(memory, logits.every(), head.every(), written(dflat.every()))
        product(memory, flat.every(), logits.every(), written(dhead.every()))
        adam(memory, head, dhead, *averages)
        memory.drop(dhead)
        dy = memory.array("gradients", *layers[-1].out_shape, B)
        flatten(memory, dy, dflat, D, B, back=True)
        held, grads = [dy, dflat], {}  # until the next layer below has what it hands on
        for i in reversed(range(len(layers))):
            layer, (packed, y) = layers[i], kept[i]
            dz, before = memory.array("gradients", *layer.out_shape, B), grads
            memory.stream(dy.every(), y.every(), written(dz.every()))  # the ReLU's derivative
            grads = layer.gradient(memory, packed, dz, B)
            below = layer.input_gradient(memory, dz, B) if i else None  # the line that Forward-Forward does without
            memory.drop(dz, *held, *before.values())
            dy, held = below, [below]
            layer.step(memory, grads)
        memory.drop(*grads.values(), flat, logits, *(array for both in kept for array in both))
    return memory, begin


# ---- what caches make of it


def measure(memory, begin, images, caches):
    """Of the accesses from piece `begin` of the trace on: what the record says of them, per image."""
    start, trace = sum(map(len, memory.trace[:begin])), np.concatenate(memory.trace)
    lines, tags, writes = trace >> 3, (trace >> 1 & 3).astype(np.int8), trace & 1 > 0
    found = distances(lines)
    ahead, dirty = stays(lines, writes, found)
    footprint = int(np.sum(found == FAR))

    def per_image(amounts):  # one for each tag
        return {"total": sum(amounts) / images} | {tag: n / images for tag, n in zip(TAGS, amounts, strict=True)}

    def bytes_of(accesses):
        return per_image([LINE * int(n) for n in np.bincount(tags[accesses], minlength=len(TAGS))])

    fetched, out = {}, {}
    for kb in caches:
        n = kb * 1024 // LINE
        fetched[str(kb)] = bytes_of(misses(found, n, start))
        out[str(kb)] = bytes_of(write_backs(found, ahead, dirty, n, start))
    found, tags = found[start:], tags[start:]
    distance = [data_movement_distance(found[tags == i], footprint, LINE) for i in range(len(TAGS))]
    line = {"accesses": len(found) / images, "footprint": footprint * LINE}
    return line | {"data_movement_distance": per_image(distance), "fetched": fetched, "written": out}


def ways(cfg, caches):
    """{way: per image, see `measure`}, after a step, or a turn of all layers, that warmed the caches."""
    traces = {"FF": ff_trace, "greedy": greedy_trace, "BP": bp_trace}
    images = {"greedy": cfg.batch_size * cfg.steps}
    return {name: measure(*trace(cfg), images.get(name, cfg.batch_size), caches) for name, trace in traces.items()}


def check(cfg):
    """-> the settings to go through, the caches in kilobytes. Raises UsageError where one of them cannot work."""
    if min(cfg.n_layers, cfg.channels, cfg.n_classes, cfg.batch_size, cfg.steps) < 1:
        raise cli.UsageError("--n-layers, --channels, --n-classes, --batch-size and --steps must be at least 1")
    variants = [cfg]
    if cfg.sweep:
        variants = [replace(cfg, n_layers=n) for n in (1, 2, 3, 4)]
        variants += [replace(cfg, batch_size=b) for b in (16, 32, 128)]
    for one in variants:
        stack(Memory(), one, 0)
    return variants, numbers("caches", cfg.caches)


def show(found):
    """Print `ways`."""
    for name, line in found.items():
        total = line["data_movement_distance"]["total"]
        print(f"  {name}: {line['accesses']:.0f} lines touched; data movement distance {total:.3g} bytes^1.5")
        for kb, fetched in line["fetched"].items():
            parts = ", ".join(f"{tag} {fetched[tag] / 1e6:.2f}" for tag in TAGS)
            out = line["written"][kb]["total"] / 1e6
            print(f"    {kb:>6} kB: fetched {fetched['total'] / 1e6:6.2f} MB ({parts}), written {out:.2f} MB")


def main():
    cfg, options = cli.parse(Config, __doc__)
    if options.resume or options.save:
        raise cli.UsageError("data_movement.py knows neither --resume nor --save")
    variants, caches = check(cfg)
    folder = record.new_run(options.out or ROOT / "runs" / "ff_cifar_lc_data_movement", cfg.seed)
    command = re.sub(r" --out[= ]\S+", "", record.command())  # where the record lies is no part of what it says
    first = {"command": command, "config": asdict(cfg), "machine": record.machine(1), "commit": record.commit()}
    record.append(folder, first | {"lanes": k.LANES, "block": k.BLOCK})  # of the kernels, on this processor
    for one in variants:
        found = ways(one, caches)
        record.append(folder, {"layers": one.n_layers, "batch": one.batch_size, "ways": found})
        print(f"\n{one.n_layers} layers, {one.channels} channels, batches of {one.batch_size}; per image:", flush=True)
        show(found)
    record.append(folder, {"final": {"variants": len(variants)}})
    print(f"\n-> {folder}")


if __name__ == "__main__":
    cli.run(main)
