"""amsga.py, hff.py and dtg_mlp.py: gradients of every goodness, loss and head, locality, and what is drawn or mined."""

from dataclasses import replace

import gradcheck
import numpy as np
import pytest
import scripts

from common.functions import softplus
from common.goodness import normalise, softmax_cross_entropy
from common.label_input import LabelInput
from common.layers import BatchNorm, dropout
from common.optim import Adam, clip
from common.product import Product
from common.prototypes import Prototypes, unit

amsga, hff, dtg = (scripts.load(f"ff_mnist/{name}.py") for name in ("amsga", "hff", "dtg_mlp"))
rng = np.random.default_rng(3)
F64 = np.float64
K = 4  # classes
LABELS = np.array([0, 3, 1, 1, 2])


def double(layer):
    """The layer with its parameters and its state in float64, in place."""
    for part in (layer.params, layer.state):
        for k in part:
            part[k] = part[k].astype(F64)
    return layer


class Reader:
    """An optimiser that only keeps the gradient."""

    def __init__(self, params):
        self.params, self.grads = params, {}

    def step(self, grads):
        self.grads = {k: np.asarray(g) for k, g in grads.items()}


# ------------------------------------------------------------------------------------------ shared parts


@pytest.mark.parametrize("per_class", [1, 3])
def test_prototypes_gradient(per_class):
    layer = Prototypes(6, K, np.random.default_rng(0), per_class, scale=3.0, dtype=F64)
    y, weights = rng.standard_normal((5, 6)), rng.standard_normal((5, K))

    def objective():  # of the directions of P, whatever its length
        twin = Prototypes(6, K, np.random.default_rng(0), per_class, scale=3.0, dtype=F64)
        twin.params["P"] = unit(layer.params["P"])
        return np.sum(weights * twin.forward(y)[0])

    _, cache = layer.forward(y)
    dy, grads = layer.backward(weights, cache)
    gradcheck.check(objective, {"y": y, "P": layer.params["P"]}, grads | {"y": dy})
    assert layer.backward(weights, cache, need_dx=False)[0] is None


def test_prototypes_are_joined_by_logsumexp():
    layer = Prototypes(6, K, np.random.default_rng(0), 3, scale=3.0, dtype=F64)
    y = rng.standard_normal((5, 6))
    cos = np.einsum("bd,kmd->bkm", unit(y), layer.params["P"])
    assert np.allclose(layer.forward(y)[0], np.log(np.exp(3 * cos).sum(axis=2)))
    layer.params["P"] *= 2.0
    layer.renormalise()
    assert np.allclose((layer.params["P"] ** 2).sum(axis=2), 1)


def test_batch_norm_gradient():
    layer, x, weights = BatchNorm(3, dtype=F64), rng.standard_normal((7, 3)), rng.standard_normal((7, 3))
    layer.params["gamma"] += 0.3 * rng.standard_normal(3)
    _, cache = layer.forward(x)
    dx, grads = layer.backward(weights, cache, need_dx=True)
    gradcheck.check(lambda: np.sum(weights * layer.forward(x)[0]), {"x": x} | layer.params, grads | {"x": dx})


def test_batch_norm_runs_on_what_it_saw():
    layer, x = BatchNorm(3, dtype=F64), 2 + 3 * rng.standard_normal((4000, 3))
    for _ in range(200):
        layer.forward(x)
    y, _ = layer.forward(x, train=False)
    assert np.allclose(y.mean(axis=0), 0, atol=1e-6) and np.allclose(y.std(axis=0), 1, atol=1e-3)
    alone, _ = layer.forward(x[:1], train=False)
    assert np.allclose(alone, y[:1])


@pytest.mark.parametrize("norm", ["rms", "length", "none"])
def test_label_input_scales_rows_like_the_layers_above(norm):
    layer = LabelInput(12, 6, K, np.random.default_rng(0), dtype=F64, norm=norm)
    p, codes = rng.random((5, 8)), np.eye(K)[np.concatenate([LABELS, (LABELS + 1) % K])]
    y, cache = layer.forward(layer.image_part(p), codes)
    plain, plain_cache = layer.dense.forward(amsga.scaled(np.concatenate([codes, np.tile(p, (2, 1))], axis=1), norm))
    assert np.allclose(y, plain)
    dy = rng.standard_normal(y.shape)
    grads, expected = layer.backward(dy, cache)[1], layer.dense.backward(dy, plain_cache)[1]
    assert all(np.allclose(grads[k], expected[k]) for k in grads)


