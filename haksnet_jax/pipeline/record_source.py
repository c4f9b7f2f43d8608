"""Labelled images of records: a data set prepared with TensorFlow Datasets, read without TensorFlow."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from haksnet_jax import json_files
from haksnet_jax.errors import UserError
from haksnet_jax.geometry.polygons import polygons_to_boxes
from haksnet_jax.images import reader
from haksnet_jax.images.headers import ImageError
from haksnet_jax.images.settings import ImageSettings, read_folder
from haksnet_jax.pipeline import prepared, record_index
from haksnet_jax.wording import counted

_ONE_BAND = ImageSettings(bands=(1,))


class TfdsSource:
    """A data set prepared with TensorFlow Datasets as ArrayRecord files; read without TensorFlow.

    Expected features: `image` (encoded), `image_id` (text), `objects` of `polygon` (8 numbers), `label`, `difficulty`.

    Attributes:
      class_names: the classes, in the order of the labels given out.
      image_settings: ImageSettings by which the images of the records were read; pixels here have 8 bits.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        split: str,
        class_names: Sequence[str] | None = None,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        filter_empty: bool = False,
        min_side: float = 0.0,
    ) -> None:
        """Opens the data set.

        Args:
          directory: a prepared folder (the one with `dataset_info.json`), or a name such as
            `dota/v1_tiles:1.0.0` to look up in data_dir.
          split: name of the split, such as "train", or of several: "train+val".
          class_names: the classes, in the order wanted; None takes the data set's own. Labels are matched by name.
          data_dir: folder of prepared data sets, for a name.
          filter_empty: leaves out images without an object (reads through the data set once).
          min_side: leaves out objects whose box has a side below it, in pixels (the reference: 2).

        Raises:
          UserError: no prepared data set is there, or its description is none of ours (`prepared`).
          ValueError: another split, class or feature is needed than the data set has.
        """
        builder = prepared.open_builder(directory, data_dir)
        if any(part.strip() not in builder.info.splits for part in split.split("+")):
            found = ", ".join(builder.info.splits) or "none; prepare the data set first"
            raise UserError(f"{builder.data_dir} has no split '{split}'; its splits: {found}")
        try:
            names = tuple(builder.info.features["objects"]["label"].names)
        except (KeyError, TypeError, AttributeError) as error:  # of other names, or of other kinds
            raise UserError(
                f"{builder.data_dir}: expected the features image, image_id and objects (polygon, label, difficulty), "
                f"found {prepared.names_of(builder.info.features)}"
            ) from error
        self.class_names = tuple(names if class_names is None else class_names)
        unknown = [name for name in names if name not in self.class_names]
        if unknown:
            raise UserError(
                f"{builder.data_dir} has classes that are not asked for: {', '.join(unknown)}; "
                f"asked for: {', '.join(self.class_names)}"
            )
        self._label_of = np.array([self.class_names.index(name) for name in names], np.int32)
        self._name = f"{builder.data_dir} [{split}]"
        self._records = prepared.Records(builder, split)
        self._min_side = min_side
        self.image_settings, _ = read_folder(builder.data_dir)
        self._image_ids: Any = None
        self._num_objects: Any = None
        self._all_labels: Any = None
        self._take_index(record_index.read(builder.data_dir, split, len(self._records)))
        self._indices = None
        if filter_empty:
            counts, names = self.num_objects, self.image_ids
            self._indices = np.flatnonzero(counts > 0)
            self._image_ids = [names[int(index)] for index in self._indices]
            self._num_objects = counts[self._indices]
        if not len(self):
            raise UserError(f"{self._name} holds no image{' with objects' if filter_empty else ''}")

    def __len__(self) -> int:
        return len(self._records) if self._indices is None else len(self._indices)

    def _take_index(self, index):
        """Takes names and labels from the data set's index. Args: index, RecordIndex or None."""
        if index is None:
            return
        if len(index.labels) and not 0 <= index.labels.min() <= index.labels.max() < len(self._label_of):
            raise UserError(f"{self._name}: the index names classes that the data set does not have; build it again")
        keep = np.ones(len(index.labels), bool)
        if self._min_side > 0:
            _, keep = polygons_to_boxes(index.polygons, self._min_side)
        rows = np.repeat(np.arange(len(index.num_objects)), index.num_objects)[keep]
        self._num_objects = np.bincount(rows, minlength=len(index.num_objects)).astype(np.int32)
        self._offsets = np.concatenate([[0], np.cumsum(self._num_objects)])
        self._image_ids = index.image_ids.tolist()
        self._all_labels = {
            "polygons": index.polygons[keep],
            "labels": self._label_of[index.labels[keep]],
            "difficulty": index.difficulty[keep],
        }

    def _scan(self):
        """Reads identifiers and numbers of objects through once; images stay encoded."""
        self._image_ids, counts = [], []
        for index in range(len(self._records)):
            record = self._records[index]
            self._image_ids.append(self._image_id(record))
            counts.append(len(self._labels_of(record)["labels"]))
        self._num_objects = np.array(counts, np.int32)

    @property
    def image_ids(self) -> Sequence[str]:
        """Identifiers of the images. Without an index the first call reads through the data set."""
        if self._image_ids is None:
            self._scan()
        return self._image_ids

    @property
    def num_objects(self) -> np.ndarray:
        """[len] int32 objects of each image. Without an index the first call reads through the data set."""
        if self._num_objects is None:
            self._scan()
        return self._num_objects

    def _image_id(self, record):
        try:
            return record["image_id"].decode()
        except (KeyError, AttributeError, UnicodeDecodeError) as error:
            raise UserError(f"{self._name}: a record has no image_id that is text; build the data set again") from error

    def _labels_of(self, record):
        try:
            objects = record["objects"]
            # An empty sequence comes back as a list, whatever its element.
            polygons = np.asarray(objects["polygon"], np.float32).reshape(-1, 4, 2)
            numbers = np.asarray(objects["label"], np.int64).reshape(-1)
            difficulty = np.asarray(objects["difficulty"], np.int32).reshape(-1)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{self._name}: a record has no objects of polygon, label and difficulty") from error
        is_whole = len(polygons) == len(numbers) == len(difficulty) and np.isfinite(polygons).all()
        if not is_whole or not ((numbers >= 0) & (numbers < len(self._label_of))).all():
            raise UserError(
                f"{self._name}: record {json_files.quoted(self._image_id(record))} has objects of other classes, of "
                "corners that are not finite, or of different counts; build the data set again"
            )
        labels = self._label_of[numbers]
        if self._min_side > 0:
            _, keep = polygons_to_boxes(polygons, self._min_side)
            polygons, labels, difficulty = polygons[keep], labels[keep], difficulty[keep]
        return {"polygons": polygons, "labels": labels, "difficulty": difficulty}

    def _record(self, index):
        index = range(len(self))[index]
        return self._records[int(index if self._indices is None else self._indices[index])]

    def labels(self, index: int) -> dict[str, np.ndarray]:
        """The example's polygons, labels and difficulty, as a dict, without its image being decoded."""
        if self._all_labels is None:
            return self._labels_of(self._record(index))
        index = range(len(self))[index]
        record = int(index if self._indices is None else self._indices[index])
        part = slice(self._offsets[record], self._offsets[record + 1])
        return {name: array[part].copy() for name, array in self._all_labels.items()}

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._record(index)
        image_id = self._image_id(record)
        name = f"{self._name}, record {index}, image {image_id}"
        image = self._pixels(bytes(record["image"]), name)
        return {"image": image, **self._labels_of(record), "image_id": image_id}

    @property
    def num_channels(self) -> int:
        """C of the images."""
        return self.image_settings.num_channels

    def _pixels(self, data, name):
        """[H, W, C] of an encoded image; bands other than three lie below each other in a grey one."""
        channels = self.num_channels
        if channels == 3:
            return reader.decode(data, name)
        stacked = reader.decode(data, name, _ONE_BAND)[..., 0]
        if len(stacked) % channels:
            sentence = f"expected {channels} bands below each other, found {len(stacked)} rows; build the records anew"
            raise ImageError("damaged_record", sentence, name)
        return np.ascontiguousarray(np.moveaxis(stacked.reshape(channels, -1, stacked.shape[1]), 0, -1))

    def summary(self) -> str:
        """Text: how many images."""
        return f"{counted(len(self), 'image')} of {self._name}"
