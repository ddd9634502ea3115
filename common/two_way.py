"""Layers between two neighbours, and how they settle in time: the recurrent, top-down Forward-Forward of Hinton (2022).

    z_l(t) = [what the layer below sends] + [what the layer above sends] + b_l            all layers at once
    y_l(t) = damping y_l(t-1) + (1 - damping) ReLU(z_l(t))                                 (section 3.4)

The neighbours send what they make of y(t-1) scaled to mean square 1. The image stands below the lowest layer and the
label above the top one; neither changes with time, so what they send is computed once: `drive` and `leads`.

A layer is any object with from_below(h), from_above(h) and params["b"]; its states are (R, n) or (R, H, W, C).
"""

from common.goodness import normalise
from common.layers import activate


def unroll(layers, drive, leads, y, steps, damping):
    """Yield, step by step, what every layer sends (scaled y of before), its ReLU(z) and its new y: three lists.

    drive: what the image sends to the lowest layer; leads: what the label sends to each one, or None; y: the states at
    step 0; all of R rows. from_above may return None, where no layer is above or none is listened to.
    """
    for _ in range(steps):
        h = [normalise(v) for v in y]
        new = []
        for i, layer in enumerate(layers):
            above = layer.from_above(h[i + 1]) if i + 1 < len(layers) else None
            z = layer.from_below(h[i - 1]) if i else drive
            for part in (leads[i], above):
                z = z if part is None else part + z
            new.append(activate(z.copy() if z is drive else z, layer.params["b"]))
        y = [damping * old + (1 - damping) * each for old, each in zip(y, new, strict=True)]
        yield h, new, y


def unreached(n_layers, i):
    """Steps before the label, coming down a layer a step, has reached layer i: until then a row with the right label
    and one with a wrong one are the same there."""
    return n_layers - 1 - i
