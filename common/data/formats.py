"""An archive is a stranger's letter: read it, never obey it.

Readers for the public formats of MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, STL-10, Tiny ImageNet and MedMNIST. Nothing
is ever extracted to disk, so no path in an archive can lead anywhere; every size is limited before memory is spent on
it; and a pickle can name five things, for each of which it gets a harmless stand-in from this file instead of the real
one. Whatever is wrong with a file comes out as one `DataError` line.
"""

import gzip
import hashlib
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

MAX_UNPACKED = 400 << 20  # bytes that are kept; the most is STL-10's labelled part with 359 MB
MAX_MEMBER = 200 << 20  # bytes; CIFAR-100's `train` has 155 MB
MAX_PNG = 64 << 10  # bytes; 32x32 RGB is 3 kB before compression
MAX_MEMBERS = 100_000  # CIFAR as PNGs has 60 000 and a few folders
MAX_DIRECTORY = 32 << 20  # bytes of a zip's list of members; Tiny ImageNet's, the longest, has some 15 MB
MAX_HEADER = 1 << 20  # bytes between two members of a tar; tarfile keeps long names and maps of sparse files in memory

# What single sets need more of.
STL10_STREAM = 3_200_000_000  # bytes; unlabeled_X.bin, 2.76 GB of them, only flows through
STL10_MEMBER = 8000 * 96 * 96 * 3  # bytes, of test_X.bin
TINY_MEMBERS = 130_000  # 120 000 images, 402 folders, 204 texts; decoded, that many 64x64 images are 1.6 GB
TINY_JPEG = 64 << 10  # bytes; 64x64 RGB is 12 kB before compression
TINY_TEXT = 8 << 20  # bytes; words.txt, with all of WordNet's nouns, has 3 MB
MEDMNIST_MEMBER = 220 << 20  # bytes; pathmnist's train_images have 212 MB


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
        refuse_empty_and_html(raw)
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


def members(path, wanted, limit=MAX_MEMBER, stream=None, count=None):
    """Yields (name, bytes) of the wanted regular files in a folder, a .zip or a (gzipped) .tar, one at a time.

    wanted: name -> bool, limit: bytes allowed per member, stream: bytes that may flow out of a tar, wanted or not
    (None: MAX_UNPACKED, the limit for the wanted ones in any case), count: members allowed (None: MAX_MEMBERS).
    Links and devices are skipped, never followed; a name that is absolute or climbs out with `..` condemns the archive.
    Reads in memory, writes nothing. Raises DataError.
    """
    path = Path(path)
    budget = MAX_UNPACKED
    count = MAX_MEMBERS if count is None else count
    if path.is_dir():
        source = _folder_members(path, wanted, limit)
    elif zipfile.is_zipfile(path):
        source = _zip_members(path, wanted, limit, count)
    else:
        source = _tar_members(path, wanted, limit, MAX_UNPACKED if stream is None else stream, count)
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


def _zip_members(path, wanted, limit, count):
    # No test of the compression ratio: `limit` and the budget in `members` already bound what a zip bomb can cost.
    with open(path, "rb") as raw:
        guarded = _Directory(raw, count)
        with zipfile.ZipFile(guarded) as archive:
            guarded.count = None  # the directory has been read; members have limits of their own
            for info in archive.infolist():
                if not _safe(info.filename) or info.is_dir() or not wanted(info.filename):
                    continue
                with archive.open(info) as file:
                    yield info.filename, _at_most(file, limit, info.filename)


class _Directory:
    """A file that, until `count` becomes None, gives zipfile no directory of more than `count` members.

    zipfile reads the record at the end (and zip64's), then the directory, in one piece as long as that record says; of
    each entry, which takes 46 bytes or more, it makes some 400 bytes of objects before anybody can ask how many there
    are. Looked at is what it does read, because the record can claim any number, and where zipfile finds the record
    differs from version to version.
    """

    def __init__(self, file, count):
        self.file, self.count = file, count
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size=-1):
        if self.count is None:
            return self.file.read(size)
        most = MAX_DIRECTORY + 1
        data = self.file.read(most if size < 0 else min(size, most))
        if len(data) == most:
            raise DataError(f"has a directory of more than the {MAX_DIRECTORY} bytes allowed")
        entries = data.count(b"PK\1\2")  # with which zipfile wants each to begin
        if entries > self.count:
            raise DataError(f"has {entries} members, more than the {self.count} allowed")
        return data


def _tar_members(path, wanted, limit, budget, count):
    with open(path, "rb") as raw:
        start = raw.read(2)
        raw.seek(0)
        refuse_empty_and_html(raw)
        stream = _Budget(gzip.GzipFile(fileobj=raw) if start == b"\x1f\x8b" else raw, budget)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for number, member in enumerate(archive):
                if number >= count:
                    raise DataError(f"has more than the {count} members allowed")
                plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
                stream.ahead = MAX_HEADER + (member.size if plain else 0)
                if _safe(member.name) and plain and wanted(member.name):
                    if member.size > limit:
                        raise DataError(f"member {member.name} has {member.size} bytes, more than the {limit} allowed")
                    yield member.name, _at_most(archive.extractfile(member), member.size, member.name)
        stream.ahead = budget
        while stream.read(1 << 20):  # to the end, where gzip keeps its checksum
            pass


