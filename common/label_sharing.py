"""Images that differ only in their label slot share almost all of their arithmetic: the exact shortcuts.

A slot in the corner of the image is seen by a small window of locations; everywhere else the first layer answers the
same for every label. Training (one right and one wrong label per image) computes that shared part once, forward and
gradient: `SharedPair`. Prediction (all K labels) goes one layer further: between layers a row is divided by one
number, its root mean square r, and a locally connected layer is linear before its ReLU, so outside the window

    z_label = (1 / r_label) (W y)_shared + b                       `goodness_of_labels`

needs one product for all labels. Nothing is approximated: the plain path, every label on its own, gives the same
numbers to rounding, and the tests compare the two. The price: `goodness_of_labels` knows by heart that goodness is the
mean of squares, that rows are normalised, and that the slot is in the top-left corner. Whoever changes one of these
predicts with `shared=False`, which asks common/goodness.py and common/labels.py.
"""

import numpy as np

from common.arrays import aligned, kernels, namespace
from common.goodness import MeanSquare, normalise, rms_inverse
from common.labels import OFF, ON, write_slot


def window_seeing(layer, changed):
    """The outputs of `layer` that see the input rectangle changed = (top, bottom, left, right): such a rectangle."""
    (rf, _), s, p = layer.params["W"].shape[2:4], layer.stride, layer.padding

    def seen(first, last, n):
        return max(0, -(-(first + p - rf + 1) // s)), min(n, (last - 1 + p) // s + 1)

    top, bottom, left, right = changed
    return *seen(top, bottom, layer.out_shape[0]), *seen(left, right, layer.out_shape[1])


class SharedPair:
    """A locally connected layer fed with 2B rows, of which rows b and B + b differ only inside `slot`.

    Same contract and same numbers as the layer itself; the second half of the rows costs only the window that sees the
    slot. Takes the plain path where there are no kernels, or where B does not fill whole SIMD blocks.
    slot: (top, bottom, left, right) of the input.
    """

    def __init__(self, layer, slot):
        self.layer, self.params, self.state = layer, layer.params, layer.state
        self.window = window_seeing(layer, slot)

    def forward(self, x, train=True):
        """x (2B, H, W, C) -> y (2B, OH, OW, O), cache."""
        x = x.astype(self.params["W"].dtype, copy=False)
        k, B = kernels(x), len(x) // 2
        if k is None or B % k.BLOCK:
            return self.layer.forward(x, train)
        packed = self.layer.pack(x)  # (2Q, H, W*C, BLOCK): the blocks of the first half, then those of the second
        Q = len(packed) // 2
        y = self.layer.new_output(2 * B)  # (OH, OW, O, 2B)
        self.layer.forward_window(packed[:Q], y, 0, B, self.layer.everywhere, again=B)
        self.layer.forward_window(packed[Q:], y, B, B, self.window)
        y = y.transpose(3, 0, 1, 2)
        return y, (packed, y, x.shape)

    def backward(self, dy, cache, need_dx=False):
        """dy (2B, OH, OW, O) -> None, grads. The shared inputs meet the sum of both halves' errors once."""
        packed, y, _ = cache
        dy = dy.astype(y.dtype, copy=False)
        k, B = kernels(dy), len(dy) // 2
        if need_dx:
            raise ValueError("SharedPair computes no input gradient: it is a first layer")
        if k is None or B % k.BLOCK:
            return self.layer.backward(dy, cache)
        grads = {name: aligned(p.shape) for name, p in self.params.items()}
        shared = self.layer.dz_of_pairs(dy, y)  # (OH, OW, O, B)
        self.layer.weight_grad_window(packed[: len(packed) // 2], shared, grads, self.layer.everywhere)
        dz = aligned((*shared.shape[:3], 2 * B))  # (OH, OW, O, 2B): only the window of it is used
        top, bottom, left, right = self.window
        dz[top:bottom, left:right] = self.layer.dz(dy[:, top:bottom, left:right], y[:, top:bottom, left:right])
        self.layer.weight_grad_window(packed, dz, grads, self.window)
        return None, grads


def goodness_of_labels(layers, images, slot_rows, n_classes, shared=True):
    """Goodness (mean of squares) of every layer for every candidate label.

    images (B, H, W, C) without a label; layers: LocallyConnected2d with ReLU, activities normalised in between
    -> g (n_layers, B, n_classes). `shared=False` forces the plain path: every label is encoded and run on its own.
    """
    if not shared or kernels(images) is None:
        return _one_label_at_a_time(layers, images, slot_rows, n_classes)
    B, K = len(images), n_classes
    g = np.empty((len(layers), K, B), np.float32)

    # Layer 0: one pass with an empty slot. In the window each label then adds the same numbers to every image.
    first, window = layers[0], window_seeing(layers[0], (0, slot_rows, 0, K))
    y, y_window = _first_layer(first, images, slot_rows, K, window)  # (OH, OW, O, B), zero inside; (h, w, O, K, B)
    D = y.size // B
    g[0] = (np.einsum("ijob,ijob->b", y, y) + np.einsum("ijokb,ijokb->kb", y_window, y_window)) / D
    if len(layers) == 1:
        return g.transpose(0, 2, 1)

    # Layer 1: z = (W y) / r + b, where W y is shared outside the window that sees the first window.
    second, window1 = layers[1], window_seeing(layers[1], window)
    inside = (slice(*window1[:2]), slice(*window1[2:]))
    scale, bias = rms_inverse(g[0]), second.params["b"]  # (K, B), (OH, OW, O)
    a = second.new_output(B)
    second.forward_window(second.pack(y.transpose(3, 0, 1, 2)), a, 0, B, second.everywhere, linear=True)
    a_labels = _linear_of_corner(second, y_window.reshape(*y_window.shape[:3], K * B), window1)
    a_labels = a_labels.reshape(*a_labels.shape[:3], K, B) + a[inside][..., None, :]  # (h, w, O, K, B)
    z_window = np.maximum(a_labels * scale + bias[inside][..., None, None], 0)
    kernels(a).scaled_square_sums(a, bias, scale, g[1], window1[1], window1[3])
    g[1] = (g[1] + np.einsum("ijokb,ijokb->kb", z_window, z_window)) / (a.size // B)
    if len(layers) == 2:
        return g.transpose(0, 2, 1)

    # Deeper layers: the bias has broken the proportion, so every label is a row of its own from here on.
    y = np.maximum(a[..., None, :] * scale + bias[..., None, None], 0)  # (OH, OW, O, K, B)
    y[inside] = z_window
    h = normalise(y.reshape(*y.shape[:3], K * B).transpose(3, 0, 1, 2), g[1].ravel())  # (K*B, OH, OW, O)
    for depth, layer in enumerate(layers[2:], start=2):
        y, _ = layer.forward(h, train=False)
        g[depth] = MeanSquare().forward(y)[0].reshape(K, B)
        h = normalise(y, g[depth].ravel())
    return g.transpose(0, 2, 1)


def _one_label_at_a_time(layers, images, slot_rows, n_classes):
    """The definition that `goodness_of_labels` must agree with; also what runs on float64 and CuPy arrays."""
    xp = namespace(images)
    per_label = []
    for label in range(n_classes):
        h = write_slot(images.copy(), xp.full(len(images), label), slot_rows, n_classes)
        per_layer = []
        for layer in layers:
            y, _ = layer.forward(h, train=False)
            per_layer.append(MeanSquare().forward(y)[0])
            h = normalise(y, per_layer[-1])
        per_label.append(xp.stack(per_layer))
    return xp.stack(per_label, axis=2)  # (n_layers, B, n_classes)


def _first_layer(layer, images, slot_rows, K, window):
    """-> y (OH, OW, O, B) with an empty slot, zero inside the window; y_window (h, w, O, K, B) of every label."""
    B = len(images)
    inside = (slice(*window[:2]), slice(*window[2:]))
    empty = images.copy()
    empty[:, :slot_rows, :K] = OFF
    packed = layer.pack(empty)
    y, z, z_label = layer.new_output(B), layer.new_output(B), layer.new_output(K)
    layer.forward_window(packed, y, 0, B, layer.everywhere)
    y[inside] = 0
    layer.forward_window(packed, z, 0, B, window, linear=True)
    marks = write_slot(np.zeros((K, *images.shape[1:]), np.float32), np.arange(K), slot_rows, K, off=0.0, on=ON - OFF)
    layer.forward_window(layer.pack(marks), z_label, 0, K, window, linear=True)
    z_label[inside] += layer.params["b"][inside][..., None]
    return y, np.maximum(z[inside][..., None, :] + z_label[inside][..., None], 0)


def _linear_of_corner(layer, corner, window):
    """W x inside the window, for x (h, w, C, N) in the top-left corner of a map that is zero elsewhere."""
    h, w, C, N = corner.shape
    rf, reach = layer.params["W"].shape[2], layer.stride
    H = min(layer.in_shape[0], max(h, (window[1] - 1) * reach + rf - layer.padding))
    W = min(layer.in_shape[1], max(w, (window[3] - 1) * reach + rf - layer.padding))
    x = np.zeros((H, W, C, N), np.float32)
    x[:h, :w] = corner
    y = layer.new_output(N)
    layer.forward_window(layer.pack(x.transpose(3, 0, 1, 2)), y, 0, N, window, linear=True)
    return y[slice(*window[:2]), slice(*window[2:])]
