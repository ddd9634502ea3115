"""ff_mnist: gradients of every objective, locality in depth and in time, and what negatives are made of."""

from dataclasses import replace

import gradcheck
import numpy as np
import pytest
import scripts

from common import labels as labelling
from common.goodness import SumSquare, normalise, softmax_cross_entropy
from common.label_input import LabelInput
from common.layers import Dense
from common.local2d import LocallyConnected2d
from common.optim import SGD, Adam
from common.product import Product

train, recurrent = scripts.load("ff_mnist/train.py"), scripts.load("ff_mnist/recurrent.py")
backprop = scripts.load("ff_mnist/backprop.py")
unsupervised, sequence = scripts.load("ff_mnist/unsupervised.py"), scripts.load("ff_mnist/sequence.py")
rng = np.random.default_rng(3)
F64 = np.float64
K = 4  # classes
LABELS = np.array([0, 3, 1, 1, 2])


# ------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize(
    "loss, negatives",
    [("threshold", "uniform"), ("threshold", "all"), ("margin", "uniform"), ("margin", "all"), ("softmax", "all")],
)
def test_loss_gradients(loss, negatives):
    cfg = train.Config(loss=loss, beta=0.7, negatives=negatives)
    wrong = train.wrong_of(LABELS, None, cfg, np.random.default_rng(1), K)
    assert (wrong != LABELS).all() and len(wrong) == (K - 1 if negatives == "all" else 1)
    g = rng.standard_normal((1 + len(wrong), len(LABELS)))
    _, dg = train.ff_loss(g, LABELS, wrong, 0.3, cfg)
    gradcheck.check(lambda: train.ff_loss(g, LABELS, wrong, 0.3, cfg)[0], {"g": g}, {"g": dg})


def test_a_pair_is_hintons_formula():
    """threshold: half of softplus(theta - g+) + softplus(g- - theta), mean over the images."""
    g, cfg = rng.standard_normal((2, 5)), train.Config(beta=1.0)
    loss, _ = train.ff_loss(g, LABELS, LABELS[None] + 1, 0.3, cfg)
    assert np.isclose(loss, np.mean(np.log1p(np.exp(0.3 - g[0])) + np.log1p(np.exp(g[1] - 0.3))) / 2)


def label_input(dtype=F64):
    layer = LabelInput(12, 6, K, np.random.default_rng(0), dtype=dtype)
    layer.params["b"] += (0.1 * np.random.default_rng(1).standard_normal(6)).astype(dtype)
    return layer


@pytest.mark.parametrize("dtype", [F64, np.float32])
def test_label_input_is_dense_on_the_whole_row(dtype):
    layer = label_input(dtype)
    p = rng.random((5, 8)).astype(dtype)
    codes = np.concatenate([np.eye(K)[LABELS], np.eye(K)[(LABELS + 1) % K], np.full((5, K), 0.1)]).astype(dtype)
    y, cache = layer.forward(layer.image_part(p), codes)
    x = normalise(np.concatenate([codes, np.concatenate([p] * 3)], axis=1))
    plain, plain_cache = layer.dense.forward(x)
    tolerance = 1e-12 if dtype == F64 else 1e-5
    assert np.allclose(y, plain, rtol=tolerance, atol=tolerance)
    dy, pull = rng.standard_normal(y.shape).astype(dtype), rng.standard_normal(6).astype(dtype)
    none, grads = layer.backward(dy, cache, pull=pull)
    expected = layer.dense.backward(dy, plain_cache, pull=pull)[1]
    assert none is None and all(np.allclose(grads[k], expected[k], rtol=tolerance, atol=10 * tolerance) for k in grads)


def test_label_input_gradient():
    layer, p, codes = label_input(), rng.random((5, 8)), np.eye(K)[np.concatenate([LABELS, (LABELS + 2) % K])]
    weights = rng.standard_normal((10, 6))

    def objective():
        return np.sum(weights * layer.forward(layer.image_part(p), codes)[0])

    _, cache = layer.forward(layer.image_part(p), codes)
    gradcheck.check(objective, layer.params, layer.backward(weights, cache)[1])


