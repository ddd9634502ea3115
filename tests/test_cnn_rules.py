"""ff_cnn/train.py: gradients of every rule and credit, locality, schedules, what is measured where."""

from dataclasses import replace

import gradcheck
import numpy as np
import pytest
import scripts

from common import augment
from common.conv import Residual
from common.goodness import softmax_cross_entropy
from common.layers import Dense
from common.readouts import RandomMap, Temperature

cnn = scripts.load("ff_cnn/train.py")
rng = np.random.default_rng(3)
K = 4
SMALL = cnn.Config(width=1, backbone="tiny", dropout=0.2, lr=0.01, warmup=0, clip=1e9, weight_decay=0.0)
IMAGES = rng.standard_normal((6, 8, 8, 3))
LABELS = np.array([0, 3, 1, 1, 2, 0])
READS = {
    "dtg": {},
    "T = 1": {"temperature": False},
    "unit": {"projection": "unit"},
    "learned": {"projection": "learned"},
    "batch": {"goodness_norm": "batch"},
    "linear": {"rule": "linear"},
    "linear, random": {"rule": "linear", "projection": "random"},
    "asge": {"rule": "asge", "alpha": 1.5},
    "hff": {"rule": "hff", "scale": 4.0},
    "cwc": {"rule": "cwc"},
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(cnn.BACKBONES, "tiny", ([128, 256, 512], [0, 1]))
    monkeypatch.setitem(cnn.BACKBONES, "resnet-tiny", ([128, 128, 256], [0]))


def network(cfg, double=False):
    """A network of few channels, and its random numbers: 3, 6 and 12 channels on maps of 8, 4 and 2."""
    net = cnn.Net(replace(cfg, width=3 / 128), (8, 8, 3), K, np.random.default_rng(0))
    if double:
        for layer in net.layers[0]:
            for part in (layer.params, layer.state):
                for k in part:
                    part[k] = part[k].astype(np.float64)
        for block in net.blocks:
            if block.temperature:
                block.temperature.params["alpha"] += 0.3 * rng.standard_normal(1)
    return net


class Reader:
    """An optimiser that only keeps the gradient."""

    def __init__(self, params):
        self.params, self.state, self.t, self.grads = params, {}, 0, {}

    def step(self, grads):
        self.grads = {k: np.asarray(g) for k, g in grads.items()}


def read_gradients(net):
    """Replace all optimisers -> a function that returns {(block, layer, name): gradient} of the last step."""
    for block in net.blocks:
        block.opts = {name: Reader(layer.params) for name, layer in block.layers.items()}
    net.head_opt = Reader(net.head.params)

    def found():
        own = {
            (i, name, k): g for i, b in enumerate(net.blocks) for name, o in b.opts.items() for k, g in o.grads.items()
        }
        return own | {("head", "head", k): g for k, g in net.head_opt.grads.items()}

    return found


def parameters(net):
    own = {
        (i, name, k): p
        for i, b in enumerate(net.blocks)
        for name, layer in b.layers.items()
        for k, p in layer.params.items()
    }
    return own | {("head", "head", k): p for k, p in net.head.params.items()}


@pytest.mark.parametrize("read", READS)
def test_a_block_is_read(read):
    """Gradients of a block's own loss: z and everything that reads it."""
    block = network(replace(SMALL, **READS[read]), double=True).blocks[0]
    z = np.maximum(rng.standard_normal((6, 8, 8, block.conv.params["b"].size)), 0)

    def loss():
        return softmax_cross_entropy(block.read(z)[0], LABELS)[0]

    psi, f, cache = block.read(z)
    assert psi.shape == (6, K) and np.allclose(f, z.mean(axis=(1, 2)))
    dz, grads = block.read_back(softmax_cross_entropy(psi, LABELS)[1], cache)
    arrays = {(name, k): p for name, layer in block.layers.items() if name != "conv" for k, p in layer.params.items()}
    found = {(name, k): np.asarray(g) for name, own in grads.items() for k, g in own.items()}
    assert set(found) == set(arrays)
    arrays.pop(("projection", "P"), None)  # lengths stay 1: tests/test_mnist_descendants.py
    gradcheck.check(loss, arrays | {"z": z}, found | {"z": cnn.full(dz)})


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("backbone", ["tiny", "resnet-tiny"])
def test_local_gradients_are_those_of_each_blocks_own_loss(read, backbone):
    cfg = replace(SMALL, backbone=backbone, **READS[read])
    net = network(cfg, double=True)
    found = read_gradients(net)
    cnn.local_step(net, IMAGES, LABELS, cfg, np.random.default_rng(1))
    grads, arrays = found(), parameters(net)

    for own in [*range(len(net.blocks)), "head"]:

        def loss(own=own):
            losses = cnn.local_step(net, IMAGES, LABELS, cfg, np.random.default_rng(1))
            return losses[-1 if own == "head" else own]

        some = {key: p for key, p in arrays.items() if key[0] == own and key[2] != "P"}
        gradcheck.check(loss, some, {key: grads[key] for key in some}, tolerance=2e-5)  # kinks of ReLUs


@pytest.mark.parametrize("credit", ["deepsup", "bp"])
@pytest.mark.parametrize(
    "change",
    [*READS.values(), {"backbone": "resnet-tiny"}, {"head": "last"}, {"norm": "rms"}, {"norm": "none"}],
    ids=str,
)
def test_backpropagated_gradients(credit, change):
    cfg = replace(SMALL, credit=credit, **change)
    net = network(cfg, double=True)
    found = read_gradients(net)
    cnn.backprop_step(net, IMAGES, LABELS, cfg, np.random.default_rng(1))
    grads = {key: g for key, g in found().items() if credit == "bp" or key[0] != "head"}
    arrays = {key: p for key, p in parameters(net).items() if key in grads}
    assert len(arrays) == len(grads)
    arrays = {key: p for key, p in arrays.items() if key[2] != "P"}  # their lengths stay 1

    def loss():
        return cnn.backprop(net, IMAGES, LABELS, slice(0, 6), cfg, np.random.default_rng(1))[0].sum()

    gradcheck.check(loss, arrays, {key: grads[key] for key in arrays}, tolerance=2e-5)


def weights_after(cfg, perturbed=None, steps=2):
    """Every block's weights after some steps; block `perturbed` starts elsewhere."""
    net = network(cfg)
    if perturbed is not None:
        net.blocks[perturbed].conv.params["W" if "W" in net.blocks[perturbed].conv.params else "W2"] *= np.float32(1.5)
    r = np.random.default_rng(1)
    for _ in range(steps):
        cnn.STEPS[cfg.credit](net, IMAGES.astype(np.float32), LABELS, cfg, r)
    return [
        np.concatenate([p.ravel() for layer in b.layers.values() for p in layer.params.values()]) for b in net.blocks
    ]


@pytest.mark.parametrize("backbone", ["tiny", "resnet-tiny"])
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("pipelined", [True, False])
def test_forward_forward_is_local(read, backbone, pipelined):
    cfg = replace(SMALL, backbone=backbone, pipelined=pipelined, clip=0.1, **READS[read])
    plain = weights_after(cfg)
    for perturbed in (1, 2):
        other = weights_after(cfg, perturbed)
        for i in range(perturbed):
            assert np.array_equal(plain[i], other[i]), f"block {perturbed} changed block {i}"
        assert not np.array_equal(plain[perturbed], other[perturbed])


@pytest.mark.parametrize("credit", ["deepsup", "bp"])
def test_backpropagation_is_not(credit):
    cfg = replace(SMALL, credit=credit)
    plain, other = weights_after(cfg), weights_after(cfg, perturbed=2)
    assert not np.array_equal(plain[0], other[0]) and not np.array_equal(plain[1], other[1])


def test_the_head_hands_nothing_back():
    cfg = SMALL
    net = network(cfg)
    net.head.params["W"] *= np.float32(3)
    r = np.random.default_rng(1)
    for _ in range(2):
        cnn.local_step(net, IMAGES.astype(np.float32), LABELS, cfg, r)
    for block, before in zip(net.blocks, weights_after(cfg), strict=True):
        own = [p.ravel() for layer in block.layers.values() for p in layer.params.values()]
        assert np.array_equal(np.concatenate(own), before)


def test_naive_and_pipelined_schedules_are_one_step_apart():
    """The first block's steps are the same; what it hands on differs by one step: in proportion to the rate."""
    one, other = (weights_after(replace(SMALL, pipelined=p), steps=1) for p in (True, False))
    assert np.array_equal(one[0], other[0]) and not np.array_equal(one[1], other[1])

    def handed_on(lr):
        found = []
        for pipelined in (True, False):
            cfg = replace(SMALL, pipelined=pipelined, dropout=0.0, lr=lr)
            net, seen = network(cfg), []
            forward = net.blocks[1].conv.forward
            net.blocks[1].conv.forward = lambda h, train=True: seen.append(h) or forward(h)
            cnn.local_step(net, IMAGES.astype(np.float32), LABELS, cfg, np.random.default_rng(1))
            found.append(seen[0])
        return np.linalg.norm(found[0] - found[1])

    assert 0 < handed_on(0.0005) < handed_on(0.001) < 3 * handed_on(0.0005)


@pytest.mark.parametrize("credit", ["deepsup", "bp"])
def test_micro_batches_and_recomputation_change_no_gradient(credit):
    cfg = replace(SMALL, credit=credit, dropout=0.0, head_dropout=0.0)
    found = []
    for change in ({}, {"recompute": True}, {"accumulate": 3}):
        net = network(replace(cfg, **change), double=True)
        for block in net.blocks:
            if block.temperature:
                block.temperature.params["alpha"][:] = 0.2
        read = read_gradients(net)
        cnn.backprop_step(net, IMAGES, LABELS, replace(cfg, **change), np.random.default_rng(1))
        found.append({k: g for k, g in read().items() if k[0] != "head"})
    assert all(np.array_equal(found[0][k], found[1][k]) for k in found[0])
    if credit == "deepsup":  # bp's head has BatchNorm, whose statistics are those of a micro-batch
        assert all(np.allclose(found[0][k], found[2][k], atol=1e-12) for k in found[0])


def test_clipping_by_block_and_by_network():
    for by in ("block", "network"):
        cfg = replace(SMALL, clip=0.05, clip_by=by)
        net = network(cfg)
        found = read_gradients(net)
        cnn.backprop_step(
            net, IMAGES.astype(np.float32), LABELS, replace(cfg, credit="deepsup"), np.random.default_rng(1)
        )
        grads = {k: g for k, g in found().items() if k[0] != "head"}
        norms = [np.sqrt(sum((g**2).sum() for k, g in grads.items() if k[0] == i)) for i in range(3)]
        assert np.isclose(np.linalg.norm(norms) if by == "network" else max(norms), 0.05, rtol=1e-4)


def test_bound_on_the_gradient():
    """Eq. 10 and 11: |dL/du| <= sqrt 2 / T |R| for every row, whatever goodness, class and temperature."""
    for seed in range(20):
        r = np.random.default_rng(seed)
        M, n = int(r.integers(1, 30)), int(r.integers(2, 12))
        warm, project = Temperature(dtype=np.float64), RandomMap(M, n, r, unit=seed % 2 == 0, dtype=np.float64)
        warm.params["alpha"][:] = 5 * r.standard_normal()
        u = 10 ** r.uniform(-2, 2) * r.random((1, M))
        psi, _ = project.forward(warm.forward(u)[0])
        _, dpsi = softmax_cross_entropy(psi, r.integers(0, n, 1))
        du, _ = warm.backward(project.backward(dpsi, None)[0], u)
        assert 0.5 <= warm.T[0] <= 2
        assert np.linalg.norm(du) <= np.sqrt(2) / warm.T[0] * np.linalg.norm(project.state["R"], 2) * (1 + 1e-12)


def test_goodness_is_measured_as_the_paper_says():
    """App. D.1 and C.3: parts of VGG8 by its channels at full width, also in narrow networks."""
    net = cnn.Net(cnn.Config(width=0.125), (32, 32, 3), 10, rng)
    assert [block.parts.h for block in net.blocks] == [4, 2, 2, 1, 1, 1, 1]
    assert [block.hand_on.pool for block in net.blocks] == [1, 2, 1, 2, 2, 2, 1]
    assert len(net.head.params["W"]) == (256 + 256 + 4 * 512) / 8
    z, _ = net.blocks[0].conv.forward(rng.standard_normal((2, 32, 32, 3)).astype(np.float32))
    R, b = (net.blocks[0].projection.state[k] for k in "Rb")
    u = np.stack(
        [[(z[:, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8] ** 2).mean(axis=(1, 2)) for j in range(4)] for i in range(4)]
    )
    psi = u.transpose(2, 0, 1, 3).reshape(2, -1) @ R / 1.25 + b  # T starts in the middle of 0.5 and 2
    assert np.allclose(net.blocks[0].read(z)[0], psi, rtol=1e-4)
    big = RandomMap(4000, 10, rng).state
    assert abs(big["R"].std() - 10**-0.5) < 0.01


def test_what_prediction_reads_is_what_was_trained_on():
    cfg = replace(SMALL, dropout=0.0, lr=0.0)
    net = network(cfg)
    for opt in net.layers[1]:
        opt.lr = 0.0
    x = IMAGES.astype(np.float32)
    losses = cnn.local_step(net, x, LABELS, cfg, np.random.default_rng(1))
    psi, _ = cnn.scores_of(net, x)
    assert np.allclose(losses[:-1], [softmax_cross_entropy(layer, LABELS)[0] for layer in psi], rtol=1e-5)


def test_label_smoothing():
    scores = rng.standard_normal((5, K))
    labels = LABELS[:5]
    target = 0.9 * np.eye(K)[labels] + 0.1 / K
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    loss, d = softmax_cross_entropy(scores, labels, 0.1)
    assert np.isclose(loss, -(target * log_p).sum(axis=1).mean()) and np.allclose(d, (np.exp(log_p) - target) / 5)


def test_residual_gradient():
    for stride, O in ((1, 3), (2, 4)):
        layer = Residual(3, O, np.random.default_rng(0), stride, dtype=np.float64)
        x = rng.standard_normal((2, 6, 6, 3))
        y, cache = layer.forward(x)
        assert y.shape == (2, layer.out_size(6), layer.out_size(6), O)
        weights = rng.standard_normal(y.shape)
        dx, grads = layer.backward(weights, cache, need_dx=True)
        gradcheck.check(lambda: (weights * layer.forward(x)[0]).sum(), {"x": x} | layer.params, {"x": dx} | grads)


@pytest.mark.parametrize("credit", ["local", "deepsup"])
def test_torch_agrees(credit):
    """All gradients of one step, from an independent program with autograd."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    cfg = replace(SMALL, credit=credit, dropout=0.0)
    net = network(cfg)
    found = read_gradients(net)
    x = IMAGES.astype(np.float32)
    h, total, tensors = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), 0, {}
    for i, block in enumerate(net.blocks):
        W = torch.from_numpy(block.conv.params["W"].transpose(3, 2, 0, 1).copy()).requires_grad_()
        b = torch.from_numpy(block.conv.params["b"].copy()).requires_grad_()
        alpha = torch.zeros((), requires_grad=True)
        R, c = (torch.from_numpy(block.projection.state[k]) for k in "Rb")
        z = F.conv2d(h.detach() if credit == "local" else h, W, b, padding=1).relu()
        u = F.adaptive_avg_pool2d(z**2, block.parts.h).permute(0, 2, 3, 1).flatten(1)
        psi = u / (0.5 + 1.5 * torch.sigmoid(alpha)) @ R + c
        total = total + F.cross_entropy(psi, torch.from_numpy(LABELS))
        h = F.avg_pool2d(z, block.hand_on.pool)
        h = F.layer_norm(h.permute(0, 2, 3, 1), (h.shape[1],)).permute(0, 3, 1, 2)
        tensors[i] = W, b, alpha
    total.backward()
    losses = cnn.STEPS[credit](net, x, LABELS, cfg, np.random.default_rng(1))
    assert np.isclose(losses[:-1].sum(), float(total.detach()), rtol=1e-5)
    grads = found()
    for i, (W, b, alpha) in tensors.items():
        pairs = {("conv", "W"): W.grad.permute(2, 3, 1, 0), ("conv", "b"): b.grad, ("temperature", "alpha"): alpha.grad}
        for (layer, k), theirs in pairs.items():
            theirs = theirs.numpy()
            assert np.linalg.norm(grads[i, layer, k] - theirs) <= 2e-5 * np.linalg.norm(theirs)


def test_rules_differ_in_nothing_that_they_do_not_name():
    """All rules start from the same convolutions; a learned map starts from the random one."""
    fixed = network(SMALL)
    for read in ({"projection": "learned"}, {"rule": "linear"}, {"rule": "hff"}, {"rule": "asge"}, {"credit": "bp"}):
        other = network(replace(SMALL, **read))
        for a, b in zip(fixed.blocks, other.blocks, strict=True):
            assert np.array_equal(a.conv.params["W"], b.conv.params["W"]), read
        assert np.array_equal(fixed.head.params["W"], other.head.params["W"]), read
    for a, b in zip(fixed.blocks, network(replace(SMALL, projection="learned")).blocks, strict=True):
        assert np.array_equal(a.projection.state["R"], b.projection.params["W"])
        assert np.array_equal(a.projection.state["b"], b.projection.params["b"])


def test_learned_maps_are_dense_layers():
    block = network(replace(SMALL, rule="linear")).blocks[0]
    assert isinstance(block.projection, Dense) and block.temperature is None and block.T == 1.0


def test_colours_change_and_squares_are_cut_out():
    images = rng.integers(0, 256, (400, 8, 8, 3)).astype(np.uint8)
    assert np.allclose(augment.jitter(images, 0.0, rng), images, atol=1e-3)
    x = augment.jitter(images, 0.3, np.random.default_rng(0))
    assert x.dtype == np.float32 and x.min() >= 0 and x.max() <= 255
    brightness, contrast, saturation = np.random.default_rng(0).uniform(0.7, 1.3, (3, 400))
    for b in (0, 7):
        y = images[b] * brightness[b]
        grey = (y @ [0.299, 0.587, 0.114]).mean()
        y = np.clip(grey + contrast[b] * (y - grey), 0, 255)
        greys = (y @ [0.299, 0.587, 0.114])[..., None]
        assert np.allclose(x[b], np.clip(greys + saturation[b] * (y - greys), 0, 255), atol=0.01)
    ones = np.ones((400, 8, 8, 3), np.float32)
    cut = augment.cutout(ones, 4, np.random.default_rng(0))
    gone = (cut == 0).all(axis=3).sum(axis=(1, 2))
    assert gone.max() == 16 and 4 <= gone.min() < 16 and ones.min() == 1
