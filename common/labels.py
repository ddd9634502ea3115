"""Label encodings and negatives. A negative never carries the true label.

Slot encoding (the CIFAR-10 write-up): a block of `rows` x `n_classes` pixels in the top-left corner, all channels, is
overwritten with OFF, and column `label` of it with ON.
"""

from common.arrays import namespace

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


def wrong_labels(labels, n_classes, rng):
    """One label per row, uniform over the n_classes - 1 labels that are not the true one. labels (B,) -> (B,)."""
    return (labels + rng.integers(1, n_classes, len(labels))) % n_classes