def test_float32_kernels_of_dense_rows():
    """bias_relu, relu_grad_rows, row_squares, normalise_rows and scale_each_row against the same lines in float64."""
    layer, x = Dense(30, 70, np.random.default_rng(0)), rng.standard_normal((9, 30)).astype(np.float32)
    exact = Dense(30, 70, np.random.default_rng(0), dtype=F64)
    layer.params["b"] += 0.1
    exact.params["b"] += 0.1
    y, cache = layer.forward(x)
    y64, cache64 = exact.forward(x.astype(F64))
    pull = rng.standard_normal(70).astype(np.float32)
    g, squares = SumSquare().forward(y)
    dy, dy64 = (SumSquare().backward(np.ones(9, a.dtype), a) for a in (squares, y64))
    grads, grads64 = layer.backward(dy, cache, pull=pull)[1], exact.backward(dy64, cache64, pull=pull.astype(F64))[1]
    pairs = [(y, y64), (g, (y64**2).sum(axis=1)), (normalise(y), normalise(y64))]
    for ours, expected in pairs + [(grads[k], grads64[k]) for k in grads]:
        assert np.allclose(ours, expected, rtol=2e-5, atol=2e-4)


def test_pull_reaches_every_row_of_a_local_layer():
    for dtype, tolerance in ((F64, 1e-12), (np.float32, 1e-5)):
        layer = LocallyConnected2d((6, 6, 2), 3, 3, np.random.default_rng(0), dtype=dtype)
        x = rng.standard_normal((4, 6, 6, 2)).astype(dtype)
        y, cache = layer.forward(x)
        dy, pull = rng.standard_normal(y.shape).astype(dtype), rng.standard_normal(y.shape[1:]).astype(dtype)
        without, grads = layer.backward(dy, cache)[1], layer.backward(dy, cache, pull=pull)[1]
        assert np.allclose(grads["b"] - without["b"], 4 * pull, rtol=tolerance, atol=10 * tolerance)
        assert not np.allclose(grads["W"], without["W"])


def test_backpropagation_through_the_whole_stack():
    """bp_step's gradients, read off a step of plain descent, against finite differences of its loss."""
    r = np.random.default_rng(0)
    layers = [Dense(6, 5, r, dtype=F64), Dense(5, 7, r, dtype=F64), Dense(7, K, r, relu=False, dtype=F64)]
    for layer in layers:
        layer.params["b"] += 0.1 * r.standard_normal(layer.params["b"].shape)
    x = rng.standard_normal((5, 6))
    params = {f"{i}{k}": p for i, layer in enumerate(layers) for k, p in layer.params.items()}
    before = {k: p.copy() for k, p in params.items()}
    backprop.bp_step(layers, [SGD(layer.params, 1.0, beta=0.0) for layer in layers], x, LABELS)
    grads = {k: before[k] - p for k, p in params.items()}
    for k, p in params.items():
        p[...] = before[k]

    def loss():
        h = x
        for layer in layers:
            h, _ = layer.forward(h)
        return softmax_cross_entropy(h, LABELS)[0]

    gradcheck.check(loss, params, grads)


# ------------------------------------------------------------------------------------------ locality in depth


STEPS = {
    "threshold": train.Config(negatives="uniform"),
    "margin": train.Config(negatives="uniform", loss="margin", beta=0.1),
    "all labels": train.Config(negatives="all", loss="softmax", beta=0.1),
    "mean": train.Config(negatives="uniform", goodness="mean", lr=0.1),
    "length": train.Config(negatives="uniform", norm="length"),
    "no normalisation": train.Config(negatives="uniform", norm="none"),
}


def weights_after(perturbed, cfg, steps=2):
    """The hidden layers' weights after some steps on random images; layer `perturbed` starts elsewhere."""
    data, cfg = np.random.default_rng(5), replace(cfg, sizes="20,30,25")
    net = train.Net(cfg, 60, 10, np.random.default_rng(1))
    if perturbed is not None:
        net.layers[perturbed].params["W"] *= np.float32(1.5)
    for _ in range(steps):
        x, labels = data.random((16, 50)).astype(np.float32), data.integers(0, 10, 16)
        train.ff_step(net, x, labels, cfg, np.random.default_rng(2), 10)
    return [layer.params["W"] for layer in net.layers]