def test_clipping():
    grads = {"W": rng.standard_normal((4, 3)), "b": rng.standard_normal(3)}
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    small = clip({k: g.copy() for k, g in grads.items()}, 2 * norm)
    assert all(np.array_equal(small[k], grads[k]) for k in grads)
    large = clip({k: g.copy() for k, g in grads.items()}, 0.3)
    assert np.isclose(np.sqrt(sum((g**2).sum() for g in large.values())), 0.3)
    assert all(np.allclose(large[k] * norm / 0.3, grads[k]) for k in grads)
    x, dz = rng.standard_normal((5, 4)), rng.standard_normal((5, 3))
    assert np.allclose(clip({"W": Product((x, dz))}, 1e9)["W"], x.T @ dz, rtol=1e-6)


def test_dropout():
    x = np.ones((200, 500), np.float32)
    y = dropout(x, 0.3, 5)
    assert abs((y == 0).mean() - 0.3) < 0.01 and abs(y.mean() - 1) < 0.01 and np.allclose(y[y > 0], 1 / 0.7)


# ------------------------------------------------------------------------------------------ AMSGA


@pytest.mark.parametrize(
    "reading, first, last", [("text", (0.40, 0.25), (0.25, 0.40)), ("algorithm", (0.35, 0.30), (0.25, 0.40))]
)
def test_the_weights_of_the_scales(reading, first, last):
    """The text's [0.40, 0.35, 0.25] and [0.25, 0.35, 0.40], and what the paper's loop from 1 to L makes of them."""
    cfg = amsga.Config(depth=reading)
    for i, (w_local, w_global) in ((0, first), (2, last)):
        goodness = amsga.MultiScale(80, amsga.depth(i, 3, cfg))
        assert np.isclose(goodness.batch_weight, w_global) and np.isclose(goodness.pieces[0][1], (w_local + 0.35) / 80)
        assert np.isclose(amsga.MultiScale(80, amsga.depth(i, 3, cfg), "batch").batch_weight, w_global + w_local)


@pytest.mark.parametrize("D, K_groups", [(85, 8), (80, 8), (35, 3), (9, 1)])
def test_goodness_at_three_scales(D, K_groups):
    """Eq. 2-6 literally: the mean square, the mean of the groups' mean squares, the mean square of the batch."""
    h, s = rng.standard_normal((6, D)), 0.5
    local = (h**2).mean(axis=1)
    inter = np.mean([(part**2).mean(axis=1) for part in np.array_split(h, K_groups, axis=1)], axis=0)
    g, _ = amsga.MultiScale(D, s).forward(h)
    assert np.allclose(g, 0.325 * local + 0.35 * inter + 0.325 * local.mean())
    alone = amsga.MultiScale(D, s).per_row(h[:1])
    assert np.allclose(amsga.MultiScale(D, s).per_row(h)[:1], alone)  # a row's own part has no neighbours
    assert np.allclose(amsga.MultiScale(D, s, on=False).forward(h)[0], local)


@pytest.mark.parametrize("D", [85, 80, 9])
@pytest.mark.parametrize("local_mean", ["row", "batch"])
@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_gradient_at_three_scales(D, local_mean, on, kind):
    goodness = amsga.MultiScale(D, 0.3, local_mean, on, kind)
    h, weights = rng.standard_normal((6, D)), rng.standard_normal(6)
    for batch in (None, np.array([0, 2, 5])):
        some = weights * (1 if batch is None else np.isin(np.arange(6), batch))
        _, cache = goodness.forward(h, batch)
        dh = goodness.backward(some, cache)
        gradcheck.check(lambda b=batch, w=some: np.sum(w * goodness.forward(h, b)[0]), {"h": h}, {"h": dh})


@pytest.mark.parametrize("D", [20, 85])
def test_objective_gradient(D):
    """Rows that are not taken are as good as not there, in the mean over the batch, too."""
    goodness, y, taken = amsga.MultiScale(D, 0.3), rng.standard_normal((10, D)), np.array([0, 2, 3])
    loss, dy, g_pos, g_neg = amsga.objective(goodness, y, taken, 0.7, goodness.squares(y))
    whole = lambda: amsga.objective(goodness, y, taken, 0.7, goodness.squares(y))[0]  # noqa: E731
    gradcheck.check(whole, {"y": y}, {"y": dy})
    (of_right, _), (of_wrong, _) = goodness.forward(y[:5]), goodness.forward(y[5:][taken])
    assert np.isclose(loss, softplus(0.7 - of_right).mean() + softplus(of_wrong - 0.7).mean())
    assert np.isclose(g_pos, of_right.mean()) and np.isclose(g_neg, of_wrong.mean()) and not dy[[6, 9]].any()


