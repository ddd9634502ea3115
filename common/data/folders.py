"""Images of any size in PATH/{train,val}/CLASS/*.jpg: read in the order of training, when they are needed.

For sets that do not fit into memory, ImageNet for one. (`load("imagefolder:PATH")` makes arrays of the others, and of
these, asked for with stream=True, `Pictures`.)

    train = Folder("~/imagenet", "train", 64)
    keys = rng.integers(0, 2**32, len(train), np.uint32)  # new ones in every epoch: other crops
    for images, labels in train.batches(rng.permutation(len(train)), 128, keys=keys):
        ...  # uint8 (128, 64, 64, 3), int64 (128,)

Threads do it, not processes: Pillow decodes and resizes without the interpreter's lock.
"""

import hashlib
import itertools
import json
import math
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from common.data.formats import DataError, _printable, as_rgb

SPLITS = {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}  # the first that exists
SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_PIXELS = 89_478_485  # of one image, as Pillow's own Image.MAX_IMAGE_PIXELS: 360 MB while it is decoded
PART = 8  # images per task: few enough to share a batch among many threads, enough that tasks cost nothing


class Folder:
    """The images of one split. files: paths relative to `root`, by class and name; labels: int64 (N,); class_names.

    path: the folder with the splits; split: "train", or "val" or "test", of which one may stand for the other;
    size: height and width of what `batches` gives; class_names: another split's, whose labels these are to share.
    The names are listed once, here, in an order that depends on nothing but them. Raises DataError.
    """

    def __init__(self, path, split, size, class_names=None):
        path = Path(path).expanduser()
        if not 1 <= size <= 4096:
            raise DataError(f"images of {size}x{size}: take a size from 1 to 4096")
        self.root = next((path / name for name in SPLITS[split] if (path / name).is_dir()), None)
        if not self.root:
            wanted = " or ".join(f"{name}/CLASS/*.jpg" for name in SPLITS[split])
            raise _error(f"{path} holds no {wanted}: name the folder that does")
        self.size = size
        try:
            found = {name: _images(self.root / name) for name in _visible(self.root, os.DirEntry.is_dir)}
        except OSError as error:
            raise _error(f"cannot list {error.filename} ({error.strerror}): look at its rights") from error
        self.class_names = tuple(found if class_names is None else class_names)
        number = {name: k for k, name in enumerate(self.class_names)}
        for name, images in found.items():
            if not images:
                raise _error(f"{self.root / name} holds no .jpg, .jpeg or .png: fill it or remove it")
            if name not in number:
                raise _error(f"{self.root / name} is no class of the training images: remove or rename it")
        if not found:
            raise _error(f"{self.root} holds no folders of images: put one for each class there")
        self.files = [f"{name}/{image}" for name, images in found.items() for image in images]
        counts = [len(images) for images in found.values()]
        self.labels = np.repeat(np.array([number[name] for name in found], np.int64), counts)

    def __len__(self):
        return len(self.files)

    def identity(self, sized=True):
        """Names the very images without reading them: paths, sizes and times of change, `size` and `class_names`.

        sized=False: names the files, whatever size they are to be decoded to.
        """
        size = self.size if sized else None
        digest = hashlib.sha256(json.dumps([str(self.root.resolve()), size, self.class_names]).encode())
        try:
            for file in self.files:
                facts = os.stat(self.root / file)
                digest.update(json.dumps([file, facts.st_size, facts.st_mtime_ns]).encode())
        except OSError as error:
            raise _error(f"cannot read {error.filename} ({error.strerror}): look at its rights") from error
        return digest.hexdigest()

    def sha256(self, index):
        """SHA-256 (32 bytes) of the file files[index] as it is, not decoded. Raises DataError."""
        digest = hashlib.sha256()
        try:
            with open(self.root / self.files[index], "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise _error(f"cannot read {error.filename} ({error.strerror}): look at its rights") from error
        return digest.digest()

    def digests(self):
        """`sha256` of all files: uint8 (N, 32), in the order of `files`. Raises DataError."""
        found = np.empty((len(self), 32), np.uint8)
        with ThreadPoolExecutor(os.cpu_count() or 1, "images") as pool:
            for start in range(0, len(self), 1000):  # a task for each of a million files would be a gigabyte of tasks
                rows = range(start, min(start + 1000, len(self)))
                some = b"".join(pool.map(self.sha256, rows))
                found[start : start + 1000] = np.frombuffer(some, np.uint8).reshape(-1, 32)
        return found

    def batches(self, order, batch_size, workers=2, ahead=4, keys=None):
        """Yields (images uint8 (B, size, size, 3), labels int64 (B,)) in `order`; the last batch may be smaller.

        order: indices into `files`; workers: threads; ahead: batches being decoded or waiting to be fetched, at most.
        The shorter side becomes size * 8 // 7, of which the middle is cut out, or, with keys, uint32 (len(order),), a
        place anywhere in the image that the key alone decides. The same images for any number of workers. Raises
        DataError for an image that cannot be read, when its batch's turn has come.
        """
        order = np.asarray(order, np.int64)
        if len(order) and not 0 <= order.min() <= order.max() < len(self):
            raise ValueError(f"order reaches outside 0 to {len(self) - 1}")
        keys = [None] * len(order) if keys is None else np.asarray(keys, np.uint32).tolist()
        if len(keys) != len(order):
            raise ValueError(f"{len(keys)} keys for {len(order)} images")
        if min(batch_size, workers, ahead) < 1:
            raise ValueError("batch_size, workers and ahead are at least 1")
        return self._batches(order, batch_size, workers, ahead, keys)

    def _batches(self, order, batch_size, workers, ahead, keys):
        pool = ThreadPoolExecutor(workers, "images")

        def begin(start):
            rows = order[start : start + batch_size]
            images = np.empty((len(rows), self.size, self.size, 3), np.uint8)
            work = zip(images, rows, keys[start : start + batch_size], strict=True)
            parts = iter(lambda: list(itertools.islice(work, PART)), [])
            return rows, images, [pool.submit(self._fill, part) for part in parts]

        starts = iter(range(0, len(order), batch_size))
        flying = deque()
        try:
            flying.extend(begin(start) for start in itertools.islice(starts, ahead))
            while flying:
                rows, images, tasks = flying.popleft()
                for task in tasks:
                    task.result()
                flying.extend(begin(start) for start in itertools.islice(starts, 1))
                yield images, self.labels[rows]
        finally:  # at the end, after an error, and when the consumer stops early
            pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, part):
        for image, row, key in part:
            image[...] = _decode(self.root / self.files[row], self.size, key)