@pytest.mark.parametrize("way", STEPS)
def test_no_later_layer_changes_an_earlier_one(way):
    plain = weights_after(None, STEPS[way])
    for perturbed in (1, 2):
        other = weights_after(perturbed, STEPS[way])
        assert all(np.array_equal(plain[i], other[i]) for i in range(perturbed))
        assert not np.array_equal(plain[perturbed], other[perturbed])
    assert not np.array_equal(plain[1], weights_after(0, STEPS[way])[1])


def test_only_collaboration_and_hard_negatives_tell_layers_of_each_other():
    for cfg in (train.Config(negatives="uniform", collaborate=0.5), train.Config(negatives="hard", head_lr=1.0)):
        plain, other = weights_after(None, cfg, 6), weights_after(2, cfg, 6)
        assert not np.array_equal(plain[0], other[0])


def test_collaboration_is_a_number_and_no_path():
    """The other layers' goodness moves the sigmoid, not what is differentiated: gradients stay parallel per row."""
    seen = [(np.ones((2, 3)), None, np.array([1.0, 2.0]), None), (np.ones((2, 5)), None, np.array([4.0, 9.0]), None)]
    cfg = train.Config(collaborate=0.5)
    assert np.allclose(train.others(seen[0][2], seen, cfg), 0.5 * (np.array([4.0, 9.0]) - 5))
    assert np.allclose(train.others(seen[1][2], seen, cfg), 0.5 * (np.array([1.0, 2.0]) - 3))


def test_unsupervised_is_local():
    cfg = unsupervised.Config(sizes="20,30,25", lr=0.001, blurs=2)

    def weights(perturbed):
        net = unsupervised.Net(cfg, (8, 8, 1), 10, np.random.default_rng(1))
        if perturbed is not None:
            net.layers[perturbed].params["W"] *= np.float32(1.5)
        data = np.random.default_rng(5)
        for _ in range(2):
            images = data.integers(0, 256, (16, 8, 8, 1)).astype(np.uint8)
            unsupervised.ff_step(net, images, data.integers(0, 10, 16), cfg, np.random.default_rng(2))
        return [layer.params["W"] for layer in net.layers]

    plain = weights(None)
    for perturbed in (1, 2):
        other = weights(perturbed)
        assert all(np.array_equal(plain[i], other[i]) for i in range(perturbed))
        assert not np.array_equal(plain[perturbed], other[perturbed])


def test_sequence_is_local():
    cfg = sequence.Config(sizes="20,30,25")
    real, generated = (np.random.default_rng(i).integers(0, 30, (16, 10)) for i in (0, 1))

    def weights(perturbed):
        net = sequence.Net(cfg, np.random.default_rng(1))
        if perturbed is not None:
            net.layers[perturbed].params["W"] *= np.float32(1.5)
        for _ in range(2):
            sequence.ff_step(net, real, generated, cfg)
        return [layer.params["W"] for layer in net.layers]

    plain = weights(None)
    for perturbed in (1, 2):
        other = weights(perturbed)
        assert all(np.array_equal(plain[i], other[i]) for i in range(perturbed))
        assert not np.array_equal(plain[perturbed], other[perturbed])


# ------------------------------------------------------------------------------------------ locality in time


RECURRENT = recurrent.Config(sizes="7,6", steps=4, first=2, last=3, peer=0.0)


def two_way(dtype=F64):
    r, sizes = np.random.default_rng(0), (12, 7, 6, K)
    layers = [recurrent.TwoWay(*three, r, dtype=dtype) for three in zip(sizes, sizes[1:], sizes[2:], strict=False)]
    for layer in layers:
        layer.params["b"] += (0.1 * r.standard_normal(layer.params["b"].shape)).astype(dtype)
    return layers


