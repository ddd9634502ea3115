"""Label encodings and negatives. A negative never carries the true label.

Negatives: uniform over the wrong labels, or hard ones, which need the goodness of every label: the wrong label with the
highest, or one drawn in proportion to a softmax over them (Hinton 2022, section 3.3, draws so from a one-pass softmax).

Label map (label_map.py): label units of their own, seen from everywhere. Slot encoding (the CIFAR-10 write-up): a block
of `rows` x `n_classes` pixels in the top-left corner, all channels, is overwritten with OFF, and column `label` of it
with ON.
"""

from functools import cache

import numpy as np

from common.arrays import like, namespace

OFF, ON = -1.0, 1.0  # well outside the centred pixels' range of about [-0.5, 0.5]


def write_slot(images, labels, rows, n_classes, off=OFF, on=ON):
    """Overwrite the label slot of images (B, H, W, C), in place, with labels (B,). Returns images.

    Raises ValueError when the slot is larger than the image.
    """
    B, H, W, _ = images.shape
    if rows > H or n_classes > W:
        raise ValueError(f"a label slot of {rows}x{n_classes} pixels does not fit into a {H}x{W} image")
    xp = namespace(images)
    images[:, :rows, :n_classes] = off
    images[xp.arange(B), :rows, labels] = on
    return images


def one_hot(labels, n_classes):
    """labels (B,) -> float32 (B, n_classes), 1 at the label and 0 elsewhere."""
    return namespace(labels).eye(n_classes, dtype=np.float32)[labels]


def wrong_labels(labels, n_classes, rng):
    """One label per row, uniform over the n_classes - 1 labels that are not the true one. labels (B,) -> (B,)."""
    return (labels + like(labels, rng.integers(1, n_classes, len(labels)))) % n_classes


def hardest_labels(g, labels):
    """The wrong label with the highest goodness: g (B, K), labels (B,) -> (B,)."""
    return _without_true(g, labels).argmax(axis=1)


def sampled_labels(logits, labels, rng):
    """One wrong label per row, drawn in proportion to softmax(logits): logits (B, K), labels (B,) -> (B,)."""
    noise = rng.gumbel(size=logits.shape)  # argmax of logits plus Gumbel noise is a draw from their softmax
    return (_without_true(logits, labels) + like(logits, noise)).argmax(axis=1)


def hybrid_masks(n, side, blurs, rng, xp=np):
    """Large random regions of ones and zeros (n, side, side), bool: random bits, blurred again and again with
    [1/4, 1/2, 1/4] in both directions, then cut at 1/2 (Hinton 2022, section 3.2). At the edges pixels repeat."""
    blur = _blur(side, blurs, xp)
    bits = xp.asarray(rng.integers(0, 2, (n, side, side))).astype(np.float32)
    return xp.matmul(xp.matmul(blur, bits), blur) > 0.5  # blur is symmetric


@cache
def _blur(side, blurs, xp):
    """All blurs along one direction, as a matrix (side, side)."""
    blur = np.eye(side) / 2 + (np.eye(side, k=1) + np.eye(side, k=-1)) / 4
    blur[0, 0] = blur[-1, -1] = 3 / 4
    return xp.asarray(np.linalg.matrix_power(blur, blurs).astype(np.float32))


def hybrid_images(images, masks, rng):
    """Negatives without labels: image b where masks[b], another image of the batch elsewhere. (B, H, W, C)."""
    xp, B = namespace(images), len(images)
    other = (xp.arange(B) + like(images, rng.integers(1, B, B))) % B  # never the same image
    return xp.where(masks[..., None], images, images[other])


def _without_true(g, labels):
    xp = namespace(g)
    return xp.where(labels[:, None] == xp.arange(g.shape[1]), -np.inf, g.astype(np.float64))
