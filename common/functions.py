"""The scalar functions of the family, value and derivative side by side; NumPy or CuPy arrays of any float type."""

from common.arrays import namespace


def softplus(x):
    """log(1 + e^x), without overflow; its derivative is `sigmoid`."""
    xp = namespace(x)
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


def sigmoid(x):
    """1 / (1 + e^-x), without overflow; the derivative of `softplus`."""
    xp = namespace(x)
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1, e) / (1 + e)


def relu(x):
    """max(x, 0); its derivative is 1 where x > 0."""
    return namespace(x).maximum(x, 0)


def softmax(x):
    """Rows of x (B, K) to probabilities."""
    xp = namespace(x)
    e = xp.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