def test_recurrent_gradient_is_that_of_every_step_alone():
    """With the neighbours' and the old state held at what they were, the mean of L over the steps has these."""
    layers, x = two_way(), rng.standard_normal((5, 12))
    both = np.eye(K)[np.concatenate([LABELS, (LABELS + 1) % K])]
    start = [np.concatenate([y, y]) for y in recurrent.bottom_up(layers, x)]
    grads, _ = recurrent.ff_grads(layers, x, both, start, RECURRENT)
    trace = list(recurrent.unroll(layers, x, both, start, RECURRENT))
    t = np.repeat([1.0, -1.0], 5)
    for i, layer in enumerate(layers):

        def objective(i=i, layer=layer):
            total, old, n = 0.0, start[i], len(trace) - (len(layers) - 1 - i)
            for step, (below, above, _, now) in enumerate(trace):
                h = np.concatenate([x, x]) if i == 0 else below[i]
                z = h @ layer.params["W"] + above[i] @ layer.params["V"] + layer.params["b"]
                y = 0.3 * old + 0.7 * np.maximum(z, 0)
                if step >= len(trace) - n:  # the label has reached this layer
                    total += np.log1p(np.exp(-t * ((y**2).sum(axis=1) - y.shape[1]))).mean()
                old = now[i]
            return total / n

        # float32 constants in the recursion: 0.3 and 0.7 differ from it in the eighth digit
        gradcheck.check(objective, layer.params, grads[i], tolerance=1e-5)


def test_no_gradient_goes_back_in_time():
    """The gradient over four steps is the mean of those of four single steps, each started where the last one ended.

    Backpropagation through time would add what a step does to the losses of the later ones.
    """
    layers, x, cfg = two_way(), rng.standard_normal((5, 12)), replace(RECURRENT, blind=True)
    both = np.eye(K)[np.concatenate([LABELS, (LABELS + 1) % K])]
    state = [np.concatenate([y, y]) for y in recurrent.bottom_up(layers, x)]
    whole, _ = recurrent.ff_grads(layers, x, both, state, cfg)
    alone = []
    for _ in range(cfg.steps):
        alone.append(recurrent.ff_grads(layers, x, both, state, replace(cfg, steps=1))[0])
        _, _, _, state = next(recurrent.unroll(layers, x, both, state, cfg))
    for i, grads in enumerate(whole):
        for k in grads:
            assert np.allclose(grads[k], np.mean([step[i][k] for step in alone], axis=0), rtol=1e-10, atol=1e-14)


def test_a_layer_that_the_label_has_not_reached_has_nothing_to_learn():
    """Step 1, lower layer: right and wrong rows are the same, so their loss can only pull goodness to theta."""
    layers, x = two_way(), rng.standard_normal((5, 12))
    both = np.eye(K)[np.concatenate([LABELS, (LABELS + 1) % K])]
    start = [np.concatenate([y, y]) for y in recurrent.bottom_up(layers, x)]
    _, _, _, now = next(recurrent.unroll(layers, x, both, start, RECURRENT))
    assert np.array_equal(now[0][:5], now[0][5:]) and not np.allclose(now[1][:5], now[1][5:])
    one = replace(RECURRENT, steps=2)
    (lower, upper), log = recurrent.ff_grads(layers, x, both, start, one)
    (lower_blind, upper_blind), log_blind = recurrent.ff_grads(layers, x, both, start, replace(one, blind=True))
    assert all(np.array_equal(upper[k], upper_blind[k]) for k in upper)
    assert log[1][0] == log_blind[1][0] and np.array_equal(log[1][1], log_blind[1][1])
    assert not np.allclose(lower["W"], lower_blind["W"]) and log[0][0] != log_blind[0][0]
    assert log[0][1][0].mean() != log[0][1][1].mean()


def test_what_is_above_reaches_what_is_below():
    """Top-down input is an input: with another label above, the lowest layer's state differs from step 2 on."""
    layers, x = two_way(), rng.standard_normal((5, 12))
    start = recurrent.bottom_up(layers, x)
    one, two = (list(recurrent.unroll(layers, x, np.eye(K)[(LABELS + i) % K], start, RECURRENT)) for i in (0, 1))
    assert np.array_equal(one[0][3][0], two[0][3][0]) and not np.allclose(one[1][3][0], two[1][3][0])


def test_the_label_is_a_layer_like_the_others():
    both = recurrent.code(LABELS, recurrent.Config(), K)
    assert np.allclose((both**2).mean(axis=1), 1) and (both.argmax(axis=1) == LABELS).all()
    assert np.allclose(recurrent.code(LABELS, recurrent.Config(label=1 / K), K), np.eye(K)[LABELS])


