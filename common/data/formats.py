"""An archive is a stranger's letter: read it, never obey it.

Readers for the public formats of MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100. Nothing is ever extracted to disk, so no
path in an archive can lead anywhere; every size is limited before memory is spent on it; and a pickle can name five
things, for each of which it gets a harmless stand-in from this file instead of the real one. Whatever is wrong with a
file comes out as one `DataError` line.
"""

import gzip
import io
import math
import pickle
import struct
import tarfile
import zipfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

MAX_UNPACKED = 400 << 20  # bytes; the largest of the four sets unpacks to 186 MB
MAX_MEMBER = 200 << 20  # bytes; the largest single file is CIFAR-100's `train` with 155 MB
MAX_PNG = 64 << 10  # bytes; 32x32 RGB is 3 kB before compression
MAX_MEMBERS = 100_000  # CIFAR as PNGs has 60 000 and a few folders


class DataError(Exception):
    """Data cannot be had; the message is one clear line that says what to do."""


@contextmanager
def reading(path):
    """Turns every error inside the block into one DataError line that names the file.

    Every `Exception`, because a crafted pickle, zip or PNG can provoke almost any of them in the library that reads it.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {_printable(error)}") from error
    except Exception as error:
        detail = _printable(f"{type(error).__name__}: {error}").rstrip(": ")
        raise DataError(f"{path}: damaged or not in the expected format ({detail}); get it again") from error


def _printable(text):
    """One line without control characters, which names in an archive may hold and a terminal may obey."""
    return "".join(c for c in " ".join(str(text).split()) if c.isprintable())


# ---------------------------------------------------------------------------------------------------- idx (MNIST)


def read_idx(path, ndim):
    """The uint8 array in an IDX file, gzipped or not.

    path: file, ndim: number of dimensions expected (3 for images N x H x W, 1 for labels N).
    Layout: bytes 0, 0, 8 (uint8), ndim; ndim big-endian uint32 sizes; the data (http://yann.lecun.com/exdb/mnist/).
    Raises DataError if the header, the size or the gzip checksum is wrong.
    """
    with reading(path), open(path, "rb") as raw:
        start = raw.read(2)
        raw.seek(0)
        _refuse_empty_and_html(raw)
        with gzip.GzipFile(fileobj=raw) if start == b"\x1f\x8b" else raw as file:
            header = file.read(4 + 4 * ndim)
            if len(header) < 4 + 4 * ndim or header[:4] != bytes([0, 0, 8, ndim]):
                raise DataError(f"not an IDX file of uint8 with {ndim} dimensions")
            shape = struct.unpack(f">{ndim}I", header[4:])
            size = math.prod(shape)
            if size > MAX_UNPACKED:
                raise DataError(f"claims {size} bytes of data, more than the {MAX_UNPACKED} allowed")
            data = file.read(size + 1)  # one byte more: a longer file is a bomb or a mistake, and EOF checks the CRC
            if len(data) != size:
                raise DataError(f"holds {'more' if len(data) > size else 'fewer'} than the {size} bytes it promises")
        return np.frombuffer(data, np.uint8).reshape(shape)


# ------------------------------------------------------------------------------------------------ archive members


def members(path, wanted, limit=MAX_MEMBER):
    """Yields (name, bytes) of the wanted regular files in a folder, a .zip or a (gzipped) .tar, one at a time.

    wanted: name -> bool, limit: bytes allowed per member. Links and devices are skipped, never followed; a name that
    is absolute or climbs out with `..` condemns the archive. Reads in memory, writes nothing. Raises DataError.
    """
    path = Path(path)
    budget = MAX_UNPACKED
    if path.is_dir():
        source = _folder_members(path, wanted, limit)
    elif zipfile.is_zipfile(path):
        source = _zip_members(path, wanted, limit)
    else:
        source = _tar_members(path, wanted, limit)
    for name, data in source:
        budget -= len(data)
        if budget < 0:
            raise DataError(f"unpacks to more than the {MAX_UNPACKED} bytes allowed")
        yield name, data


def _folder_members(folder, wanted, limit):
    for path in sorted(folder.iterdir()):
        if wanted(path.name) and path.is_file():
            with open(path, "rb") as file:
                yield path.name, _at_most(file, limit, path.name)


def _zip_members(path, wanted, limit):
    # No test of the compression ratio: `limit` and the budget in `members` already bound what a zip bomb can cost.
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        if len(infos) > MAX_MEMBERS:
            raise DataError(f"has {len(infos)} members, more than the {MAX_MEMBERS} allowed")
        for info in infos:
            if not _safe(info.filename) or info.is_dir() or not wanted(info.filename):
                continue
            with archive.open(info) as file:
                yield info.filename, _at_most(file, limit, info.filename)


def _tar_members(path, wanted, limit):
    with open(path, "rb") as raw:
        start = raw.read(2)
        raw.seek(0)
        _refuse_empty_and_html(raw)
        stream = _Budget(gzip.GzipFile(fileobj=raw) if start == b"\x1f\x8b" else raw)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for count, member in enumerate(archive):
                if count >= MAX_MEMBERS:
                    raise DataError(f"has more than the {MAX_MEMBERS} members allowed")
                plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
                if _safe(member.name) and plain and wanted(member.name):
                    if member.size > limit:
                        raise DataError(f"member {member.name} has {member.size} bytes, more than the {limit} allowed")
                    yield member.name, _at_most(archive.extractfile(member), limit, member.name)
        while stream.read(1 << 20):  # to the end, where gzip keeps its checksum
            pass


class _Budget:
    """A file that refuses to give more than MAX_UNPACKED bytes: against gzip bombs."""

    def __init__(self, file):
        self.file, self.left = file, MAX_UNPACKED

    def read(self, size):
        data = self.file.read(min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise DataError(f"unpacks to more than the {MAX_UNPACKED} bytes allowed")
        return data


def _at_most(file, limit, name):
    data = file.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"member {name} has more than the {limit} bytes allowed")
    return data


def _safe(name):
    """True for a name inside the archive; raises DataError for one that leads out of it (no genuine archive does)."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or ":" in (parts[0] if parts else ""):
        raise DataError(f"holds the unsafe path {name!r}; get the archive from another place")
    return True


def _refuse_empty_and_html(file):
    start = file.read(256)
    file.seek(0)
    if not start:
        raise DataError("the file is empty (0 bytes)")
    if looks_like_html(start):
        raise DataError("the file is a web page, not data")


def looks_like_html(start):
    """True if the first bytes of a file are those of a web page (what a mirror with a problem likes to send)."""
    return (
        start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--"))
    )


# ----------------------------------------------------------------------------------- CIFAR as pickled batches


class _Array:
    """Stands in for an array being unpickled: only uint8, and its bytes must fill its shape exactly."""

    def __new__(cls, *_):  # called as _reconstruct(ndarray, (0,), b"b")
        return object.__new__(cls)

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype):
            raise DataError("pickle with an array without a dtype")
        if not isinstance(data, bytes) or len(data) != math.prod(shape):
            raise DataError("pickle with an array whose bytes do not fill its shape")
        self.value = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Dtype:
    """Stands in for numpy.dtype: refuses everything but uint8, above all `object`."""

    def __new__(cls, code, *_):
        if code not in (b"u1", "u1", b"uint8", "uint8", b"|u1", "|u1"):
            raise DataError(f"pickle with an array of dtype {code!r}, only uint8 is allowed")
        return object.__new__(cls)

    def __setstate__(self, state):  # byte order and alignment: nothing in it concerns single bytes
        pass