class Pictures:
    """Images of a Folder that stay in their files: x[rows] picks some of them, `batches` decodes them, a few at a time.

    shape, dtype, ndim and size are those of the array uint8 (N, size, size, 3) that they would make. rows: a slice or
    an array of integers, which decodes nothing. np.asarray(x) and x[5] are refused, TypeError: nobody decodes a whole
    set, or one image after the other, by accident.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, folder, rows):
        self.folder, self.rows = folder, rows  # rows: indices into folder.files (N,)

    def __len__(self):
        return len(self.rows)

    @property
    def shape(self):
        return len(self), self.folder.size, self.folder.size, 3

    @property
    def size(self):
        return math.prod(self.shape)

    def __getitem__(self, rows):
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            if rows.ndim != 1 or rows.dtype.kind not in "iu":
                raise TypeError("pictures in files are picked by a slice or by an array of integers (n,)")
        return Pictures(self.folder, self.rows[rows])

    def __array__(self, *_, **__):
        raise TypeError("pictures in files are no array: `batches` or `pieces` decode some of them at a time")

    def batches(self, batch_size, keys=None, ahead=4):
        """As Folder.batches: yields (images uint8 (B, size, size, 3), labels int64 (B,)), with a thread per core."""
        return self.folder.batches(self.rows, batch_size, os.cpu_count() or 1, ahead, keys)


def pieces(images, n):
    """Images (N, H, W, C), an array or Pictures -> in order, arrays of n or, at the end, fewer; see Folder.batches."""
    if isinstance(images, Pictures):
        return (some for some, _ in images.batches(n, ahead=2))
    return (images[start : start + n] for start in range(0, len(images), n))


def _error(text):
    return DataError(_printable(text))  # names of files may hold anything


def _visible(folder, kind):
    """Sorted names in `folder` of this kind. Hidden ones (.DS_Store, ._x.jpg) are no data."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and kind(entry))


def _images(folder):
    return [name for name in _visible(folder, os.DirEntry.is_file) if name.lower().endswith(SUFFIXES)]


def _decode(path, size, key):
    """RGB (size, size, 3) of the file: shorter side made size * 8 // 7, then cropped by key (None: in the middle)."""
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:  # by content, as ImageNet has a PNG called .JPEG
            if image.width * image.height > MAX_PIXELS:  # only the header is read until here
                raise DataError(f"{image.width} x {image.height} pixels, more than the {MAX_PIXELS} allowed")
            short = size * 8 // 7
            image.draft(image.mode, (short, short))  # a JPEG at 1/2, 1/4 or 1/8 scale costs that much less to decode
            w, h = image.size
            W, H = (max(short, round(side * short / min(w, h))) for side in (w, h))
            if key is None:
                x, y = (W - size) // 2, (H - size) // 2
            else:  # its two halves as fractions of the room there is
                x, y = (key & 0xFFFF) * (W - size + 1) >> 16, (key >> 16) * (H - size + 1) >> 16
            # Only what the crop shows is resized: the same pixels as to resize all and crop.
            box = x * w / W, y * h / H, min((x + size) * w / W, w), min((y + size) * h / H, h)
            image = as_rgb(image, "it")
            return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))
    except Exception as error:  # a damaged file can provoke almost any of them
        detail = error if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        raise _error(f"{path}: no readable image ({detail}): mend or remove it") from error