def test_the_steps_that_vote():
    g = np.zeros((8, 2, 1, K))
    for step in range(8):  # in every step another label wins, the next time by less
        g[step, :, 0, step % K] = 8 - step
    for first, last in ((1, 1), (3, 5), (6, 8), (8, 8)):
        assert recurrent.vote(g, replace(RECURRENT, first=first, last=last)) == [(first - 1) % K]
    g[:] = 0
    g[4, :, 0, 3] = 1  # the last step that votes does vote
    assert recurrent.vote(g, replace(RECURRENT, first=3, last=5)) == [3]
    assert recurrent.vote(g, replace(RECURRENT, first=3, last=4)) == [0]


def test_the_next_layer_does_not_see_goodness():
    """A first layer that is twice as active, and so has four times the goodness, changes nothing above it."""
    images = rng.integers(0, 256, (8, 6, 6, 1)).astype(np.uint8)
    labels, steps = np.array([0, 1, 2, 3, 0, 1, 2, 3]), []
    for factor in (1, 2):
        cfg = unsupervised.Config(sizes="20,15,12", lr=0.01, blurs=2)
        net = unsupervised.Net(cfg, (6, 6, 1), K, np.random.default_rng(0))
        net.layers[0].params["W"] *= factor
        unsupervised.ff_step(net, images, labels, cfg, np.random.default_rng(1))
        steps.append([net.layers[1].params["W"], net.layers[2].params["W"], net.head.params["W"]])
    assert all(np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*steps, strict=True))


# ------------------------------------------------------------------------------------------ negatives


def test_hybrid_masks_are_large_regions():
    masks = labelling.hybrid_masks(200, 28, 6, np.random.default_rng(0))
    assert masks.dtype == bool and masks.shape == (200, 28, 28)
    assert abs(masks.mean() - 0.5) < 0.03  # half and half
    edges = (masks[:, 1:] != masks[:, :-1]).mean()
    rough = labelling.hybrid_masks(200, 28, 0, np.random.default_rng(0))
    assert edges < 0.15 < 0.45 < (rough[:, 1:] != rough[:, :-1]).mean()  # neighbours mostly agree


def test_the_blur_is_hintons():
    """[1/4, 1/2, 1/4] along rows and columns, again and again, against a plain loop; the edge pixel repeats."""
    bits = np.random.default_rng(4).integers(0, 2, (3, 9, 9)).astype(np.float32)
    plain = bits.copy()
    for _ in range(3):
        for axis in (1, 2):
            pad = [(0, 0), (0, 0), (0, 0)]
            pad[axis] = (1, 1)
            p = np.pad(plain, pad, mode="edge")
            cut = [np.take(p, range(k, k + 9), axis=axis) for k in range(3)]
            plain = 0.25 * cut[0] + 0.5 * cut[1] + 0.25 * cut[2]
    assert np.array_equal(labelling.hybrid_masks(3, 9, 3, np.random.default_rng(4)), plain > 0.5)


def test_hybrids_mix_two_different_images():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 6, 1), np.uint8)
    masks = labelling.hybrid_masks(5, 6, 1, np.random.default_rng(0))
    hybrids = labelling.hybrid_images(images, masks, np.random.default_rng(1))
    for b in range(5):
        inside, outside = set(hybrids[b][masks[b]].ravel()), set(hybrids[b][~masks[b]].ravel())
        assert inside <= {b} and len(outside) == 1 and b not in outside


def test_windows_and_symbols():
    assert (
        "".join(sequence.SYMBOLS[i] for i in sequence.symbols_of("A Fox;\n\n 3  said: “Wait!”")) == "a fox, said, wait."
    )
    strings = np.arange(24).reshape(2, 12)
    assert sequence.windows(strings).shape == (2, 3, 10)
    assert np.array_equal(sequence.windows(strings)[1, 2], np.arange(14, 24))
    x = sequence.inputs(np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 29]]))
    assert x.shape == (1, 300) and np.isclose((x**2).mean(), 1) and (x > 0).sum() == 10 and x[0, 299] > 0


