"""The index of prepared records: names and labels of all images in one small file, so that no start reads the images.

`haksnet build` writes it beside the records. A data set without one is read through instead.
"""

import pathlib
import zipfile
from typing import NamedTuple

import numpy as np

from haksnet_jax import files
from haksnet_jax.errors import UserError

FILE = "index.npz"
_FIELDS = {"image_ids": "U", "num_objects": "i", "polygons": "f", "labels": "i", "difficulty": "i"}


class RecordIndex(NamedTuple):
    """What all records of some splits say, images aside, in their order.

    Attributes:
      image_ids: [R] names of the images.
      num_objects: [R] int32 objects of each.
      polygons: [N, 4, 2] float32 corner points of all objects, record after record.
      labels: [N] int32, the data set's own numbers of the classes.
      difficulty: [N] int32.
    """

    image_ids: np.ndarray
    num_objects: np.ndarray
    polygons: np.ndarray
    labels: np.ndarray
    difficulty: np.ndarray


def write(folder, splits):
    """Writes the index of a data set. Args: folder of the records; dict from split to RecordIndex."""
    arrays = {f"{split}/{name}": array for split, index in splits.items() for name, array in index._asdict().items()}
    with files.whole(pathlib.Path(folder) / FILE) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read(folder, split, num_records):
    """The index of a split, or None where the data set has none.

    Args:
      folder: of the records.
      split: "train", or several: "train+val".
      num_records: that there are, which the index has to have.

    Raises:
      UserError: the file is damaged or of other records.
    """
    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        return None
    remedy = "build the data set again, or remove the file: then every start reads all records"
    try:
        with np.load(path, allow_pickle=False) as stored:
            parts = [_of_split(stored, part.strip()) for part in split.split("+")]
        index = RecordIndex(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        num_objects = int(index.num_objects.sum())
        whole = len(index.image_ids) == len(index.num_objects) and index.num_objects.min(initial=0) >= 0
        whole &= index.polygons.shape == (num_objects, 4, 2) and np.isfinite(index.polygons).all()
        whole &= index.labels.shape == index.difficulty.shape == (num_objects,)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zipfile.zlib.error) as error:
        raise UserError(f"{path} is damaged ({str(error)[:100]}): {remedy}") from None
    if not whole or len(index.image_ids) != num_records:
        raise UserError(f"{path} does not belong to these {num_records} records: {remedy}")
    return index


def _of_split(stored, split):
    arrays = [stored[f"{split}/{name}"] for name in _FIELDS]
    for array, kind in zip(arrays, _FIELDS.values(), strict=True):
        if array.dtype.kind != kind:
            raise ValueError(f"an array of {array.dtype}")
    return arrays
