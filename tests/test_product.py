"""Product: an optimiser that multiplies the gradient out itself does what it does with the gradient."""

import numpy as np
import pytest

from common.layers import Dense
from common.optim import SGD, Adam
from common.product import LEAST, Product, gradient

SHAPES = [(1, 1, 64), (7, 13, 70), (100, 25, 97), (33, 100, 1055), (200, 24, 128)]  # B, K, N: edges of every kind
SHAPES += [(300, 20, 1055)]  # more panels than the caches keep near: in several goes, the last one not whole


def factors(B, K, N, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((B, K)).astype(np.float32), rng.standard_normal((B, N)).astype(np.float32)


@pytest.mark.parametrize("make", [SGD, Adam])
@pytest.mark.parametrize("B, K, N", SHAPES)
def test_a_step_is_that_with_the_array(make, B, K, N):
    """Two parts, one below the other; three steps, so that momentum counts; weights around the step are not touched."""
    parts = factors(2 * B, 10, N, 1), factors(B, K, N, 2)
    exact = np.concatenate([x.astype(np.float64).T @ dz for x, dz in parts])
    start = np.random.default_rng(3).standard_normal((10 + K, N)).astype(np.float32)
    ours, plain = {"W": start.copy()}, {"W": start.astype(np.float64)}
    # Adam divides by the gradient's size: a weight whose gradient is nearly zero would move by a rounding's sign
    settings = {"lr": 0.01, "decay": 0.1} | ({"eps": 1e-2} if make is Adam else {})
    one, two = make(ours, **settings), make(plain, **settings)
    for _ in range(3):
        one.step({"W": Product(*parts)})
        two.step({"W": exact})
    assert not np.array_equal(ours["W"], start)
    for a, b in [(ours["W"], plain["W"])] + [(one.state[k], two.state[k]) for k in one.state]:
        # float32 knows 1 - 0.999 to five digits only
        assert np.linalg.norm(a - b) <= (2e-5 if make is Adam else 1e-6) * np.linalg.norm(b)


def test_the_array_is_the_product():
    parts = factors(5, 7, 70), factors(9, 3, 70, 1)
    expected = np.concatenate([x.T @ dz for x, dz in parts])
    assert np.allclose(Product(*parts), expected) and np.asarray(Product(*parts)).dtype == np.float32
    assert np.linalg.norm(Product(*parts)) == np.linalg.norm(expected)


def test_where_products_are_left_to_blas():
    wide, narrow = factors(5, 7, LEAST), factors(5, 7, LEAST - 1)
    assert isinstance(gradient(wide), Product)
    assert type(gradient(narrow)) is np.ndarray and gradient(narrow).shape == (7, LEAST - 1)
    assert type(gradient(*([tuple(a.astype(np.float64) for a in wide)] * 2))) is np.ndarray


def test_silent_units_stay_normal_numbers():
    """Averages of a dead unit end at 0, not among the denormals that slow every later step down a hundred times."""
    layer = Dense(6, 96, np.random.default_rng(0))
    for make in (SGD, Adam):
        opt = make(layer.params, 0.001)
        x, dz = factors(4, 6, 96)
        opt.step({"W": Product((x, dz)), "b": dz.sum(axis=0)})
        for _ in range(3000 if make is SGD else 1500):
            opt.step({"W": Product((x, np.zeros_like(dz))), "b": 0 * dz[0]})
        tiny = np.finfo(np.float32).tiny
        assert all(np.all((a == 0) | (np.abs(a) >= tiny)) for a in opt.state.values())
        assert not opt.state["m_W"].any()


def test_products_add_up():
    """Two micro-batches' gradients together are those of one batch."""
    r = np.random.default_rng(8)
    x, dz = r.standard_normal((12, 5)).astype(np.float32), r.standard_normal((12, 70)).astype(np.float32)
    both = Product((x[:5], dz[:5]), (x[:5, :3], dz[:5])) + Product((x[5:], dz[5:]), (x[5:, :3], dz[5:]))
    whole = np.concatenate([x.T @ dz, x[:, :3].T @ dz])
    assert np.allclose(np.asarray(both), whole, atol=1e-5) and [len(rows) for rows, *_ in both.parts] == [12, 12]
