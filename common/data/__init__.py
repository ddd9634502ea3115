"""Images as uint8 arrays, the same ones on every machine: `load("cifar10")` is all an experiment needs.

formats.py reads archives that nobody should trust, download.py fetches them, datasets.py puts them into one canonical
order and keeps them, builtin.py draws the two sets that need no network. `Folder` (folders.py) reads images that do not
fit into memory, batch by batch: as `Pictures` they stand in for an array, of which `pieces` makes arrays; `upsampled`
(resize.py) makes small ones larger.
"""

from common.data.datasets import DataError, Dataset, load, names
from common.data.folders import Folder, Pictures, pieces
from common.data.resize import upsampled

__all__ = ["DataError", "Dataset", "Folder", "Pictures", "load", "names", "pieces", "upsampled"]