@pytest.mark.parametrize(
    "p, band, very_hard, share", [(0.15, 0.4, False, 0), (0.5, 0.75, True, 0.4), (0.85, 1.25, True, 0.5)]
)
def test_what_is_mined(p, band, very_hard, share):
    """Eq. 7-10: all rows in the band, very hard ones above it at a rate, and nothing else unless rows are missing."""
    theta = 2.0
    g = np.concatenate([theta + np.random.default_rng(0).uniform(-band, band, 9000), np.full(4000, theta + 3.0)])
    taken, by_rules = amsga.mined(g, theta, p, np.random.default_rng(1))
    assert by_rules <= len(taken) / len(g) + 1e-9
    assert np.array_equal(taken, np.unique(taken)) and np.isin(np.arange(9000), taken).all()
    assert abs((taken >= 9000).mean() * len(taken) / 4000 - share) < 0.03
    assert len(taken) >= 0.6 * len(g)
    assert np.isclose(amsga.band(p), band)
    if very_hard:  # below what is very hard and outside the band, nothing is
        easy = np.concatenate([g, np.full(2000, theta - band - 0.1)])
        assert (amsga.mined(easy, theta, p, np.random.default_rng(1))[0] < len(g)).all()


def test_at_least_three_fifths_are_mined_the_hardest_first():
    g = np.linspace(-9, -5, 50)  # far below theta: nobody is in the band
    taken, by_rules = amsga.mined(g, 2.0, 0.1, np.random.default_rng(0))
    assert np.array_equal(taken, np.arange(20, 50)) and by_rules == 0


def test_thresholds_and_rates():
    cfg = amsga.Config(theta=2.0, lr=0.04, n_epochs=100)
    assert amsga.threshold(0, 3, 0.0, cfg) == 2.0 and np.isclose(amsga.threshold(2, 3, 1.0, cfg), 2.0 * 1.15 * 1.3)
    assert np.isclose(amsga.threshold(0, 3, 0.0, replace(cfg, depth="algorithm")), 2.0 * 1.05)
    assert amsga.threshold(2, 3, 1.0, replace(cfg, adapt=False)) == 2.0
    rates = [amsga.learning_rate(e, cfg) for e in range(1, 101)]
    assert np.isclose(rates[0], 0.004) and np.isclose(rates[9], 0.04) and np.isclose(rates[-1], 0.004)
    assert np.argmax(rates) == 9 and (np.diff(rates[9:]) < 0).all()
    assert np.isclose(rates[54], 0.022)  # half of the way down
    assert amsga.learning_rate(1, replace(cfg, anneal=False)) == 0.04


def amsga_weights(perturbed, cfg, steps=3):
    data, cfg = np.random.default_rng(5), replace(cfg, sizes="20,30,25", lr=0.01)
    net = amsga.Net(cfg, 60, 10, np.random.default_rng(1))
    if perturbed is not None:
        net.layers[perturbed].params["W"] *= np.float32(1.5)
    for _ in range(steps):
        x, labels = data.random((16, 50)).astype(np.float32), data.integers(0, 10, 16)
        amsga.ff_step(net, x, labels, cfg, np.random.default_rng(2), 10, 0.5)
    return [layer.params["W"] for layer in net.layers]


@pytest.mark.parametrize("settings", [{"mining": False}, {"mining_layer": "first"}, {"mining": False, "norm": "none"}])
def test_amsga_is_local(settings):
    cfg = amsga.Config(**settings)
    plain = amsga_weights(None, cfg)
    for perturbed in (1, 2):
        other = amsga_weights(perturbed, cfg)
        assert all(np.array_equal(plain[i], other[i]) for i in range(perturbed))
        assert not np.array_equal(plain[perturbed], other[perturbed])


def test_mining_by_the_last_layer_reaches_the_first_as_a_choice_of_rows():
    cfg = amsga.Config(mining_layer="last")
    assert not np.array_equal(amsga_weights(None, cfg)[0], amsga_weights(2, cfg)[0])


