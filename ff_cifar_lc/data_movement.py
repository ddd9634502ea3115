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
    """Arrays as ranges of cache lines, and the trace of what is touched. Freed arrays leave their place to others of
    the same size, as they do in a step that is repeated."""

    def __init__(self):
        self.lines, self.trace, self.free = 0, [], {}

    def array(self, *shape):
        """-> Array of float32 that starts on a line."""
        n = -(-int(np.prod(shape)) // FLOATS)
        places = self.free.get(n)
        if places:
            return Array(places.pop(), shape, n)
        first, self.lines = self.lines, self.lines + n
        return Array(first, shape, n)

    def drop(self, *arrays):
        for array in arrays:
            self.free.setdefault(array.n, []).append(array.first)

    def touch(self, lines):
        self.trace.append(np.asarray(lines, np.int64).ravel())

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
                    weights = w.at(w0 + np.arange(rf * rf * C)[:, None] * O + [m, m + n - 1])  # (K, 2)
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
                    target = ((oy * OW + ox) * rf + ky) * rf * C * O
                    memory.touch(acc.at((ox - left) * C * k.LANES + np.arange(rf * C) * k.LANES))
                    memory.touch(dw.at(target + np.arange(rf * C) * O))
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
                        at = w.at(weights[:, None] * C * O + [m * O, (m + n) * O - 1])
                        z = ((q * OH + oy) * OW + columns)[:, None] * O + np.arange(O)
                        lines = packed.at(z.ravel()[:, None] * k.BLOCK + inner)
                        memory.touch(np.concatenate([at.ravel(), lines.ravel()]))
                memory.touch(dx.at(((iy * W + ix) * C + np.arange(C))[:, None] * B + q * k.BLOCK + inner))


def product(memory, x, w, y, B):
    """The linear read-out, image by image: x (B, D) and y (B, K) are read or written, all of w (D, K) is read."""
    for part in range(B):
        for array in (x, y):
            memory.touch(array.first + np.arange(part * array.n // B, (part + 1) * array.n // B))
        memory.touch(w.first + np.arange(w.n))


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

    def learn(self, memory, packed, dz, B, du=None):
        """Weight gradient and Adam's step."""
        grads = {name: memory.array(size) for name, size in self.sizes.items() if name != "u"}
        weight_grad(memory, packed, dz, grads["w"], grads["b"], *self.shape, B)
        grads |= {"u": du} if du else {}
        for name, g in grads.items():
            memory.stream(self.params[name], g, *self.adam[name])
        memory.drop(*grads.values())


def ff_layer(memory, layer, x, B):
    """One layer's part of train.ff_step: x (H, W, C, B) -> what it hands on, (OH, OW, O, B)."""
    packed, a = layer.forward(memory, x, B)
    goodness = memory.array(layer.OH, layer.OW, layer.K, B)
    memory.stream(a, layer.params["u"], goodness)
    memory.stream(goodness)  # its mean
    y = memory.array(layer.OH, layer.OW, layer.O, B)
    memory.stream(a, y)  # ReLU
    memory.stream(y)  # its mean, for peer normalisation
    da, du = memory.array(layer.OH, layer.OW, layer.O, B), memory.array(layer.sizes["u"])
    memory.stream(a, layer.params["u"], da, du)
    layer.learn(memory, packed, da, B, du)
    memory.stream(y)  # its mean square
    h = memory.array(layer.OH, layer.OW, layer.O, B)
    memory.stream(y, h)
    memory.drop(packed, a, goodness, y, da)
    return h


def stack(memory, cfg, K):
    fields, layers = [int(part) for part in cfg.rf.split(",")], []
    H, C = cfg.side, 3
    for i in range(cfg.n_layers):
        rf = fields[min(i, len(fields) - 1)]
        if rf > H:
            raise cli.UsageError(f"--rf {cfg.rf}: a field of {rf} does not fit on a map of {H}, layer {i}")
        layers.append(Layer(memory, H, H, C, rf, cfg.channels, K))
        H, C = H - rf + 1, cfg.channels
    return layers


def ff_trace(cfg, steps=1):
    """Steps of all layers, one after the other -> the lines touched in the last one."""
    memory, B = Memory(), cfg.batch_size
    layers, images = stack(memory, cfg, cfg.n_classes), memory.array(cfg.side, cfg.side, 3, B)
    for _ in range(steps):
        begin, h = len(memory.trace), images
        memory.stream(images)  # a new batch is written
        for layer in layers:
            below, h = h, ff_layer(memory, layer, h, B)
            memory.drop(*([below] if below is not images else []))
        memory.drop(h)
    return memory.all(), sum(map(len, memory.trace[:begin]))


def greedy_trace(cfg, steps):
    """Each layer for so many steps in a row, on activities that the layer below left in memory -> its lines."""
    memory, B = Memory(), cfg.batch_size
    layers = stack(memory, cfg, cfg.n_classes)
    shapes = [(cfg.side, cfg.side, 3), *[(layer.OH, layer.OW, layer.O) for layer in layers]]
    stored = [[memory.array(*shape, B) for _ in range(steps)] for shape in shapes]
    for layer, below, above in zip(layers, stored, stored[1:], strict=False):
        for x, out in zip(below, above, strict=True):
            memory.stream(x)
            h = ff_layer(memory, layer, x, B)
            memory.stream(h, out)
            memory.drop(h)
    return memory.all(), 0


def bp_trace(cfg, steps=1):
    """Steps of backpropagation -> the lines touched in the last one."""
    memory, B, K = Memory(), cfg.batch_size, cfg.n_classes
    layers, images = stack(memory, cfg, 0), memory.array(cfg.side, cfg.side, 3, B)
    D = layers[-1].OH * layers[-1].OW * layers[-1].O
    head, head_adam = memory.array(D, K), (memory.array(D, K), memory.array(D, K))
    for _ in range(steps):
        begin, h, kept = len(memory.trace), images, []
        memory.stream(images)
        for layer in layers:
            packed, y = layer.forward(memory, h, B)
            kept.append((packed, y))
            h = y
        flat, logits = memory.array(B, D), memory.array(B, K)
        memory.stream(h, flat)
        product(memory, flat, head, logits, B)
        memory.stream(logits)  # softmax and its error
        dflat, dhead = memory.array(B, D), memory.array(D, K)
        product(memory, dflat, head, logits, B)
        for part in np.array_split(np.arange(flat.n), max(1, D // FLOATS)):  # the gradient, some inputs at a time
            memory.touch(flat.first + part)
            memory.touch(logits.first + np.arange(logits.n))
        memory.stream(head, dhead, *head_adam)
        dy = memory.array(*layers[-1].params["b"].shape, B)
        memory.stream(dflat, dy)
        memory.drop(flat, logits, dflat, dhead)
        for i in reversed(range(len(layers))):
            layer, (packed, y) = layers[i], kept[i]
            dz = memory.array(*layer.params["b"].shape, B)
            memory.stream(dy, y, dz)
            memory.drop(dy)
            if i:
                dzp = pack(memory, dz, B, layer.OH, layer.OW * layer.O)
                dy = memory.array(layer.H, layer.W, layer.C, B)
                input_grad(memory, dzp, layer.params["w"], dy, *layer.shape, B)
                memory.drop(dzp)
            layer.learn(memory, packed, dz, B)
            memory.drop(dz, packed, y)
    return memory.all(), sum(map(len, memory.trace[:begin]))


def measure(trace, begin, images, caches):
    """Of the accesses from `begin` on: what the record says of them, per image."""
    every = distances(trace)
    found, footprint = every[begin:], np.sum(every == FIRST)
    line = {"accesses": len(found) / images, "movement": movement(found, footprint) / images}
    line["footprint"] = int(footprint) * LINE
    line["fetched"] = {str(kb): LINE * misses(found, kb * 1024 // LINE) / images for kb in caches}
    return line


def ways(cfg, caches):
    """{way: per image, see `measure`}; FF and BP after a step that warmed the caches."""
    found = {}
    for name, (trace, begin), images in (
        ("FF", ff_trace(cfg, 2), cfg.batch_size),
        ("greedy", greedy_trace(cfg, cfg.steps), cfg.batch_size * cfg.steps),
        ("BP", bp_trace(cfg, 2), cfg.batch_size),
    ):
        found[name] = measure(trace, begin, images, caches)
    return found


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
    record.append(folder, {"command": record.command(), "config": asdict(cfg), "commit": record.commit()})
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
