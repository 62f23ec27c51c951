"""Data sets as tensors: fixed splits, checked contents, statistics of the training part.

`load(name)` returns a `Data`: inputs and targets of the train, validation and test splits, and the mean and
standard deviation that normalise them. Files are decoded once and checked. Images stay uint8 and are
normalised batch by batch, so a data set takes a quarter of its float size on the device.

Splits are fixed. Every set is put in one order, drawn with `numpy.random.default_rng(0)`; validation is cut
from the end of the training part. Any prefix of a validation or test split is thus a fair sample of it.

Files are looked for below `data_root()`, which any `root` folder of torchvision's data sets can serve as.
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
