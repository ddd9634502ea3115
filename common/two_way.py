"""Layers between two neighbours, and how they settle in time: the recurrent, top-down Forward-Forward of Hinton (2022).

    z_l(t) = [what the layer below sends] + [what the layer above sends] + b_l            all layers at once
    y_l(t) = damping y_l(t-1) + (1 - damping) ReLU(z_l(t))                                 (section 3.4)

The neighbours send what they make of y(t-1) scaled to mean square 1. The image stands below the lowest layer and the
label above the top one; neither changes with time, so what they send is computed once: `drive` and `leads`.

A layer is any object with from_below(h), from_above(h) and params["b"]; its states are (R, n) or (R, H, W, C).
"""

from common.arrays import namespace
from common.goodness import normalise
from common.layers import activate


def repeated(part, R):
    """B rows, again and again: (B, ...) -> (R, ...), row r is row r mod B."""
    return part if len(part) == R else namespace(part).concatenate([part] * (R // len(part)))


def unroll(layers, drive, leads, y, steps, damping):
    """Yield, step by step, what every layer sends (scaled y of before), its ReLU(z) and its new y: three lists.

    leads: what the label sends to each layer (R, ...), or None for those that do not see it; drive: what the image
    sends to the lowest layer; y: the states at step 0. The latter two may have B rows, for row r shows image r mod B:
    the first step is the same under all labels but for what the label itself sends. from_above may return None, where
    no layer is above or none is listened to.
    """
    R = len(next(lead for lead in leads if lead is not None))
    for _ in range(steps):
        h = [normalise(v) for v in y]
        new = []
        for i, layer in enumerate(layers):
            above = layer.from_above(h[i + 1]) if i + 1 < len(layers) else None
            z = repeated(layer.from_below(h[i - 1]) if i else drive, R)
            for part in (leads[i], above):  # every layer has one of them
                z = z if part is None else repeated(part, R) + z
            new.append(activate(z, layer.params["b"]))
        h, y, drive = [repeated(v, R) for v in h], [repeated(v, R) for v in y], repeated(drive, R)
        y = [damping * old + (1 - damping) * each for old, each in zip(y, new, strict=True)]
        yield h, new, y


def unreached(n_layers, i):
    """Steps before the label, coming down a layer a step, has reached layer i: until then a row with the right label
    and one with a wrong one are the same there."""
    return n_layers - 1 - i
