"""What one training step moves through memory: Forward-Forward against backpropagation, cache line by cache line.

Idea
    Forward-Forward needs no activity after a layer has learnt from it, while backpropagation comes back for all of
    them. Does it move less? The reads and writes of a step are listed here in the order in which our kernels make them
    (common/kernels_cpu.py, one thread), as numbers of cache lines; the reuse distance of each then says which caches
    would have had it. Nothing is learnt and nothing is timed; what is written back is not counted.

Ways
    FF       one step of ff_cifar_lc/train.py, all labels at once: each layer goes forward, learns, and is done with
    greedy   the same layers, one at a time for --steps steps; the activities of the layer below come from memory
    BP       one step of its twin: all layers forward, all layers back

Printed, per image of a step: accesses; bytes fetched into caches of several sizes, least recently used out first; and
the data movement distance, the sum over accesses of the root of the reuse distance (Smith et al. 2022).

Run
    python ff_cifar_lc/data_movement.py                    # the network of train.py, batches of 64
    python ff_cifar_lc/data_movement.py --sweep            # over depths and batch sizes: for the figure
"""

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import ROOT, cli, record  # before NumPy, see common/__init__.py

# isort: split
import numpy as np

from common import kernels_cpu as k
from common.reuse import FIRST, distances, misses, movement

LINE = 64  # bytes
FLOATS = LINE // 4


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


