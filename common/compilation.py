"""Kernels are compiled once on a machine: before the first epoch, so that its time is its own, and not in silence."""

import threading

import numpy as np


def announce(*kinds):
    """Compile the kernels of these kinds of layers ("local", "dense", "conv") now; what takes time says so."""
    note = "Compiling the kernels for this processor (once, about 20 seconds) ..."
    waiting = threading.Timer(3, print, (note,), {"flush": True})  # kernels that are in the cache take one second
    waiting.daemon = True
    waiting.start()
    try:
        for kind in kinds:
            {"local": _local, "dense": _dense, "conv": _conv}[kind]()
    finally:
        waiting.cancel()


def _local():
    """Every kernel of locally connected layers, on images of a few pixels."""
    from common import kernels_cpu
    from common.goodness import ff_loss, normalise
    from common.label_map import LabelMap
    from common.label_sharing import SharedPair, goodness_of_labels
    from common.local2d import LocallyConnected2d
    from common.optim import Adam

    rng = np.random.default_rng(0)
    layers = [LocallyConnected2d((4, 4, 1), 1, 2, rng), LocallyConnected2d((3, 3, 1), 1, 2, rng)]
    images = np.zeros((2 * kernels_cpu.BLOCK, 4, 4, 1), np.float32)
    goodness_of_labels(layers, images, 1, 2)
    y, cache = layers[0].forward(images)
    _, grads = layers[0].backward(y, cache, need_dx=True)
    Adam(layers[0].params, 0.1).step(grads)
    pair = SharedPair(layers[0], (0, 1, 0, 2))
    y, cache = pair.forward(images)
    _, g, dy = ff_loss(y, np.ones(len(y), np.float32), 1.0)
    pair.backward(dy, cache)
    normalise(y, g)
    layer = LabelMap((4, 4, 1), 1, 2, 2, rng)
    a, cache = layer.image_part(images)
    layer.backward_goodness(layer.goodness(a), a, cache)
    y, cache = layer.forward(images, np.zeros(len(images), int))
    layer.backward(y, cache)


def _dense():
    """Every kernel of dense layers, on a few rows."""
    from common.goodness import SumSquare, normalise
    from common.label_input import LabelInput
    from common.layers import Dense
    from common.optim import SGD, Adam

    rng = np.random.default_rng(0)
    pixels, codes = np.zeros((32, 80), np.float32), np.ones((64, 10), np.float32)  # 0: sparse.times has its kernels
    for make in (SGD, Adam):
        first, second = LabelInput(90, 128, 10, rng), Dense(128, 80, rng)
        y, cache = first.forward(first.image_part(pixels), codes)
        make(first.params, 0.1).step(first.backward(y, cache)[1])
        y, cache = second.forward(normalise(y))
        g, squares = SumSquare().forward(y)
        make(second.params, 0.1).step(second.backward(SumSquare().backward(g, squares), cache)[1])


def _conv():
    """Every kernel of convolutional layers, on images of a few pixels."""
    from common.conv import Conv2d
    from common.optim import Adam
    from common.pool import HandOn, Parts

    rng = np.random.default_rng(0)
    layer, parts, on = Conv2d(3, 5, rng), Parts(2), HandOn(2, dropout=0.1)
    x = np.zeros((8, 4, 4, 3), np.float32)
    z, cache = layer.forward(x)
    (u, _), _ = parts.forward(z)
    h, kept = on.forward(z)
    _, grads = layer.backward(parts.backward_squares(u, z), cache)
    layer.backward(on.backward(h, kept), cache, need_dx=True)
    Adam(layer.params, 0.1).step(grads)
