"""Accuracies, and the statistics that tables print."""

import numpy as np

from common.arrays import host


def in_batches(n, size):
    """Slices that cut range(n) into pieces of at most `size`."""
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def accuracy(predicted, labels):
    """Share of rows where predicted (N,) equals labels (N,), from 0 to 1."""
    return float(np.mean(host(predicted) == host(labels)))


def silent(layers):
    """Share of each layer's units whose running mean activity (layer.state["mean"]) is next to nothing, 0 to 1."""
    return [float((layer.state["mean"] < 0.001).mean()) for layer in layers]


def per_class_accuracy(predicted, labels, n_classes):
    """Accuracy on each class's images: n_classes numbers from 0 to 1 (None for a class without images)."""
    right = np.asarray(predicted) == labels
    return [float(right[labels == k].mean()) if (labels == k).any() else None for k in range(n_classes)]


def rank_correlation(a, b):
    """Spearman's rank correlation of a and b (n,), from -1 to 1; ties share their mean rank.

    Pairs in which either is None are left out; nan where fewer than two are left or all are equal.
    """
    pairs = [pair for pair in zip(a, b, strict=True) if None not in pair]
    a, b = [x for x, _ in pairs], [y for _, y in pairs]

    def ranks(x):
        x = np.asarray(x)
        return (x[:, None] > x).sum(axis=1) + ((x[:, None] == x).sum(axis=1) - 1) / 2

    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(ranks(a), ranks(b))[0, 1]) if len(a) > 1 else float("nan")


def mean_sd(values):
    """Mean and sample standard deviation (n - 1; nan for a single value)."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan")
