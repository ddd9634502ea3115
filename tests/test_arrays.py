"""Shared code runs on any array module: layers, goodness, losses, labels and optimisers on stand-in arrays."""

import numpy as np
import pytest
import standin

from common import optim
from common.arrays import kernels, namespace
from common.functions import relu
from common.goodness import MeanSquare, SumSquare, ff_loss, label_loss, margin_loss, normalise, softmax_cross_entropy
from common.label_map import LabelMap
from common.label_sharing import SharedPair, goodness_of_labels
from common.labels import write_slot
from common.layers import Dense, Flatten
from common.local2d import LocallyConnected2d

rng = np.random.default_rng(3)


def moved(layer):
    """The layer with its parameters on the stand-in device."""
    layer.params.update({k: standin.asarray(p.copy()) for k, p in layer.params.items()})
    return layer


def network(dtype=np.float32):
    make = np.random.default_rng(5)
    lc = LocallyConnected2d((12, 12, 3), 4, 5, make, stride=1, padding=1, dtype=dtype)
    second = LocallyConnected2d(lc.out_shape, 2, 3, make, dtype=dtype)
    return [lc, second, Flatten(), Dense(int(np.prod(second.out_shape)), 10, make, relu=False, dtype=dtype)]


def test_the_data_decide():
    assert namespace(np.zeros(1)) is np and namespace(standin.asarray(np.zeros(1))) is standin
    assert kernels(np.zeros(1, np.float32)) is not None
    assert kernels(np.zeros(1)) is None and kernels(standin.asarray(np.zeros(1, np.float32))) is None


def test_the_stand_in_catches_numpy_calls():
    x = standin.asarray(np.ones(3))
    for call in (
        lambda: np.exp(x),
        lambda: np.sum(x),
        lambda: np.asarray(x),
        lambda: x + np.ones(3),
        lambda: np.ones(3) * x,
    ):
        with pytest.raises(TypeError):
            call()


def test_forward_forward_step():
    layers, twins = network(np.float64)[:2], [moved(layer) for layer in network(np.float64)[:2]]
    images, labels = rng.standard_normal((6, 12, 12, 3)), np.array([1, 2, 3, 4, 5, 6])
    h = write_slot(images.copy(), labels, 2, 10)
    d = write_slot(standin.asarray(images.copy()), standin.asarray(labels), 2, 10)
    assert np.array_equal(h, d.data)
    t = np.repeat([1.0, -1.0], 3)
    for layer, twin in zip(
        [SharedPair(layers[0], (0, 2, 0, 10)), layers[1]], [SharedPair(twins[0], (0, 2, 0, 10)), twins[1]], strict=True
    ):
        for make in (optim.Adam, optim.SGD):
            y, cache = layer.forward(h)
            z, twin_cache = twin.forward(d)
            loss, g, dy = ff_loss(y, t, 1.0)
            twin_loss, twin_g, dz = ff_loss(z, standin.asarray(t), 1.0)
            assert np.isclose(loss, float(twin_loss)) and np.allclose(g, twin_g.data)
            _, grads = layer.backward(dy, cache)
            _, twin_grads = twin.backward(dz, twin_cache)
            make(layer.params, 0.01).step(grads)
            make(twin.params, 0.01).step(twin_grads)
            for k in grads:
                assert np.allclose(grads[k], twin_grads[k].data) and np.allclose(layer.params[k], twin.params[k].data)
        h, d = normalise(y, g), normalise(z, twin_g)
    assert np.allclose(normalise(y), normalise(z).data)
    for kind in (SumSquare, MeanSquare):
        assert np.allclose(kind().forward(y)[0], kind().forward(z)[0].data)


def test_all_labels_step():
    layer, twin = (LabelMap((12, 12, 3), 4, 5, 10, np.random.default_rng(5), dtype=np.float64) for _ in range(2))
    for net in (layer, twin):
        net.params["U"] += np.random.default_rng(6).standard_normal(net.params["U"].shape)
    moved(twin)
    images, labels = rng.standard_normal((6, 12, 12, 3)), np.array([1, 2, 3, 4, 5, 6])
    x, y = standin.asarray(images), standin.asarray(labels)
    (a, cache), (z, twin_cache) = layer.image_part(images), twin.image_part(x)
    g, twin_g = layer.goodness(a), twin.goodness(z)
    (loss, dg), (twin_loss, twin_dg) = label_loss(g, labels, 3.0), label_loss(twin_g, y, 3.0)
    assert np.isclose(loss, float(twin_loss)) and np.allclose(normalise(relu(a)), normalise(relu(z)).data)
    margins = margin_loss(g[:, 0], g[:, 1], 3.0), margin_loss(twin_g[:, 0], twin_g[:, 1], 3.0)
    assert np.allclose(margins[0][1], margins[1][1].data)
    grads, twin_grads = layer.backward_goodness(dg, a, cache), twin.backward_goodness(twin_dg, z, twin_cache)
    assert all(np.allclose(grads[k], twin_grads[k].data) for k in layer.params)
    both = np.concatenate([labels, labels - 1])
    (a, cache), (z, twin_cache) = layer.forward(images, both), twin.forward(x, standin.asarray(both))
    (_, grads), (_, twin_grads) = layer.backward(a, cache), twin.backward(z, twin_cache)
    assert np.allclose(a, z.data) and all(np.allclose(grads[k], twin_grads[k].data) for k in layer.params)


def test_backpropagation_step():
    layers, twins = network(np.float64), [moved(layer) for layer in network(np.float64)]
    h, labels = rng.standard_normal((5, 12, 12, 3)), np.array([0, 1, 2, 3, 9])
    d, caches = standin.asarray(h.copy()), []
    for layer, twin in zip(layers, twins, strict=True):
        (h, cache), (d, twin_cache) = layer.forward(h), twin.forward(d)
        caches.append((cache, twin_cache))
    loss, dy = softmax_cross_entropy(h, labels)
    twin_loss, dz = softmax_cross_entropy(d, standin.asarray(labels))
    assert np.isclose(loss, float(twin_loss))
    for layer, twin, (cache, twin_cache) in zip(layers[::-1], twins[::-1], caches[::-1], strict=True):
        dy, grads = layer.backward(dy, cache, need_dx=True)
        dz, twin_grads = twin.backward(dz, twin_cache, need_dx=True)
        assert np.allclose(dy, dz.data) and all(np.allclose(grads[k], twin_grads[k].data) for k in grads)


def test_prediction():
    images = rng.standard_normal((4, 12, 12, 3)).astype(np.float32)
    g = goodness_of_labels(network()[:2], images, 2, 10)
    twin = goodness_of_labels([moved(layer) for layer in network()[:2]], standin.asarray(images), 2, 10)
    assert np.allclose(g, twin.data, rtol=1e-4)