class _Budget:
    """A file that refuses to give more than `budget` bytes, or more than `ahead` before somebody raises that again.

    The first is against gzip bombs; the second keeps tarfile from filling memory with headers where the first is large.
    """

    def __init__(self, file, budget):
        self.file, self.budget, self.left, self.ahead = file, budget, budget, MAX_HEADER

    def read(self, size):
        data = self.file.read(min(size, self.left + 1))
        self.left -= len(data)
        self.ahead -= len(data)
        if self.left < 0:
            raise DataError(f"unpacks to more than the {self.budget} bytes allowed")
        if self.ahead < 0:
            raise DataError(f"has more than {MAX_HEADER} bytes between two members; get it again")
        return data


def _at_most(file, limit, name):
    data = file.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"member {name} has more than the {limit} bytes allowed")
    return data


def _exactly(path, needed, limit=MAX_MEMBER, **limits):
    """Yields (file name, bytes) of each needed file, in whatever folder. DataError for a second or a missing one."""
    missing = set(needed)
    for name, data in members(path, lambda name: PurePosixPath(name).name in needed, limit, **limits):
        name = PurePosixPath(name).name
        if name not in missing:
            raise DataError(f"holds two files {name}")
        missing.remove(name)
        yield name, data
    if missing:
        raise DataError(f"{', '.join(sorted(missing))} missing (as a regular file)")


def _safe(name):
    """True for a name inside the archive; raises DataError for one that leads out of it (no genuine archive does)."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or ":" in (parts[0] if parts else ""):
        raise DataError(f"holds the unsafe path {name!r}; get the archive from another place")
    return True


def refuse_empty_and_html(file):
    """Raises DataError for a file, open at its beginning, that holds nothing or a web page."""
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
        found = {}
        for name, data in _exactly(path, {*train, test, meta}):
            batch = unpickle(data)
            found[name] = (
                [[_text(n) for n in batch[key]] for key in name_keys] if name == meta else _batch(batch, label_keys)
            )
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
            pixels[split] += _decode(data, name, "PNG", 32)
            labels[split].append(classes.index(label))
        result = []
        for split in ("train", "test"):
            if not labels[split]:
                raise DataError(f"no images found under {split}/CLASS/*.png")
            result.append(np.frombuffer(pixels[split], np.uint8).reshape(-1, 32, 32, 3))
            result.append(np.frombuffer(labels[split], np.uint8).reshape(-1, 1))
        return tuple(result)


def _decode(data, name, kind, side):
    """The bytes of a square RGB image; kind: "PNG" or "JPEG"."""
    with Image.open(io.BytesIO(data), formats=[kind]) as image:  # reads the header only
        if image.size != (side, side):
            raise DataError(f"{name} is {image.size[0]}x{image.size[1]}, not {side}x{side}")
        return as_rgb(image, name).tobytes()


def as_rgb(image, name):
    """A Pillow image, decoded or not, in RGB of 8 bits for each channel. name: what an error calls it.

    Raises DataError for grey of more than 8 bits: Pillow would clip it at 255, which makes most images white, and which
    of the 16 bits matter (12 are common) the file does not say.
    """
    if image.mode[0] in "IF":  # I;16, I, F
        raise DataError(f"{name} has more than 8 bits a pixel (mode {image.mode}): scale it to 0..255 and save it as L")
    return image if image.mode == "RGB" else image.convert("RGB")


# ------------------------------------------------------------------------------------------------- STL-10's binaries


def read_stl10(path):
    """STL-10's labelled part, from the public .tar.gz or the folder it unpacks to; unlabeled_X.bin is passed over.

    Returns x_train (N,96,96,3), y_train (N,1), x_test, y_test: uint8, and [class names].
    Format: https://cs.stanford.edu/~acoates/stl10/. Raises DataError.
    """
    names = {f"{split}_{what}.bin" for split in ("train", "test") for what in "Xy"} | {"class_names.txt"}
    with reading(path):
        found = dict(_exactly(path, names, STL10_MEMBER, stream=STL10_STREAM))
        if len(found["class_names.txt"]) > 1000:
            raise DataError("class_names.txt is too long for ten names")
        class_names = [_text(name) for name in found["class_names.txt"].split()]
        result = []
        for split in ("train", "test"):
            pixels, y = (np.frombuffer(found.pop(f"{split}_{what}.bin"), np.uint8) for what in "Xy")
            if not len(y) or len(pixels) != len(y) * 96 * 96 * 3:
                raise DataError(f"{split}_X.bin is not 27648 bytes for each of the {len(y)} labels of {split}_y.bin")
            if not (1 <= y.min() and y.max() <= len(class_names)):
                raise DataError(f"{split}_y.bin has a label outside 1 to {len(class_names)}")
            x = pixels.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)  # stored plane by plane, each column by column
            result += [np.ascontiguousarray(x), y[:, None] - np.uint8(1)]
        return *result, [class_names]


# ------------------------------------------------------------------------------------------- Tiny ImageNet's JPEGs


def read_tiny_imagenet(path):
    """Tiny ImageNet from its .zip; its validation images are the test split, for its test images have no labels.

    Returns x_train (N,64,64,3), y_train (N,1), x_test, y_test: uint8, in the order of the archive, [class names], and
    for train and test a list of the SHA-256 (bytes) of each JPEG. The classes are the WordNet numbers of wnids.txt,
    sorted. Grey JPEGs become RGB. Raises DataError.
    """
    with reading(path):
        texts = _exactly(path, {"wnids.txt", "words.txt", "val_annotations.txt"}, TINY_TEXT, count=TINY_MEMBERS)
        lines = {name: data.decode("utf-8", "replace").splitlines() for name, data in texts}
        wnids = sorted(filter(None, map(str.strip, lines["wnids.txt"])))
        label = {wnid: k for k, wnid in enumerate(wnids)}
        if not 0 < len(label) == len(wnids) <= 256:
            raise DataError("wnids.txt does not name up to 256 different classes")
        words = dict(line.split("\t", 1) for line in lines["words.txt"] if "\t" in line)
        if not all(words.get(wnid, "").strip() for wnid in wnids):
            raise DataError("words.txt lacks a class of wnids.txt")
        truth = {name: wnid for name, wnid, *_ in (line.split("\t") for line in lines["val_annotations.txt"] if line)}

        def place(name):
            *_, part, split, folder, file = ("", "", "", "", *PurePosixPath(name).parts)
            if not file.lower().endswith(".jpeg") or file.startswith("._"):
                return None
            if (split, folder) == ("val", "images"):
                return "test", truth.get(file), file
            return ("train", split, file) if (part, folder) == ("train", "images") else None

        pixels, labels = {"train": bytearray(), "test": bytearray()}, {"train": bytearray(), "test": bytearray()}
        hashes, seen = {"train": [], "test": []}, set()
        for name, data in members(path, place, TINY_JPEG, count=TINY_MEMBERS):
            split, wnid, file = place(name)
            if wnid not in label:
                raise DataError(f"{name} has no class that wnids.txt names")
            if (split, file) in seen:
                raise DataError(f"holds two files {file}")
            seen.add((split, file))
            pixels[split] += _decode(data, name, "JPEG", 64)
            labels[split].append(label[wnid])
            hashes[split].append(hashlib.sha256(data).digest())
        trained = set(labels["train"])
        missing = [f"train/{wnid}/images/*.JPEG" for wnid in wnids if label[wnid] not in trained]
        missing += [f"val/images/{file}" for file in truth or ["*.JPEG"] if ("test", file) not in seen]
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise DataError(f"{missing[0]}{more} missing (as a regular file)")
        result = []
        for split in ("train", "test"):
            result.append(np.frombuffer(pixels[split], np.uint8).reshape(-1, 64, 64, 3))
            result.append(np.frombuffer(labels[split], np.uint8).reshape(-1, 1))
        return *result, [short_names([_printable(words[wnid]) for wnid in wnids])], hashes["train"], hashes["test"]


def short_names(synonyms):
    """The first of each class's comma-separated names; all of them where two classes would be called alike."""
    first = [names.partition(",")[0].strip() for names in synonyms]
    return [name if first.count(name) == 1 else names for name, names in zip(first, synonyms, strict=True)]