def test_negatives_are_wrong_unless_asked_for_otherwise():
    labels = np.random.default_rng(0).integers(0, 10, 400)
    shares = []
    for negatives in ("uniform", "shuffle"):
        cfg = amsga.Config(sizes="20,15", negatives=negatives, mining=False)
        net = amsga.Net(cfg, 60, 10, np.random.default_rng(1))
        x = rng.random((400, 50)).astype(np.float32)
        shares.append(amsga.ff_step(net, x, labels, cfg, np.random.default_rng(2), 10, 0.5)[0][-1])
    assert shares[0] == 0 and 0.05 < shares[1] < 0.15


def test_an_answer_does_not_depend_on_its_neighbours():
    cfg = amsga.Config(sizes="20,15")
    net = amsga.Net(cfg, 60, 10, np.random.default_rng(1))
    x = rng.random((30, 50)).astype(np.float32)
    assert np.allclose(
        amsga.goodness_of_labels(net, x, cfg, 10)[:, :1], amsga.goodness_of_labels(net, x[:1], cfg, 10), rtol=1e-5
    )


# ------------------------------------------------------------------------------------------ HFF


def hff_weights(perturbed, cfg):
    data = np.random.default_rng(5)
    net = hff.Net(replace(cfg, sizes="20,30,25"), 40, 10, np.random.default_rng(1))
    if perturbed is not None:
        net.blocks[perturbed].params["W"] *= -np.float32(1.5)
    for _ in range(3):
        x, labels = data.standard_normal((16, 40)).astype(np.float32), data.integers(0, 10, 16)
        hff.hff_step(net, x, labels, cfg, np.random.default_rng(2))
    return [block.params for block in net.blocks]


@pytest.mark.parametrize("settings", [{}, {"per_class": 3, "margin": 0.2}])
def test_hff_is_local(settings):
    cfg = hff.Config(**settings)
    plain = hff_weights(None, cfg)
    for perturbed in (1, 2):
        other = hff_weights(perturbed, cfg)
        assert all(np.array_equal(plain[i][k], other[i][k]) for i in range(perturbed) for k in plain[i])
        assert not np.array_equal(plain[perturbed]["W"], other[perturbed]["W"])
    assert all(np.allclose((params["P"] ** 2).sum(axis=2), 1, atol=1e-5) for params in plain)


@pytest.mark.parametrize("settings", [{}, {"per_class": 2, "scale": 4.0, "margin": 0.2}])
def test_hff_gradient(settings):
    """What hff_step hands to each optimiser: through both normalisations, the margin and the ReLU of its own layer."""
    cfg = hff.Config(sizes="7,6", **settings)
    net = hff.Net(cfg, 9, K, np.random.default_rng(0))
    for block in net.blocks:
        double(block.dense), double(block.prototypes).renormalise()
        block.dense.params["b"] += 0.5  # a row without any activity has no direction
        block.opts = [Reader(layer.params) for layer in (block.dense, block.prototypes)]
    x = rng.standard_normal((5, 9))
    loss = [each for each, *_ in hff.hff_step(net, x, LABELS, cfg, rng)]
    grads = [block.opts[0].grads | block.opts[1].grads for block in net.blocks]
    h = x
    for i, block in enumerate(net.blocks):

        def objective(block=block, h=h):
            y = np.maximum(h @ block.params["W"] + block.params["b"], 0)
            cos = np.einsum("bd,kmd->bkm", unit(y), unit(block.params["P"]))
            scores = np.log(np.exp(cfg.scale * cos).sum(axis=2))
            scores[np.arange(5), LABELS] -= cfg.scale * cfg.margin
            return softmax_cross_entropy(scores, LABELS)[0]

        assert np.isclose(objective(), loss[i])
        gradcheck.check(objective, block.params, grads[i], tolerance=1e-5)
        h = normalise(np.maximum(h @ block.params["W"] + block.params["b"], 0))


def test_features_stay_where_only_prototypes_are_learnt(tmp_path):
    from common import record

    cfg = hff.Config(sizes="20,15")
    net = hff.Net(cfg, 40, 10, np.random.default_rng(7))
    arrays = {f"{i}/{k}": p for i, block in enumerate(net.blocks) for k, p in block.params.items()}
    record.save_arrays(tmp_path / "f.npz", arrays, {})
    cfg = replace(cfg, features=str(tmp_path / "f.npz"))
    other = hff.Net(cfg, 40, K, np.random.default_rng(8))  # other classes
    before = [block.params["P"].copy() for block in other.blocks]
    hff.hff_step(other, rng.standard_normal((6, 40)).astype(np.float32), np.array([0, 1, 2, 3, 0, 1]), cfg, rng)
    for block, source, P in zip(other.blocks, net.blocks, before, strict=True):
        assert np.array_equal(block.params["W"], source.params["W"]) and not np.array_equal(block.params["P"], P)