class _Encode:
    """Stands in for _codecs.encode, with which Python 3 writes bytes in old pickles: latin1 alone, a pure function."""

    def __new__(cls, text, encoding):
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise DataError("pickle with an unexpected text encoding")
        return text.encode("latin1")

    def __setstate__(self, state):  # a class without this would take attributes from a BUILD opcode
        raise DataError("pickle with a malformed state")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # the same, as NumPy 2 writes it
    ("numpy", "ndarray"): "ndarray",  # only ever an argument of _reconstruct: a string will do
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode,
}


class _Unpickler(pickle._Unpickler):
    """Builds strings, bytes, numbers, lists, tuples, dicts and uint8 arrays; everything else is refused.

    The Python version of the unpickler, because the C version lets 5 bytes of pickle allocate a memo of gigabytes.
    """

    def find_class(self, module, name):
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise DataError(f"pickle wants to call {module}.{name}: refused, nothing was executed") from None


def unpickle(data):
    """What a CIFAR batch file holds, with str keys: {"data": uint8 array, "labels": list, ...}. data: bytes.

    Raises DataError, or whatever a malformed pickle provokes (call it inside `reading`).
    """
    loaded = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    if type(loaded) is not dict:
        raise DataError("pickle is not a dict")
    return {_text(key): value.value if isinstance(value, _Array) else value for key, value in loaded.items()}


