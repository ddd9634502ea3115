"""Labels: the slot holds exactly the label, and a negative never carries the true one."""

import numpy as np
import pytest

from common.labels import OFF, ON, hardest_labels, sampled_labels, write_slot, wrong_labels


def test_slot():
    images = np.full((2, 32, 32, 3), 0.3, np.float32)
    x = write_slot(images.copy(), np.array([0, 9]), 3, 10)
    for b, label in enumerate((0, 9)):
        expected = np.full((3, 10, 3), OFF)
        expected[:, label] = ON
        assert np.array_equal(x[b, :3, :10], expected)
    x[:, :3, :10] = images[:, :3, :10]
    assert np.array_equal(x, images)  # nothing else was touched


def test_slot_that_does_not_fit():
    with pytest.raises(ValueError, match="does not fit"):
        write_slot(np.zeros((1, 28, 28, 1)), np.array([0]), 3, 100)


@pytest.mark.parametrize("K", [2, 10, 100])
def test_negatives_are_wrong_and_uniform(K):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, 40_000)
    wrong = wrong_labels(labels, K, rng)
    assert not np.any(wrong == labels) and wrong.min() >= 0 and wrong.max() < K
    counts = np.bincount((wrong - labels) % K, minlength=K)[1:]
    expected = len(labels) / (K - 1)
    assert np.all(np.abs(counts - expected) < 6 * np.sqrt(expected))  # six standard deviations of a count


def test_hardest_is_the_best_wrong_label():
    g = np.array([[5, 9, 3], [9, 1, 2], [0, 0, -4]], np.float32)
    assert hardest_labels(g, np.array([1, 0, 0])).tolist() == [0, 2, 1]
    assert g[0, 1] == 9  # the caller's goodness is as it was


def test_sampled_follow_the_softmax_without_the_true_label():
    rng = np.random.default_rng(0)
    logits, n = np.array([0.0, 1.0, 3.0, -1.0]), 40_000
    drawn = sampled_labels(np.tile(logits, (n, 1)), np.full(n, 2), rng)
    p = np.exp(logits)
    p[2] = 0
    expected = n * p / p.sum()
    counts = np.bincount(drawn, minlength=4)
    assert counts[2] == 0 and np.all(np.abs(counts - expected) < 6 * np.sqrt(np.maximum(expected, 1e-9)))