class Memory:
    """Arrays as ranges of cache lines, and the trace of what is touched. A new array takes the first gap that is large
    enough; arrays that are dropped leave gaps, and neighbouring gaps are one."""

    def __init__(self):
        self.lines, self.trace, self.gaps = 0, [], []  # gaps: (first, lines), in order
        self.kept = []  # arrays that live between steps

    def array(self, *shape):
        """-> Array of float32 that starts on a line."""
        n = -(-int(np.prod(shape)) // FLOATS)
        for i, (first, size) in enumerate(self.gaps):
            if size >= n:
                self.gaps[i : i + 1] = [(first + n, size - n)] if size > n else []
                return Array(first, shape, n)
        first, self.lines = self.lines, self.lines + n
        return Array(first, shape, n)

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

    def touch(self, lines):
        """In this order; a line several times in a row is one access."""
        lines = np.asarray(lines, np.int64).ravel()
        self.trace.append(lines[np.append(True, lines[1:] != lines[:-1])] if len(lines) else lines)

    def stream(self, *arrays):
        """One pass over arrays side by side, element by element."""
        most = max(array.n for array in arrays)
        at = [array.first + np.arange(most) * array.n // most for array in arrays]
        self.touch(np.stack(at, axis=1))

    def all(self):
        return np.concatenate(self.trace) if self.trace else np.zeros(0, np.int64)


class Array:
    """first: its first line, n: lines, shape of float32."""

    def __init__(self, first, shape, n):
        self.first, self.shape, self.n = first, shape, n

    def at(self, offsets):
        """Lines of float offsets."""
        return self.first + np.asarray(offsets, np.int64) // FLOATS

    def runs(self, starts, n):
        """Lines of runs of n floats that start at these offsets (...) -> (..., lines)."""
        steps = np.minimum(np.arange(0, n + FLOATS - 1, FLOATS), n - 1)
        return self.at(np.asarray(starts, np.int64)[..., None] + steps)

    def every(self):
        return self.first + np.arange(self.n)


def blocks(B):
    return -(-B // k.BLOCK)


def pack(memory, x, B, H, N):
    """kernels_cpu.pack: images (H, N, B) side by side -> packed (Q, H, N, BLOCK)."""
    Q = blocks(B)
    packed = memory.array(Q, H, N, k.BLOCK)
    inner = np.arange(0, k.BLOCK, FLOATS)
    for i in range(H):
        for q in range(Q):
            n = np.arange(N)[:, None]
            read = x.at(np.minimum((i * N + n) * B + q * k.BLOCK + inner, H * N * B - 1))
            memory.touch(np.stack([read, packed.at(((q * H + i) * N + n) * k.BLOCK + inner)], axis=2))
    return packed


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


def forward(memory, packed, w, b, y, H, W, C, rf, O, B):
    """kernels_cpu.forward, block of images by block, row by row."""
    Q, OH, OW = blocks(B), H - rf + 1, W - rf + 1
    inner = np.arange(0, k.BLOCK, FLOATS)
    rows = np.arange(rf)[:, None] * W * C + np.arange(rf * C)  # (rf, rf C): places of a field
    place = rows.ravel()
    for oy in range(OH):
        for q in range(Q):
            for ox in range(OW):
                memory.touch(b.at((oy * OW + ox) * O + np.arange(0, O, FLOATS)))
                x0 = ((q * H + oy) * W + ox) * C
                w0 = (oy * OW + ox) * rf * rf * C * O
                for m, n in tile_rows(O):
                    x = packed.at((x0 + place)[:, None] * k.BLOCK + inner)  # (K, lines)
                    weights = w.runs(w0 + np.arange(rf * rf * C) * O + m, n)  # (K, lines)
                    memory.touch(np.concatenate([x, weights], axis=1))
                memory.touch(y.at(((oy * OW + ox) * O + np.arange(O))[:, None] * B + q * k.BLOCK + inner))


def weight_grad(memory, packed, dz, dw, db, H, W, C, rf, O, B):
    """kernels_cpu.weight_grad, row by row of the output, LANES neighbouring units at a time."""
    Q, OH, OW = blocks(B), H - rf + 1, W - rf + 1
    turned, acc = memory.array(Q * k.BLOCK, k.LANES), memory.array(2 * rf * C * k.LANES * 2)
    inner = np.arange(0, k.BLOCK, FLOATS)
    for oy in range(OH):
        for low in range(0, OW * O, k.LANES):
            high = min(low + k.LANES, OW * O)
            left, right = low // O, (high - 1) // O
            units = np.arange(low, high)[:, None] * B + np.arange(0, B, FLOATS)
            memory.touch(dz.at(oy * OW * O * B + units))
            memory.stream(turned)
            memory.touch(db.at(oy * OW * O + np.arange(low, high, FLOATS)))
            n = (right - left + rf) * C
            for ky in range(rf):
                x0 = ((oy + ky) * W + left) * C
                for m in range(0, n, k.GRAD_ROWS):
                    for q in range(Q):
                        rows = np.minimum(np.arange(m, m + k.GRAD_ROWS), n - 1)
                        memory.touch(packed.at((q * H * W * C + x0 + rows)[:, None] * k.BLOCK + inner))
                        memory.touch(turned.at(np.arange(q * k.BLOCK, (q + 1) * k.BLOCK) * k.LANES))
                    memory.touch(acc.at(np.arange(m, min(m + k.GRAD_ROWS, n)) * k.LANES))
                for ox in range(left, right + 1):
                    first, last = max(ox * O, low), min(ox * O + O, high)
                    target = ((oy * OW + ox) * rf + ky) * rf * C * O + first - ox * O
                    memory.touch(acc.at((ox - left) * C * k.LANES + np.arange(rf * C) * k.LANES))
                    memory.touch(dw.runs(target + np.arange(rf * C) * O, last - first))
    memory.drop(turned, acc)


def input_grad(memory, packed, w, dx, H, W, C, rf, O, B):
    """kernels_cpu.input_grad: packed dz (Q, OH, OW O, BLOCK) -> dx (H, W, C, B)."""
    Q, OH, OW = blocks(B), H - rf + 1, W - rf + 1
    inner = np.arange(0, k.BLOCK, FLOATS)
    for iy in range(H):
        for ix in range(W):
            top, bottom = max(0, iy - rf + 1), min(OH - 1, iy)
            left, right = max(0, ix - rf + 1), min(OW - 1, ix)
            columns = np.arange(left, right + 1)
            for q in range(Q):
                for oy in range(top, bottom + 1):
                    for m, n in tile_rows(C):
                        weights = ((oy * OW + columns) * rf + iy - oy) * rf + ix - columns
                        at = w.runs(weights * C * O + m * O, n * O)
                        z = ((q * OH + oy) * OW + columns)[:, None] * O + np.arange(O)
                        lines = packed.at(z.ravel()[:, None] * k.BLOCK + inner)
                        memory.touch(np.concatenate([at.ravel(), lines.ravel()]))
                memory.touch(dx.at(((iy * W + ix) * C + np.arange(C))[:, None] * B + q * k.BLOCK + inner))


def product(memory, *arrays):
    """The linear read-out, small enough for BLAS to pack once: every array is passed once."""
    for array in arrays:
        memory.touch(array.every())


def flatten(memory, maps, flat, B, back=False):
    """(D, B) <-> (B, D): NumPy writes in the order of what it makes."""
    D = maps.n * FLOATS // B
    if back:
        for d in range(0, D):
            memory.touch(np.concatenate([flat.at(np.arange(B) * D + d), maps.at(d * B + np.arange(0, B, FLOATS))]))
    else:
        for b in range(B):
            memory.touch(np.concatenate([maps.at(np.arange(D) * B + b), flat.runs(b * D, D)]))


class Layer:
    """A locally connected layer's place in memory: weights, Adam's two averages, gradients."""

    def __init__(self, memory, H, W, C, rf, O, K):
        self.H, self.W, self.C, self.rf, self.O = H, W, C, rf, O
        self.OH, self.OW, self.K = H - rf + 1, W - rf + 1, K
        n, maps = self.OH * self.OW * rf * rf * C * O, self.OH * self.OW * O
        sizes = {"w": n, "b": maps} | ({"u": maps * K} if K else {})
        self.params = {name: memory.array(size) for name, size in sizes.items()}
        self.adam = {name: (memory.array(size), memory.array(size)) for name, size in sizes.items()}
        self.sizes = sizes
        self.shape = self.H, self.W, self.C, self.rf, self.O

    def forward(self, memory, x, B):
        """x (H, W, C, B) -> packed x, z (OH, OW, O, B)."""
        packed, y = pack(memory, x, B, self.H, self.W * self.C), memory.array(self.OH, self.OW, self.O, B)
        forward(memory, packed, self.params["w"], self.params["b"], y, *self.shape, B)
        return packed, y

    def gradient(self, memory, packed, dz, B):
        """-> dw, db."""
        grads = {name: memory.array(size) for name, size in self.sizes.items() if name != "u"}
        weight_grad(memory, packed, dz, grads["w"], grads["b"], *self.shape, B)
        return grads

    def step(self, memory, grads):
        """Adam."""
        for name, g in grads.items():
            memory.stream(self.params[name], g, *self.adam[name])


def ff_layer(memory, layer, x, B, old):
    """One layer's part of train.ff_step: x (H, W, C, B) -> what it hands on, (OH, OW, O, B).

    old: what the names of that function hold of the layer before, name -> arrays; each is dropped where Python drops
    it, when the name is given away.
    """

    def name(key, *arrays):
        memory.drop(*old.pop(key, ()))
        old[key] = arrays
        return arrays[0]

    packed, a = layer.forward(memory, x, B)
    name("a, cache", a, packed)
    goodness = memory.array(layer.OH, layer.OW, layer.K, B)
    memory.stream(a, layer.params["u"], goodness)
    memory.stream(goodness)  # its mean
    memory.drop(goodness)
    y = memory.array(layer.OH, layer.OW, layer.O, B)
    memory.stream(a, y)  # ReLU
    name("y", y)
    memory.stream(y)  # its mean, for peer normalisation
    da, du = memory.array(layer.OH, layer.OW, layer.O, B), memory.array(layer.sizes["u"])
    memory.stream(a, layer.params["u"], da, du)
    grads = layer.gradient(memory, packed, da, B) | {"u": du}
    memory.drop(da)
    layer.step(memory, grads)
    memory.drop(*grads.values())
    memory.stream(y)  # its mean square
    h = memory.array(layer.OH, layer.OW, layer.O, B)
    memory.stream(y, h)
    return h


def stack(memory, cfg, K):
    fields, layers = [int(part) for part in cfg.rf.split(",")], []
    H, C = cfg.side, 3
    for i in range(cfg.n_layers):
        rf = fields[min(i, len(fields) - 1)]
        if rf > H:
            raise cli.UsageError(f"--rf {cfg.rf}: a field of {rf} does not fit on a map of {H}, layer {i}")
        layers.append(Layer(memory, H, H, C, rf, cfg.channels, K))
        memory.kept += [*layers[-1].params.values(), *(array for both in layers[-1].adam.values() for array in both)]
        H, C = H - rf + 1, cfg.channels
    return layers


def ff_trace(cfg, steps=2):
    """Steps of all layers, one after the other -> memory, where in its trace the last one begins."""
    memory, B = Memory(), cfg.batch_size
    layers, images, old = stack(memory, cfg, cfg.n_classes), memory.array(cfg.side, cfg.side, 3, B), {}
    memory.kept.append(images)
    for _ in range(steps):
        begin, h = len(memory.trace), images
        memory.stream(images)  # a new batch is written
        for layer in layers:
            below, h = h, ff_layer(memory, layer, h, B, old)
            memory.drop(*([below] if below is not images else []))
        memory.drop(h, *(array for arrays in old.values() for array in arrays))
        old.clear()
    return memory, begin


def greedy_trace(cfg, passes=2):
    """Each layer for cfg.steps steps in a row, on activities that the layer below left in memory; all layers have their
    turn, `passes` times -> memory, where in its trace the last turn of all begins."""
    memory, B = Memory(), cfg.batch_size
    layers = stack(memory, cfg, cfg.n_classes)
    shapes = [(cfg.side, cfg.side, 3), *[(layer.OH, layer.OW, layer.O) for layer in layers]]
    stored = [[memory.array(*shape, B) for _ in range(cfg.steps)] for shape in shapes]
    memory.kept += [array for some in stored for array in some]
    for _ in range(passes):
        begin = len(memory.trace)
        for layer, below, above in zip(layers, stored, stored[1:], strict=False):
            for x, out in zip(below, above, strict=True):
                memory.stream(x)
                old = {}
                h = ff_layer(memory, layer, x, B, old)
                memory.stream(h, out)
                memory.drop(h, *(array for arrays in old.values() for array in arrays))
    return memory, begin


def bp_trace(cfg, steps=2):
    """Steps of backpropagation -> memory, where in its trace the last one begins."""
    memory, B, K = Memory(), cfg.batch_size, cfg.n_classes
    layers, images = stack(memory, cfg, 0), memory.array(cfg.side, cfg.side, 3, B)
    D = layers[-1].OH * layers[-1].OW * layers[-1].O
    head, head_adam = memory.array(D, K), (memory.array(D, K), memory.array(D, K))
    memory.kept += [images, head, *head_adam]
    for _ in range(steps):
        begin, h, kept = len(memory.trace), images, []
        memory.stream(images)
        for layer in layers:
            kept.append(layer.forward(memory, h, B))
            h = kept[-1][1]
        flat, logits = memory.array(B, D), memory.array(B, K)
        flatten(memory, h, flat, B)
        product(memory, flat, head, logits)
        memory.stream(logits)  # softmax and its error
        dflat, dhead = memory.array(B, D), memory.array(D, K)
        product(memory, logits, head, dflat)
        product(memory, flat, logits, dhead)
        memory.stream(head, dhead, *head_adam)
        memory.drop(logits, dhead)
        dy = memory.array(*layers[-1].params["b"].shape, B)
        flatten(memory, dy, dflat, B, back=True)
        memory.drop(flat, dflat)
        for i in reversed(range(len(layers))):
            layer, (packed, y) = layers[i], kept[i]
            dz = memory.array(*layer.params["b"].shape, B)
            memory.stream(dy, y, dz)
            grads = layer.gradient(memory, packed, dz, B)
            below = None
            if i:
                dzp = pack(memory, dz, B, layer.OH, layer.OW * layer.O)
                below = memory.array(layer.H, layer.W, layer.C, B)
                input_grad(memory, dzp, layer.params["w"], below, *layer.shape, B)
                memory.drop(dzp)
            memory.drop(dz, dy)
            dy = below
            layer.step(memory, grads)
            memory.drop(*grads.values())
        memory.drop(*(array for both in kept for array in both))
    return memory, begin


def measure(memory, begin, images, caches):
    """Of the accesses from piece `begin` of the trace on: what the record says of them, per image."""
    every = distances(memory.all())
    found, footprint = every[sum(map(len, memory.trace[:begin])) :], np.sum(every == FIRST)
    line = {"accesses": len(found) / images, "movement": movement(found, footprint) / images}
    line["footprint"] = int(footprint) * LINE
    line["fetched"] = {str(kb): LINE * misses(found, kb * 1024 // LINE) / images for kb in caches}
    return line


def ways(cfg, caches):
    """{way: per image, see `measure`}, after a step, or a turn of all layers, that warmed the caches."""
    traces = {"FF": ff_trace, "greedy": greedy_trace, "BP": bp_trace}
    images = {"greedy": cfg.batch_size * cfg.steps}
    return {name: measure(*trace(cfg), images.get(name, cfg.batch_size), caches) for name, trace in traces.items()}


def main():
    cfg, options = cli.parse(Config, __doc__)
    if options.resume or options.save:
        raise cli.UsageError("data_movement.py knows neither --resume nor --save")
    caches = [int(part) for part in cfg.caches.split(",")]
    variants = [cfg]
    if cfg.sweep:
        variants = [replace(cfg, n_layers=n) for n in (1, 2, 3, 4)]
        variants += [replace(cfg, batch_size=b) for b in (16, 32, 128)]
    folder = record.new_run(options.out or ROOT / "runs" / "ff_cifar_lc_data_movement", cfg.seed)
    first = {"command": record.command(), "config": asdict(cfg), "commit": record.commit()}
    record.append(folder, first | {"lanes": k.LANES, "block": k.BLOCK})  # of the kernels, on this processor
    for one in variants:
        found = ways(one, caches)
        record.append(folder, {"layers": one.n_layers, "batch": one.batch_size, "ways": found})
        print(f"\n{one.n_layers} layers, {one.channels} channels, batches of {one.batch_size}; per image:", flush=True)
        for name, line in found.items():
            fetched = "  ".join(f"{kb} kB cache {b / 1e6:6.2f} MB" for kb, b in line["fetched"].items())
            print(f"  {name:7s} {line['accesses']:9.0f} lines touched; fetched: {fetched}; DMD {line['movement']:.3g}")
    record.append(folder, {"final": {"variants": len(variants)}})
    print(f"\n-> {folder}")


if __name__ == "__main__":
    cli.run(main)