# ------------------------------------------------------------------------------------------------- MedMNIST's arrays


def read_medmnist(path):
    """A 28x28 RGB set of MedMNIST v2 from its .npz.

    Returns x_train (N,28,28,3), y_train (N,1), x_test, y_test: uint8, in the order of the archive; x_train is train
    and, after it, val. Format: https://medmnist.com. Raises DataError.
    """
    needed = {f"{split}_{what}.npy" for split in ("train", "val", "test") for what in ("images", "labels")}
    with reading(path):
        found = {name: _npy(data, name) for name, data in _exactly(path, needed, MEDMNIST_MEMBER)}
        parts = {}
        for split in ("train", "val", "test"):
            x, y = found.pop(f"{split}_images.npy"), found.pop(f"{split}_labels.npy")
            if x.dtype != np.uint8 or x.shape[1:] != (28, 28, 3) or not len(x):
                raise DataError(f"{split}_images are {x.dtype} {x.shape}, not uint8 (N, 28, 28, 3)")
            if y.shape not in ((len(x), 1), (len(x),)) or y.min() < 0 or y.max() > 255:
                raise DataError(f"{split}_labels are not one small number for each of {len(x)} images")
            parts[split] = x, y.reshape(-1, 1).astype(np.uint8)
        train = (np.concatenate(pair) for pair in zip(parts["train"], parts["val"], strict=True))
        return *train, *parts["test"]


def _npy(data, name):
    """The array in a .npy file of whole numbers: np.load would believe a header that claims terabytes."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{name} is a .npy file of version {version}")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    if dtype.kind not in "iu":  # above all `object`, which would be a pickle
        raise DataError(f"{name} is an array of {dtype}, only whole numbers are allowed")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise DataError(f"{name} does not hold the {shape} numbers that it promises")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")
