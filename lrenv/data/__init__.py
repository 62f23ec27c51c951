"""Data sets as tensors: fixed splits, checked contents, statistics of the training split.

`load(name)` returns a `Data`: inputs and targets of the train, validation and test splits, and the mean and standard
deviation by which a batch x is normalised:

    (x - mean) / std

Both are taken from the training split alone. Files are decoded once and checked. Images are kept as uint8. On
a device small sets are normalised once and for all, large ones batch by batch, so that they take a quarter of their
float32 size (`lrenv.training.objective`).

Splits are fixed. Every set has one order, drawn with `numpy.random.default_rng(0)`; validation is cut from the end of
the training part. Any prefix of a validation or test split is thus a fair sample of it. Files are read from
`data_root()`, which may be any `root` folder of torchvision's data sets.

Read `types.py` first (`Data`, `Split`, and `from_arrays` for data of one's own), then `registry.py` (`load`, and the
table of all sets). Each kind of set has a file: `embedded.py` (digits, MNIST-1D), `packaged.py` (text, tables, a
series, a photograph), `published.py` (MNIST, Fashion-MNIST, CIFAR-10, SVHN), `folder.py` (folders of images),
`generated.py` (the data of drawn tasks). `store.py` keeps decoded tensors on the disk, and `augment.py` crops and
mirrors batches.
"""

from lrenv.data.folder import IMAGE_SUFFIXES
from lrenv.data.registry import datasets, load, register_data
from lrenv.data.store import data_root
from lrenv.data.types import Data, DataCorrupt, DataMissing, DataWarning, Loader, Split, from_arrays

__all__ = [
    "IMAGE_SUFFIXES",
    "Data",
    "DataCorrupt",
    "DataMissing",
    "DataWarning",
    "Loader",
    "Split",
    "data_root",
    "datasets",
    "from_arrays",
    "load",
    "register_data",
]
