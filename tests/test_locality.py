"""Locality: no later layer can influence an earlier one's step; under backpropagation it does (the counter-example)."""

from dataclasses import replace

import numpy as np
import pytest
import train

from common.optim import Adam

rng = np.random.default_rng(0)
CFG = train.Config(rf="5,3,3", n_layers=3, channels=4, slot_rows=2)
PAIRS = replace(CFG, negatives="uniform", neutral=False)
WAYS = {  # every way to learn that train.py offers
    "all labels": CFG,
    "uniform, neutral": replace(CFG, negatives="uniform"),
    "hard, neutral": replace(CFG, negatives="hard", loss="threshold", beta=2.0),
    "sampled, neutral": replace(CFG, negatives="sampled", beta=2.0),
    "uniform": PAIRS,
    "hard": replace(PAIRS, negatives="hard"),
    "write-up": replace(PAIRS, label="slot", loss="threshold", beta=1.0),
    "slot, margin": replace(PAIRS, label="slot", beta=4.0),
    "slot, sampled": replace(PAIRS, label="slot", negatives="sampled", beta=4.0),
}
IMAGES = rng.standard_normal((32, 14, 14, 3)).astype(np.float32)
LABELS = rng.integers(0, 10, 32)


def ff_layers(cfg):
    return train.build(cfg, (14, 14, 3), 10, np.random.default_rng(1), label_units=cfg.label == "map")


def ff_step(layers, opts, cfg, n=32):
    """One step as the script takes it -> its log."""
    step = train.ff_step if cfg.neutral else train.ff_step_pairs
    return step(layers, opts, IMAGES[:n], LABELS[:n], cfg, np.random.default_rng(7), 10)


def ff_weights(perturbed, cfg):
    """The layers' weights after two FF steps; layer `perturbed` starts elsewhere."""
    layers = ff_layers(cfg)
    if perturbed is not None:
        layers[perturbed].params["W"] *= np.float32(1.5)
    opts = [Adam(layer.params, 0.01) for layer in layers]
    for _ in range(2):
        ff_step(layers, opts, cfg)
    return [np.concatenate([p.ravel() for p in layer.params.values()]) for layer in layers]


def bp_weights(perturbed):
    layers = train.build(CFG, (14, 14, 3), 10, np.random.default_rng(1), label_units=False)
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


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("hard", "slot, sampled")])
def test_forward_forward_is_local(way):
    plain = ff_weights(None, WAYS[way])
    for perturbed in (1, 2):
        other = ff_weights(perturbed, WAYS[way])
        for i in range(perturbed):
            assert np.array_equal(plain[i], other[i]), f"layer {perturbed} changed layer {i}"
        assert not np.array_equal(plain[perturbed], other[perturbed])


@pytest.mark.parametrize("way", WAYS)
def test_an_earlier_layer_does_matter(way):
    assert not np.array_equal(ff_weights(None, WAYS[way])[1], ff_weights(0, WAYS[way])[1])


@pytest.mark.parametrize("way", ["hard", "slot, sampled"])
def test_where_rows_keep_their_label_all_layers_choose_the_hard_one(way):
    """The choice of the wrong label is all that a later layer can tell an earlier one."""
    cfg = WAYS[way]
    chosen = (LABELS + 3) % 10
    pick, train.pick = train.pick, lambda *_: chosen
    try:
        plain, other = ff_weights(None, cfg), ff_weights(2, cfg)
    finally:
        train.pick = pick
    assert np.array_equal(plain[0], other[0]) and np.array_equal(plain[1], other[1])


def test_backpropagation_is_not():
    plain, other = bp_weights(None), bp_weights(2)
    assert not np.array_equal(plain[0], other[0]) and not np.array_equal(plain[1], other[1])


@pytest.mark.parametrize("way", WAYS)
def test_forward_forward_never_asks_for_an_input_gradient(way, monkeypatch):
    layers = ff_layers(WAYS[way])
    opts = [Adam(layer.params, 0.01) for layer in layers]
    handed_down = []
    for layer in layers:
        layer = getattr(layer, "layer", layer)  # inside a LabelMap

        def spy(dy, cache, need_dx=False, backward=layer.backward):
            dx, grads = backward(dy, cache, need_dx)
            handed_down.append(dx)
            return dx, grads

        monkeypatch.setattr(layer, "backward", spy)
    ff_step(layers, opts, WAYS[way], n=5)
    assert handed_down == [None] * 3


@pytest.mark.parametrize("way", WAYS)
def test_training_and_prediction_share_one_goodness(way):
    """The goodness that a layer is trained on (g of ff_step) is the goodness that prediction adds up."""
    cfg = WAYS[way]
    layers = ff_layers(cfg)
    opts = [Adam(layer.params, 0.0) for layer in layers]  # learning rate 0: the weights stay
    log = np.array(ff_step(layers, opts, cfg))
    g = train.ff_goodness(layers, IMAGES, cfg, 10)  # (n_layers, N, 10)
    rows = np.arange(len(LABELS))
    right = g[:, rows, LABELS]
    assert np.allclose(log[:, 1], right.mean(axis=1), rtol=1e-5)
    if cfg.negatives == "all":
        assert np.allclose(log[:, 2], (g.sum(axis=2) - right).mean(axis=1) / 9, rtol=1e-5)
    elif cfg.negatives == "uniform" and not cfg.neutral:  # neutral: every layer draws its own
        wrong = train.wrong_labels(LABELS, 10, np.random.default_rng(7))
        assert np.allclose(log[:, 2], g[:, rows, wrong].mean(axis=1), rtol=1e-5)


def test_votes():
    g = np.zeros((3, 2, 4))
    g[0, :, 1], g[1, :, 2], g[2, :, 3] = 9, 3, 4
    assert train.ff_vote(g, train.Config(skip_first=True)).tolist() == [3, 3]
    assert train.ff_vote(g, train.Config(skip_first=False)).tolist() == [1, 1]
    assert train.ff_vote(g[:1], train.Config(skip_first=True)).tolist() == [1, 1]  # a single layer votes itself