def test_strings_are_continued_from_their_beginnings():
    net = sequence.Net(sequence.Config(sizes="20,20"), np.random.default_rng(0))
    begin = np.random.default_rng(1).integers(0, 30, (3, 10))
    generated = sequence.rollout(net, begin, sequence.Config(), np.random.default_rng(2))
    assert generated.shape == (3, 100) and np.array_equal(generated[:, :10], begin)
    assert set(np.unique(generated)) <= set(range(30)) and len(np.unique(generated)) > 20  # untrained: anything
    net.head.params["b"][7] = 50.0  # a softmax that is sure
    assert (sequence.rollout(net, begin, sequence.Config(), np.random.default_rng(2))[:, 10:] == 7).all()


@pytest.mark.parametrize("kind", ["teacher", "self"])
def test_generated_windows_are_false(kind, monkeypatch):
    """teacher: real windows but for the last symbol; self: whole generated strings; and never a real window."""
    cfg = sequence.Config(negatives=kind, sizes="20,20", strings=6, batch_size=64)
    strings = np.random.default_rng(0).integers(0, 2, (6, 100))
    net, pairs = sequence.Net(cfg, np.random.default_rng(0)), []

    def spy(net, real, generated, cfg):
        pairs.append((real, generated))
        return np.zeros((2, 3))

    def half_known(net, beginnings, cfg, rng):  # a network that knows half of the strings by heart
        return np.concatenate([strings[:3], 1 - strings[3:]])

    monkeypatch.setattr(sequence, "ff_step", spy)
    monkeypatch.setattr(sequence, "rollout", half_known)
    log = sequence.train_epoch(net, strings, np.random.default_rng(1), cfg, 1)
    real, generated = (np.concatenate(part) for part in zip(*pairs, strict=True))
    assert (real != generated).any(axis=1).all()
    if kind == "teacher":
        assert len(real) == 6 * 90 and log["false_negatives"] == 0
        assert np.array_equal(real[:, :-1], generated[:, :-1]) and (real[:, -1] != generated[:, -1]).all()
    else:
        assert len(real) == 3 * 90 and abs(log["false_negatives"] - 0.5) < 0.05
        assert np.array_equal(real, 1 - generated)


def test_momentum_step():
    """SGD against its formula, weights and biases."""
    params = {"W": rng.standard_normal((4, 3)), "b": rng.standard_normal(3)}
    w, m = {k: p.copy() for k, p in params.items()}, {k: 0.0 for k in params}
    opt = SGD(params, 0.1, decay=0.01)
    for _ in range(3):
        grads = {k: rng.standard_normal(p.shape) for k, p in params.items()}
        opt.step(grads)
        for k in w:
            m[k] = 0.9 * m[k] + grads[k] + (0.01 * w[k] if k != "b" else 0)
            w[k] = w[k] - 0.1 * m[k]
    assert all(np.allclose(params[k], w[k]) for k in w)


# ------------------------------------------------------------------------------------------ peers, and what blows up


@pytest.mark.parametrize("settings", [{}, {"negatives": "all"}, {"goodness": "mean"}, {"loss": "margin", "beta": 0.1}])
def test_peers_pull_alike_in_every_mode(settings):
    """Beside a loss that is off (theta far away), the first step of the biases is the pull alone: its size is the same

    however many wrong labels there are, and in proportion to the loss's gradient with the mean and with beta.
    """
    cfg = replace(train.Config(sizes="40,30", negatives="uniform", lr=1.0, weight_decay=0.0), **settings)
    net = train.Net(cfg, 60, K, np.random.default_rng(0))
    for layer in net.layers:
        layer.state["mean"] = rng.random(layer.params["b"].shape).astype(np.float32)
        layer.params["W"][...] = 0  # nobody is active: no loss reaches a weight
    before = [layer.state["mean"].copy() for layer in net.layers]
    pixels = rng.random((6, 60 - K)).astype(np.float32)
    train.ff_step(net, pixels, np.array([0, 1, 2, 3, 0, 1]), cfg, np.random.default_rng(1), K)
    for layer, mean, n in zip(net.layers, before, (40, 30), strict=True):
        mean = 0.9 * mean
        expected = cfg.peer * cfg.beta * (mean - mean.mean()) / (n if cfg.goodness == "mean" else 1)
        assert np.allclose(-layer.params["b"], expected, rtol=1e-4, atol=1e-9)
        assert np.allclose(layer.state["mean"], mean, rtol=1e-5)