def _text(value):
    text = value.decode("ascii") if isinstance(value, bytes) else value
    if not isinstance(text, str) or not text.isprintable():
        raise DataError("a name in the archive is not printable text")
    return text


def read_cifar(path, train, test, meta, label_keys, name_keys):
    """CIFAR as pickled batches, from the public .tar.gz or the folder it unpacks to.

    train: file names of the training batches in order, test: of the test batch, meta: of the file with class names;
    label_keys, name_keys: k dict keys each (1 for CIFAR-10, fine and coarse for CIFAR-100).
    Returns x_train (N,32,32,3), y_train (N,k), x_test, y_test: uint8, and a list of k lists of class names.
    Format: https://www.cs.toronto.edu/~kriz/cifar.html. Raises DataError.
    """
    with reading(path):
        needed = {*train, test, meta}
        found = {}
        for name, data in members(path, lambda name: PurePosixPath(name).name in needed):
            name = PurePosixPath(name).name
            if name in found:
                raise DataError(f"holds two files {name}")
            batch = unpickle(data)
            found[name] = (
                [[_text(n) for n in batch[key]] for key in name_keys] if name == meta else _batch(batch, label_keys)
            )
        missing = sorted(needed - set(found))
        if missing:
            raise DataError(f"{', '.join(missing)} missing (as a regular file)")
        x_train = np.concatenate([found[name][0] for name in train])
        y_train = np.concatenate([found[name][1] for name in train])
        return x_train, y_train, *found[test], found[meta]


def _batch(batch, label_keys):
    x = batch["data"]
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.shape[1] != 3072:
        raise DataError("a batch without an N x 3072 array")
    columns = [batch[key] for key in label_keys]
    for column in columns:
        if (
            type(column) is not list
            or len(column) != len(x)
            or not all(type(v) is int and 0 <= v < 256 for v in column)
        ):
            raise DataError("a batch whose labels are not one small number per image")
    x = x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # stored plane by plane: R, G, B
    return np.ascontiguousarray(x), np.array(columns, np.uint8).T


# ------------------------------------------------------------------------------------- CIFAR as folders of PNGs


def read_png_folders(path, classes):
    """CIFAR as .../{train,test}/CLASS/*.png in a .zip or a .tgz.

    classes: folder names in label order. Returns x_train (N,32,32,3), y_train (N,1), x_test, y_test: uint8, in the
    order of the archive. Raises DataError.
    """

    def place(name):
        *_, split, label, file = ("", "", "", *PurePosixPath(name).parts)
        png = file.lower().endswith(".png") and not file.startswith("._")  # ._x.png: what macOS leaves in archives
        return (split, label) if png and split in ("train", "test") and label in classes else None

    with reading(path):
        pixels, labels = {"train": bytearray(), "test": bytearray()}, {"train": bytearray(), "test": bytearray()}
        for name, data in members(path, place, MAX_PNG):
            split, label = place(name)
            pixels[split] += _decode_png(data, name)
            labels[split].append(classes.index(label))
        result = []
        for split in ("train", "test"):
            if not labels[split]:
                raise DataError(f"no images found under {split}/CLASS/*.png")
            result.append(np.frombuffer(pixels[split], np.uint8).reshape(-1, 32, 32, 3))
            result.append(np.frombuffer(labels[split], np.uint8).reshape(-1, 1))
        return tuple(result)


def _decode_png(data, name):
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:  # reads the header only
        if image.size != (32, 32):
            raise DataError(f"{name} is {image.size[0]}x{image.size[1]}, not 32x32")
        return image.convert("RGB").tobytes()
