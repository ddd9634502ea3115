"""How much a number, or a vector, says about the class: estimates and bounds, in bits.

histogram    I(g; Y) from counts in equally wide bins of g: it grows with the number of bins (finite samples)
ksg          the same by nearest neighbours (Kraskov et al. 2004; Ross 2014, for a continuous and a discrete
             variable): scikit-learn's, with k = 4
fano         a lower bound for what a vector says, from the error P of any classifier on new images (eq. 12):
             I >= log2 K - H2(P) - P log2(K - 1), for K classes that are equally frequent
probe_error  such a classifier: softmax regression on four fifths of the images, its error on the last fifth
"""

import numpy as np

from common.cli import UsageError
from common.evaluate import in_batches
from common.goodness import softmax_cross_entropy
from common.layers import Dense
from common.optim import Adam


def entropy(p):
    """Of probabilities p (...), in bits."""
    p = np.asarray(p, np.float64).ravel()
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def histogram(g, labels, bins):
    """g (N,) numbers, labels (N,) -> I(g; Y) in bits, from `bins` equally wide bins."""
    edges = np.linspace(g.min(), g.max(), bins + 1)
    place = np.clip(np.digitize(g, edges) - 1, 0, bins - 1)
    joint = np.zeros((bins, int(labels.max()) + 1))
    np.add.at(joint, (place, labels), 1)
    joint /= joint.sum()
    return entropy(joint.sum(axis=1)) + entropy(joint.sum(axis=0)) - entropy(joint)


def ksg(g, labels, k=4):
    """g (N,), labels (N,) -> I(g; Y) in bits, from k nearest neighbours. Raises UsageError without scikit-learn."""
    try:
        from sklearn.feature_selection import mutual_info_classif
    except ImportError:
        raise UsageError("nearest-neighbour estimates need scikit-learn: pip install scikit-learn") from None
    return float(mutual_info_classif(g[:, None], labels, n_neighbors=k, random_state=42)[0] / np.log(2))


def fano(error, K):
    """The bound above, in bits; 0 where it would be negative."""
    rest = error * np.log2(K - 1) if K > 2 else 0.0
    return float(max(0.0, np.log2(K) - entropy([error, 1 - error]) - rest))


def probe_error(x, labels, K, epochs=50, lr=0.01, batch=256, seed=0):
    """x (N, D), labels (N,) -> error, from 0 to 1, of softmax regression on the last fifth; inputs standardised by the
    other four, Adam."""
    rng, n = np.random.default_rng(seed), len(x) * 4 // 5
    order = rng.permutation(len(x))
    x, labels = x[order].astype(np.float32), labels[order]
    mean, sd = x[:n].mean(axis=0), x[:n].std(axis=0)
    x = (x - mean) / np.maximum(sd, 1e-6)
    probe = Dense(x.shape[1], K, rng, relu=False, gain=0.0)
    opt = Adam(probe.params, lr)
    for _ in range(epochs):
        order = rng.permutation(n)
        for rows in in_batches(n, batch):
            some = order[rows]
            scores, cache = probe.forward(x[some])
            _, d = softmax_cross_entropy(scores, labels[some])
            opt.step(probe.backward(d, cache)[1])
    scores, _ = probe.forward(x[n:], train=False)
    return float((scores.argmax(axis=1) != labels[n:]).mean())
