"""The index of prepared records: names and labels of all images in one small file, so that no start reads the images.

`haksnet build` writes it beside the records. A data set without one is read through instead.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from haksnet_jax import files, npz
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


def write(folder: str | os.PathLike[str], splits: Mapping[str, RecordIndex]) -> None:
    """Writes the index of a data set, or none where it would be larger than is read: then the records are read through.

    Args:
      folder: of the records.
      splits: dict from split to RecordIndex.
    """
    arrays = {f"{split}/{name}": array for split, index in splits.items() for name, array in index._asdict().items()}
    if sum(array.nbytes + 1000 for array in arrays.values()) > npz.MAX_BYTES:
        return
    with files.whole(pathlib.Path(folder) / FILE) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def read(folder: str | os.PathLike[str], split: str, num_records: int) -> RecordIndex | None:
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
    splits = [part.strip() for part in split.split("+")]
    try:
        stored = npz.read(path, [f"{part}/{name}" for part in splits for name in _FIELDS])
    except npz.DamagedError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None
    parts = [RecordIndex(*(stored[f"{part}/{name}"] for name in _FIELDS)) for part in splits]
    if not all(_is_whole(part) for part in parts) or sum(len(part.image_ids) for part in parts) != num_records:
        raise UserError(f"{path} does not belong to these {num_records} records: {remedy}")
    return parts[0] if len(parts) == 1 else RecordIndex(*map(np.concatenate, zip(*parts, strict=True)))


def _is_whole(index):
    """Whether the arrays of a split have the kinds and shapes that belong together."""
    if any(array.dtype.kind != kind for array, kind in zip(index, _FIELDS.values(), strict=True)):
        return False
    if [array.ndim for array in index] != [1, 1, 3, 1, 1] or len(index.image_ids) != len(index.num_objects):
        return False
    num_objects = int(index.num_objects.sum(dtype=np.float64))  # (whatever they are, it does not wrap round)
    fits = index.polygons.shape == (num_objects, 4, 2) and len(index.labels) == len(index.difficulty) == num_objects
    return fits and bool((index.num_objects >= 0).all() and np.isfinite(index.polygons).all())