def test_hff_votes():
    scores = np.zeros((3, 1, K))
    scores[0, 0, 1], scores[1, 0, 2], scores[2, 0, 3] = 5, 3, 2
    assert hff.vote(scores, hff.Config(vote="all")) == [1]
    assert hff.vote(scores, hff.Config(vote="upper")) == [2] and hff.vote(scores, hff.Config(vote="last")) == [3]


# ------------------------------------------------------------------------------------------ DTG-FF


def test_temperature_gradient():
    t = double(dtg.DynamicGoodness(2.0, True))
    t.params["alpha"][0], t.params["theta_0"][0] = 0.4, -0.3
    g, s = rng.random(8) * 3, np.repeat([1.0, -1.0], 4)
    _, dg, grads = t.loss(g, s)
    gradcheck.check(lambda: t.loss(g, s)[0], {"g": g} | t.params, grads | {"g": dg})
    T, theta = t.values()
    assert np.isclose(t.loss(g, s)[0], softplus(-s * (g / T - theta)).sum()) and 0.1 < T < 2.0


@pytest.mark.parametrize("mean, expected", [(0.7, 0.7), (25.0, 25.0)])
def test_warm_start(mean, expected):
    t = dtg.DynamicGoodness(2.0, True)
    t.warm_start(np.full(4, mean))
    assert np.isclose(t.values()[1], expected, rtol=1e-5) and np.isclose(t.values()[0], 1.05)
    t.warm_start(np.full(4, 3.0))
    assert np.isclose(t.values()[1], expected, rtol=1e-5)  # only once
    assert dtg.DynamicGoodness(2.0, False).values() == (1.0, 2.0)


def dtg_net(cfg, dtype=F64):
    net = dtg.Net(cfg, 12, K, np.random.default_rng(1))
    if dtype == F64:
        for layer in (*net.layers, *net.temperatures, *net.norms, *net.head_norms, net.head):
            if isinstance(layer, LabelInput):
                double(layer.dense)
                layer.params = layer.dense.params
            else:
                double(layer)
    net.head.params["W"] += 0.3 * np.random.default_rng(2).standard_normal(net.head.params["W"].shape).astype(dtype)
    return net


def read_gradients(net):
    net.opts = [Reader(layer.params) for layer in net.layers]
    net.temperature_opts = [Reader(t.params) for t in net.temperatures]
    net.norm_opts = [Reader(norm.params) for norm in [*net.norms, *net.head_norms]]
    net.head_opt = Reader(net.head.params)