def test_the_softmax_sees_mean_square_one_whatever_the_layers_see():
    found = []
    for norm in ("rms", "length", "none"):
        cfg = train.Config(sizes="40,30,20", norm=norm)
        net = train.Net(cfg, 60, K, np.random.default_rng(0))
        part = net.layers[0].image_part(rng.random((6, 60 - K)).astype(np.float32))
        h = train.neutral_states(net.layers, part, cfg, K)
        assert h.shape == (6, 50)
        found += [(h[:, :30] ** 2).mean(axis=1), (h[:, 30:] ** 2).mean(axis=1)]
    assert np.allclose(found, 1, atol=1e-4)


@pytest.mark.parametrize("make", [SGD, Adam])
def test_a_gradient_that_is_no_number_is_not_hidden(make):
    for shape in ((70, 80), (5,)):
        params = {"W": np.ones(shape, np.float32)}
        opt, bad = make(params, 0.1), np.ones(shape, np.float32)
        bad[-1] = np.nan
        opt.step({"W": bad})
        assert np.isnan(params["W"][-1]).all() and np.isfinite(params["W"][:-1]).all()
    params = {"W": np.ones((70, 80), np.float32)}
    x, dz = np.ones((9, 70), np.float32), np.ones((9, 80), np.float32)
    dz[3, 5] = np.nan
    make(params, 0.1).step({"W": Product((x, dz))})
    assert np.isnan(params["W"][:, 5]).all() and np.isfinite(np.delete(params["W"], 5, axis=1)).all()


def test_a_string_known_by_heart_is_no_negative():
    """Windows that the network generates and that are the real ones do not count as negatives."""
    cfg = sequence.Config(negatives="self", sizes="20,20", strings=4, batch_size=50)
    strings = np.full((4, 100), 7)
    net = sequence.Net(cfg, np.random.default_rng(0))
    net.head.params["b"][7] = 50.0
    before = [layer.params["W"].copy() for layer in net.layers]
    log = sequence.train_epoch(net, strings, np.random.default_rng(1), cfg, 1)
    assert log["false_negatives"] == 1.0
    assert all(np.array_equal(a.params["W"], b) for a, b in zip(net.layers, before, strict=True))


def test_hard_wrong_labels_are_wrong():
    logits = np.zeros((200, K))
    labels = rng.integers(0, K, 200)
    logits[np.arange(200), labels] = 30.0
    wrong = train.wrong_of(labels, logits, train.Config(negatives="hard"), np.random.default_rng(0), K)
    assert wrong.shape == (1, 200) and (wrong[0] != labels).all() and len(np.unique(wrong)) == K


def test_every_label_is_scored_as_if_it_were_alone():
    """goodness_of_labels and one_pass against plain dense layers on rows with the label written in."""
    cfg = train.Config(sizes="40,30,20")
    net = train.Net(cfg, 60, K, np.random.default_rng(0))
    net.head.params["W"] += 0.1 * rng.standard_normal(net.head.params["W"].shape).astype(np.float32)
    pixels = rng.random((7, 60 - K)).astype(np.float32)

    def states(code):
        h, found = normalise(np.concatenate([np.tile(code, (7, 1)), pixels], axis=1).astype(np.float32)), []
        for i, layer in enumerate(net.layers):
            y, _ = (layer.dense if i == 0 else layer).forward(h)
            found.append(y)
            h = normalise(y)
        return found

    g = train.goodness_of_labels(net, pixels, cfg, K)
    for k in range(K):
        for i, y in enumerate(states(np.eye(K)[k])):
            assert np.allclose(g[i, :, k], (y**2).sum(axis=1), rtol=1e-4)
    assert np.array_equal(train.vote(g), g[1:].sum(axis=0).argmax(axis=1))
    seen = np.concatenate([normalise(y) for y in states(np.full(K, 0.1))[1:]], axis=1)
    assert np.array_equal(train.one_pass(net, pixels, cfg, K), net.head.forward(seen)[0].argmax(axis=1))
