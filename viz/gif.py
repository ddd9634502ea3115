"""Pictures into a GIF that a README can carry: one palette for all frames, and small enough."""

import io

import numpy as np
from PIL import Image

from common import record

LIMIT = 1_500_000  # bytes
HOLD = 2000  # milliseconds that the last frame stays


def encode(frames, fps, colors):
    """Pillow images -> the bytes of a GIF with one palette of `colors`, that of the last frame."""
    palette = frames[-1].quantize(colors)
    table = np.reshape(palette.getpalette(), (-1, 3))
    table[table.min(axis=1) > 246] = 255  # white stays white
    palette.putpalette(table.ravel().tolist())
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in frames]
    durations = [round(1000 / fps)] * (len(frames) - 1) + [HOLD]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return buffer.getvalue()


def fit(frames, fps):
    """The GIF in full quality if LIMIT allows, else with fewer colours, then smaller -> its bytes, what was done."""
    width, height = frames[0].size
    for colors, scale in ((128, 1), (64, 1), (32, 1), (32, 0.8), (32, 0.65), (16, 0.5)):
        size = round(width * scale), round(height * scale)
        data = encode([image.resize(size) for image in frames] if scale < 1 else frames, fps, colors)
        if len(data) <= LIMIT:
            return data, f", reduced to {colors} colours, {size[0]} x {size[1]} pixels" if colors < 128 else ""
    raise record.RecordError(f"{len(frames)} frames do not fit into {LIMIT / 1e6} MB: try a larger --snapshot-every")
