"""Locality: no later layer can influence an earlier one's step; under backpropagation it does (the counter-example)."""

import numpy as np
import train

from common.optim import Adam

rng = np.random.default_rng(0)
CFG = train.Config(rf="5,3,3", n_layers=3, channels=4, slot_rows=2)
IMAGES = rng.standard_normal((32, 14, 14, 3)).astype(np.float32)
LABELS = rng.integers(0, 10, 32)


def ff_weights(perturbed):
    """The layers' weights after two FF steps; layer `perturbed` starts elsewhere."""
    layers = train.build(CFG, (14, 14, 3), np.random.default_rng(1))
    if perturbed is not None:
        layers[perturbed].params["W"] *= np.float32(1.5)
    opts = [Adam(layer.params, 0.01) for layer in layers]
    for _ in range(2):
        train.ff_step(layers, opts, IMAGES, LABELS, (LABELS + 3) % 10, CFG, 10)
    return [layer.params["W"] for layer in layers]


def bp_weights(perturbed):
    layers = train.build(CFG, (14, 14, 3), np.random.default_rng(1))
    layers += [
        train.Flatten(),
        train.Dense(int(np.prod(layers[-1].out_shape)), 10, np.random.default_rng(2), relu=False),
    ]
    if perturbed is not None:
        layers[perturbed].params["W"] *= np.float32(1.5)
    opts = [Adam(layer.params, 0.01) for layer in layers]
    for _ in range(2):
        train.bp_step(layers, opts, IMAGES, LABELS)
    return [layer.params["W"] for layer in layers[:3]]


def test_forward_forward_is_local():
    plain = ff_weights(None)
    for perturbed in (1, 2):
        other = ff_weights(perturbed)
        for i in range(perturbed):
            assert np.array_equal(plain[i], other[i]), f"layer {perturbed} changed layer {i}"
        assert not np.array_equal(plain[perturbed], other[perturbed])


def test_an_earlier_layer_does_matter():
    assert not np.array_equal(ff_weights(None)[1], ff_weights(0)[1])


def test_backpropagation_is_not():
    plain, other = bp_weights(None), bp_weights(2)
    assert not np.array_equal(plain[0], other[0]) and not np.array_equal(plain[1], other[1])


def test_forward_forward_never_asks_for_an_input_gradient(monkeypatch):
    layers = train.build(CFG, (14, 14, 3), np.random.default_rng(1))
    opts = [Adam(layer.params, 0.01) for layer in layers]
    handed_down = []
    for layer in layers:

        def spy(dy, cache, need_dx=False, backward=layer.backward):
            dx, grads = backward(dy, cache, need_dx)
            handed_down.append(dx)
            return dx, grads

        monkeypatch.setattr(layer, "backward", spy)
    train.ff_step(layers, opts, IMAGES[:5], LABELS[:5], (LABELS[:5] + 1) % 10, CFG, 10)
    assert handed_down == [None] * 3


def test_training_and_prediction_share_one_goodness():
    """The goodness that a layer is trained on (g of ff_step) is the goodness that prediction adds up."""
    layers = train.build(CFG, (14, 14, 3), np.random.default_rng(1))
    opts = [Adam(layer.params, 0.0) for layer in layers]  # learning rate 0: the weights stay
    log = train.ff_step(layers, opts, IMAGES, LABELS, (LABELS + 3) % 10, CFG, 10)
    g = train.ff_goodness(layers, IMAGES, CFG, 10)  # (n_layers, N, 10)
    rows = np.arange(len(LABELS))
    assert np.allclose(log[:, 1], g[:, rows, LABELS].mean(axis=1), rtol=1e-5)
    assert np.allclose(log[:, 2], g[:, rows, (LABELS + 3) % 10].mean(axis=1), rtol=1e-5)


def test_votes():
    g = np.zeros((3, 2, 4))
    g[0, :, 1], g[1, :, 2], g[2, :, 3] = 9, 3, 4
    assert train.ff_vote(g, train.Config(skip_first=True)).tolist() == [3, 3]
    assert train.ff_vote(g, train.Config(skip_first=False)).tolist() == [1, 1]
    assert train.ff_vote(g[:1], train.Config(skip_first=True)).tolist() == [1, 1]  # a single layer votes itself