@pytest.mark.parametrize("drop", [0.0, 0.3])
@pytest.mark.parametrize("head", ["layers", "last"])
@pytest.mark.parametrize("head_norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("norm", ["rms", "none"])
def test_the_heads_gradient_goes_through_all_layers(head, head_norm, norm, drop):
    """With the local losses off, all gradients are those of the head's cross-entropy: backpropagation."""
    cfg = dtg.Config(sizes="7,6,5", head=head, head_norm=head_norm, norm=norm, lambda_ff=0.0)
    cfg = replace(cfg, dropout=drop, head_dropout=drop, smoothing=drop)
    net = dtg_net(cfg)
    for layer in net.layers:  # a row whose inputs are all dropped would stand on the ReLU's kink
        layer.params["b"] += 0.3 * np.random.default_rng(4).standard_normal(layer.params["b"].shape)
    read_gradients(net)
    x = rng.standard_normal((5, 12))

    def objective():
        return dtg.step(net, x, LABELS, cfg, np.random.default_rng(0), K)[0]

    def taken_away(
        k, opt
    ):  # BatchNorm takes away the bias of the last layer that is read; nothing reaches one that is not
        i = net.opts.index(opt)
        return head == "layers" and (i == 2 or (i == 1 and k == "b" and head_norm == "batch"))

    objective()
    for opt in [*net.opts, *net.norm_opts[len(net.norms) :], net.head_opt]:
        kept = {k: g.copy() for k, g in opt.grads.items() if not (opt in net.opts and taken_away(k, opt))}
        gradcheck.check(objective, {k: opt.params[k] for k in kept}, kept, tolerance=1e-5)
        objective()
    assert all((net.opts[i].grads["W"] ** 2).sum() > 0 for i in range(2))
    assert ((net.opts[2].grads["W"] ** 2).sum() > 0) == (head == "last")  # eq. 9's head leaves the last layer out


@pytest.mark.parametrize("norm", ["rms", "none", "batch", "batch-halves"])
def test_a_layers_own_gradient(norm):
    """Without a head, each layer's gradient is that of its own loss alone, what it sees held as it is."""
    cfg = dtg.Config(sizes="7,6,5", head="none", norm=norm, lambda_ff=0.5)
    net = dtg_net(cfg)
    x = rng.standard_normal((5, 12))
    dtg.step(net, x, LABELS, cfg, np.random.default_rng(0), K)  # the warm start
    read_gradients(net)
    for t in net.temperatures:
        t.params["theta_0"] += 0.3

    def losses():
        return [float(layer[0]) for layer in dtg.step(net, x, LABELS, cfg, np.random.default_rng(0), K)[1]]

    losses()
    for i, (opt, of_t) in enumerate(zip(net.opts, net.temperature_opts, strict=True)):
        kept = {k: g / cfg.lambda_ff for k, g in opt.grads.items() if k != "b" or not net.norms}  # taken away again
        gradcheck.check(lambda i=i: losses()[i], {k: opt.params[k] for k in kept}, kept, tolerance=1e-5)
        losses()
        gradcheck.check(
            lambda i=i: losses()[i], of_t.params, {k: g / cfg.lambda_ff for k, g in of_t.grads.items()}, tolerance=1e-5
        )
        losses()
        if net.norms:
            kept = {k: g / cfg.lambda_ff for k, g in net.norm_opts[i].grads.items()}
            gradcheck.check(lambda i=i: losses()[i], net.norm_opts[i].params, kept, tolerance=1e-5)
            losses()


def dtg_weights(perturbed, cfg):
    data, cfg = np.random.default_rng(5), replace(cfg, sizes="20,30,25")
    net = dtg.Net(cfg, 60, 10, np.random.default_rng(1))
    if perturbed is not None:
        net.layers[perturbed].params["W"] *= np.float32(1.5)
    for _ in range(3):
        x, labels = data.standard_normal((16, 60)).astype(np.float32), data.integers(0, 10, 16)
        dtg.step(net, x, labels, cfg, np.random.default_rng(2), 10)
    return [layer.params["W"] for layer in net.layers]


def test_the_local_half_is_local_and_the_head_is_not():
    """The hybrid of eq. 9, proved both ways: which path crosses layers."""
    local = dtg.Config(head="none")
    plain = dtg_weights(None, local)
    for perturbed in (1, 2):
        other = dtg_weights(perturbed, local)
        assert all(np.array_equal(plain[i], other[i]) for i in range(perturbed))
        assert not np.array_equal(plain[perturbed], other[perturbed])
    detached = dtg.Config(detach=True)
    assert np.array_equal(dtg_weights(None, detached)[0], dtg_weights(1, detached)[0])
    hybrid = dtg.Config()
    assert not np.array_equal(dtg_weights(None, hybrid)[0], dtg_weights(1, hybrid)[0])
    assert np.array_equal(dtg_weights(None, hybrid)[0], dtg_weights(2, hybrid)[0])  # the last layer is not read


def test_dtg_label_overlay_is_the_plain_input():
    """The first layer's shortcut against rows with the label written over their first inputs."""
    cfg = dtg.Config(sizes="7,6", label=1.5)
    net = dtg_net(cfg)
    x = rng.standard_normal((5, 12))
    codes = 1.5 * np.eye(K)[LABELS]
    seen = dtg.forward(net, x, np.concatenate([codes, x[:, :K]]), cfg, np.arange(3, dtype=np.uint32))
    rows = np.concatenate([np.concatenate([codes, x[:, K:]], axis=1), x])
    a = rows @ net.layers[0].params["W"] + net.layers[0].params["b"]
    a1 = normalise(np.maximum(a, 0)) @ net.layers[1].params["W"] + net.layers[1].params["b"]
    assert np.allclose(seen[0][0], a) and np.allclose(seen[1][0], a1[:5])  # rows without a label stop below
    assert len(dtg.forward(net, x, x[:, :K], cfg)) == 1


def test_a_block_has_one_set_of_parameters():
    block = hff.Block(6, 7, K, hff.Config(), np.random.default_rng(0))
    kept = block.params["W"].copy()
    Adam({"P": block.params["P"]}, 0.1).step({"P": np.ones_like(block.params["P"])})
    assert np.array_equal(block.dense.params["W"], kept) and block.params["P"] is block.prototypes.params["P"]
    assert not np.allclose((block.prototypes.params["P"] ** 2).sum(axis=2), 1)
