"""One helper for every gradient: the derivative along a random direction against a central difference in float64."""

import numpy as np


def check(f, arrays, grads, seed=0, step=1e-6, tolerance=1e-6):
    """f() is a number that depends on `arrays` (dict of float64 arrays, changed in place); `grads` its gradients.

    The central difference of a smooth function is off by O(step^2) + O(1e-16 / step), so 1e-6 leaves four digits spare.
    """
    rng = np.random.default_rng(seed)
    for name, array in arrays.items():
        direction = rng.standard_normal(array.shape)
        kept = array.copy()
        array[...] = kept + step * direction
        above = f()
        array[...] = kept - step * direction
        below = f()
        array[...] = kept
        numeric, ours = (above - below) / (2 * step), np.sum(grads[name] * direction)
        scale = max(abs(numeric), np.linalg.norm(grads[name]), 1e-12)
        assert abs(numeric - ours) <= tolerance * scale, f"d/d{name}: {ours} against {numeric}"
