"""Where images and labels come from: folders in DOTA's layout, prepared TFDS data sets, generated scenes.

A source has a length and gives examples by index, the same ones each time; it can be pickled for worker processes. An
example is a dict:
  image       [H, W, C] uint8; RGB, or the bands that the image settings choose
  polygons    [N, 4, 2] float32 corner points in pixels
  labels      [N] int32 classes, 0-based
  difficulty  [N] int32
  image_id    str
"""

import collections
import concurrent.futures
import inspect
import os
import pathlib

import cv2
import numpy as np

from haksnet_jax import files, json_files
from haksnet_jax.errors import UserError
from haksnet_jax.geometry.polygons import boxes_to_polygons, outside_fraction, polygons_to_boxes
from haksnet_jax.images import files as image_files
from haksnet_jax.images import reader, scaling
from haksnet_jax.images.headers import ImageError, read_header
from haksnet_jax.images.settings import DEFAULT, ImageSettings, read_folder
from haksnet_jax.labels import folders
from haksnet_jax.labels.dota import format_label_line
from haksnet_jax.labels.label_set import LabelSet
from haksnet_jax.labels.objects import select
from haksnet_jax.labels.problems import Problem, Reason, require_read, unknown_classes
from haksnet_jax.pipeline import prepared, record_index, scenes

_ONE_BAND = ImageSettings(bands=(1,))
_MAX_TOLD = 20  # images that are named in one message
SCENE_CLASSES = ("plane", "ship", "vehicle", "storage-tank", "building")


class FolderSource:
    """Images of a folder with their labels, in DOTA's text format or another one.

    All label files are read at once; images when asked for. What stops a run is raised here, in one sentence; all
    else is in `problems`, and counted in `summary()`.

    Attributes:
      class_names: the classes, in the order of the labels.
      image_ids: file names without their endings, sorted; the images of this source.
      has_labels: False for a folder of images alone.
      problems: list of Problem, found so far (`check_images` adds those of the images).
      num_objects: [len] int32 objects of each image.
      num_filtered: images left out because they have no object (`filter_empty`).
      image_settings: ImageSettings by which all images are read, limits included where they are needed.
    """

    def __init__(
        self,
        images_dir,
        labels_dir,
        class_names,
        *,
        filter_empty=False,
        min_side=0.0,
        class_aliases=None,
        image_ids=None,
        image_settings=DEFAULT,
        format="dota",
        allow_unknown_classes=False,
    ):
        """Scans the folders.

        Args:
          images_dir: folder of JPEG, PNG, TIFF or BMP files; folders in it are not searched.
          labels_dir: folder of `<image name>.txt` (or a file of labels in some formats), or None without labels.
          class_names: the classes, in the order of their labels.
          filter_empty: leaves out images without an object.
          min_side: leaves out objects whose box has a side below it, in pixels (the reference: 2).
          class_aliases: dict from another spelling in the files to one of class_names.
          image_ids: only these images, or None for all.
          format: of the labels, see labels.label_set.FORMATS.
          allow_unknown_classes: True goes on where most labels are of classes that are not in the list.
          image_settings: bands, limits and nodata that are given; what they leave open is what is kept beside the
            images, and what the images' largest values say (`scaling.for_images`).

        Raises:
          UserError: a folder, or an image of image_ids, is missing.
          UserError: no image, no label file that belongs to an image, no object at all, most labels of unknown classes,
            label files that cannot be read, or tiles that are not complete.
        """
        self.class_names = tuple(class_names)
        self.has_labels = labels_dir is not None
        self.problems = []
        images_dir = pathlib.Path(images_dir)
        folders.require_finished(images_dir)
        paths = self._find_images(images_dir, image_ids)
        label_set, label_paths = None, {}
        if self.has_labels:
            label_set = self._find_labels(labels_dir, format, paths, images_dir, everything=image_ids is None)
            label_paths = label_set.files
        polygons, labels, difficulties, self.image_ids, self._paths = [], [], [], [], []
        self.num_filtered = 0
        for image_id, path in paths.items():
            objects = None
            if image_id in label_paths:
                objects, problems = label_set.read(image_id, self.class_names, path, class_aliases)
                self.problems.extend(problems)
                if min_side > 0:
                    objects = self._leave_out_small(objects, min_side, label_paths[image_id])
            elif self.has_labels:
                detail = f"there are no labels of this name in {labels_dir}: taken as without objects"
                self._report(path, Reason.IMAGE_WITHOUT_LABELS, detail)
            count = 0 if objects is None else len(objects.labels)
            if filter_empty and count == 0:
                self.num_filtered += 1
                continue
            self.image_ids.append(image_id)
            self._paths.append(str(path))
            polygons.append(np.zeros((0, 4, 2)) if objects is None else objects.polygons)
            labels.append(np.zeros(0, np.int32) if objects is None else objects.labels)
            difficulties.append(np.zeros(0, np.int32) if objects is None else objects.difficulty)
        self.image_settings = scaling.for_images(self._paths, image_settings)
        self.num_objects = np.array([len(part) for part in labels], np.int32)
        # Flat arrays: a source travels to every worker process, and 20,000 small arrays pickle slowly.
        self._offsets = np.concatenate([[0], np.cumsum(self.num_objects)])
        self._polygons = np.concatenate([*polygons, np.zeros((0, 4, 2))]).astype(np.float32)
        self._labels = np.concatenate([*labels, np.zeros(0, np.int32)])
        self._difficulty = np.concatenate([*difficulties, np.zeros(0, np.int32)])
        require_read(self.problems)
        self._unknown = unknown_classes(self.problems, len(self._labels), allow=True)
        if self.has_labels and not len(self._labels):
            raise UserError(
                f"{labels_dir}: no object of the classes ({', '.join(self.class_names[:5])}"
                f"{', ...' if len(self.class_names) > 5 else ''}) in {len(label_paths)} label files. {self.summary()}"
            )
        remedy = "name their classes, or allow it (data.allow_unknown_classes, --allow-unknown-classes)"
        unknown_classes(self.problems, len(self._labels), allow=allow_unknown_classes, remedy=remedy)

    def _report(self, path, reason, detail):
        self.problems.append(Problem(str(path), 0, reason, detail))

    def _find_images(self, images_dir, image_ids):
        if not images_dir.is_dir():
            raise UserError(f"the folder of images {images_dir} does not exist")
        wanted = None if image_ids is None else set(image_ids)
        paths = {}
        for path in image_files.list_images(images_dir):
            if wanted is not None and path.stem not in wanted:
                continue
            if path.stem in paths:
                self._report(path, Reason.SAME_NAME, f"left out: {paths[path.stem].name} has the same name")
                continue
            paths[path.stem] = path
        if wanted is not None and wanted - paths.keys():
            missing = sorted(wanted - paths.keys())
            raise UserError(f"{images_dir} lacks {len(missing)} of the images asked for, the first is '{missing[0]}'")
        return paths

    def _find_labels(self, labels_dir, format, paths, images_dir, everything):
        if not os.path.exists(labels_dir):
            raise UserError(f"the folder of labels {labels_dir} does not exist")
        label_set = LabelSet(labels_dir, format)
        self.problems += label_set.problems
        for stem in sorted(label_set.files.keys() - paths.keys()) if everything else ():
            detail = f"there is no image named {stem} in {images_dir}"
            self._report(label_set.files[stem], Reason.LABELS_WITHOUT_IMAGE, detail)
        if not label_set.files.keys() & paths.keys():
            require_read(self.problems)
            first = next(iter(paths))
            raise UserError(
                f"{labels_dir} holds no labels for any of the {len(paths)} images of {images_dir}; "
                f"expected for example {first}.txt"
            )
        return label_set

    def _leave_out_small(self, objects, min_side, path):
        _, large_enough = polygons_to_boxes(objects.polygons, min_side)
        for line in objects.lines[~large_enough].tolist():
            detail = f"left out: a side of the object's box is below {min_side:g} pixels"
            self.problems.append(Problem(str(path), line, Reason.TOO_SMALL, detail))
        return select(objects, large_enough)

    def __len__(self):
        return len(self.image_ids)

    def labels(self, index):
        """The example's polygons, labels and difficulty, as a dict, without its image being read."""
        index = range(len(self))[index]
        part = slice(self._offsets[index], self._offsets[index + 1])
        return {
            "polygons": self._polygons[part].copy(),
            "labels": self._labels[part].copy(),
            "difficulty": self._difficulty[part].copy(),
        }

    def __getitem__(self, index):
        labels = self.labels(index)
        path = self._paths[index]
        try:
            image = reader.read(path, self.image_settings)
        except OSError as error:
            raise ImageError("unreadable_image", f"the image cannot be read ({error.strerror})", path) from error
        return {"image": image, **labels, "image_id": self.image_ids[index]}

    @property
    def num_channels(self):
        """C of the images."""
        return self.image_settings.num_channels

    def check_images(self, *, decode=False, num_threads=8, bad_images="keep"):
        """Looks at every image file before training, for damage and for boxes outside the image.

        Args:
          decode: decodes each image; else files are judged by their headers and ends, which takes no time to speak
            of, but finds no damage in the middle.
          num_threads: files at a time.
          bad_images: what becomes of those that cannot be read: "keep" (an error when it is their turn), "refuse", or
            "leave_out".

        Raises:
          UserError: images cannot be read and are refused, or none is left.

        Returns:
          The problems found, which are added to `problems` too: `unreadable_image`, `partly_outside` (kept in
          training while its centre is inside) and `wholly_outside` (left out in training).
        """
        with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
            found = [p for part in pool.map(lambda i: self._check_image(i, decode), range(len(self))) for p in part]
        self.problems.extend(found)
        bad = {problem.path for problem in found if problem.reason == Reason.UNREADABLE_IMAGE}
        if bad and bad_images == "refuse":
            told = [str(problem) for problem in found if problem.path in bad]
            if len(told) > _MAX_TOLD:
                told[_MAX_TOLD:] = [f"and {len(told) - _MAX_TOLD} more"]
            raise UserError(
                f"{len(bad)} of {len(self)} images cannot be read: repair or remove them, or set data.bad_images to "
                f"'replace'\n  " + "\n  ".join(told)
            )
        if bad and bad_images == "leave_out":
            if len(bad) == len(self):
                raise UserError(f"none of {len(self)} images can be read, the first: {found[0]}")
            self._leave_out(bad)
        return found

    def _leave_out(self, bad):
        """Forgets the images of some paths, with their labels."""
        stay = np.array([path not in bad for path in self._paths])
        rows = np.repeat(stay, self.num_objects)
        self._polygons, self._labels, self._difficulty = (
            part[rows] for part in (self._polygons, self._labels, self._difficulty)
        )
        self._paths, self.image_ids = (
            [one for one, stays in zip(part, stay, strict=True) if stays] for part in (self._paths, self.image_ids)
        )
        self.num_objects = self.num_objects[stay]
        self._offsets = np.concatenate([[0], np.cumsum(self.num_objects)])

    def _check_image(self, index, decode):
        path = self._paths[index]
        try:
            if decode:
                height, width = reader.read(path, self.image_settings).shape[:2]
            else:
                header = read_header(path)
                height, width = header.height, header.width
                if header.format == "TIFF":  # whether it has the bands, and limits where it needs them
                    reader.ImageFile(path, self.image_settings, whole_up_to=0).close()
        except (OSError, ImageError) as error:
            detail = getattr(error, "sentence", str(error))
            return [Problem(path, 0, Reason.UNREADABLE_IMAGE, detail)]
        polygons, labels, _ = self.labels(index).values()
        problems = []
        for row, fraction in enumerate(outside_fraction(polygons, width, height)):
            if fraction > 0:
                reason = "wholly_outside" if fraction == 1 else "partly_outside"
                corners = " ".join(f"{value:g}" for value in polygons[row].reshape(8))
                detail = (
                    f"{fraction:.1%} of the {self.class_names[labels[row]]} at {corners} lies outside the image "
                    f"of {width} x {height} pixels"
                )
                problems.append(Problem(path, 0, reason, detail))
        return problems

    def summary(self):
        """Text: how many images and objects, and how many problems of each kind with their first places."""
        lines = [f"{len(self)} images, {int(self.num_objects.sum())} objects"]
        if self.has_labels:
            lines[0] += f", {int((self.num_objects == 0).sum())} images without objects"
            if self.num_filtered:
                lines[0] += f", {self.num_filtered} more without objects left out"
        counts = collections.Counter(problem.reason for problem in self.problems)
        for reason, count in counts.most_common():
            first = next(problem for problem in self.problems if problem.reason == reason)
            lines.append(f"  {reason}: {count}, the first is {first}")
        if self._unknown:
            lines.append(f"  warning: {self._unknown}")
        return "\n".join(lines)


class TfdsSource:
    """A data set prepared with TensorFlow Datasets as ArrayRecord files; read without TensorFlow.

    Expected features: `image` (encoded), `image_id` (text), `objects` of `polygon` (8 numbers), `label`, `difficulty`.

    Attributes:
      class_names: the classes, in the order of the labels given out.
      image_settings: ImageSettings by which the images of the records were read; pixels here have 8 bits.
    """

    def __init__(self, directory, split, class_names=None, *, data_dir=None, filter_empty=False, min_side=0.0):
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
            names = builder.info.features["objects"]["label"].names
        except KeyError as error:
            raise UserError(
                f"{builder.data_dir}: expected the features image, image_id and objects (polygon, label, difficulty), "
                f"found {', '.join(builder.info.features)}"
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
        self._image_ids = self._num_objects = self._all_labels = None
        self._take_index(record_index.read(builder.data_dir, split, len(self._records)))
        self._indices = None
        if filter_empty:
            self._indices = np.flatnonzero(self.num_objects > 0)
            self._image_ids = [self._image_ids[index] for index in self._indices]
            self._num_objects = self._num_objects[self._indices]
        if not len(self):
            raise UserError(f"{self._name} holds no image{' with objects' if filter_empty else ''}")

    def __len__(self):
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
    def image_ids(self):
        """Identifiers of the images. Without an index the first call reads through the data set."""
        if self._image_ids is None:
            self._scan()
        return self._image_ids

    @property
    def num_objects(self):
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

    def labels(self, index):
        """The example's polygons, labels and difficulty, as a dict, without its image being decoded."""
        if self._all_labels is None:
            return self._labels_of(self._record(index))
        index = range(len(self))[index]
        record = int(index if self._indices is None else self._indices[index])
        part = slice(self._offsets[record], self._offsets[record + 1])
        return {name: array[part].copy() for name, array in self._all_labels.items()}

    def __getitem__(self, index):
        record = self._record(index)
        image_id = self._image_id(record)
        name = f"{self._name}, record {index}, image {image_id}"
        image = self._pixels(bytes(record["image"]), name)
        return {"image": image, **self._labels_of(record), "image_id": image_id}

    @property
    def num_channels(self):
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

    def summary(self):
        """Text: how many images."""
        return f"{len(self)} images of {self._name}"


class SceneSource:
    """Generated aerial scenes: example `index` depends on (seed, index) and the arguments alone."""

    num_channels = 3

    def __init__(self, num_scenes, size=256, seed=0, class_names=SCENE_CLASSES, *, objects_per_scene=(3, 12)):
        """Sets the scenes up; each is drawn when asked for (about 10 ms at 256 pixels).

        Args:
          num_scenes: how many.
          size: rows and columns in pixels; one number for squares.
          seed: another seed gives other scenes, such as a validation split.
          class_names: classes to draw, among `scenes.LOOKS` (DOTA's and a few more).
          objects_per_scene: smallest and largest number of objects.

        Raises:
          ValueError: a class that cannot be drawn, or a size or number out of range.
        """
        unknown = [name for name in class_names if name not in scenes.LOOKS]
        if unknown:
            raise UserError(f"cannot draw {', '.join(unknown)}; what can be drawn: {', '.join(scenes.LOOKS)}")
        if not class_names:
            raise UserError("class_names is empty; name at least one class to draw")
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 64:
            raise UserError(f"a scene needs at least 64 x 64 pixels, size is {size}")
        low, high = objects_per_scene
        if num_scenes < 1 or not 0 <= low <= high:
            raise UserError(
                f"expected num_scenes >= 1 and objects_per_scene (low, high) with 0 <= low <= high, "
                f"found {num_scenes} and {objects_per_scene}"
            )
        self.class_names = tuple(class_names)
        self.num_scenes, self.size, self.seed = num_scenes, (height, width), seed
        self.objects_per_scene = (low, high)

    def __len__(self):
        return self.num_scenes

    @property
    def image_ids(self):
        """Identifiers of the scenes."""
        return [f"scene_{self.seed}_{index:06d}" for index in range(self.num_scenes)]

    def __getitem__(self, index):
        index = range(len(self))[index]  # raises IndexError beyond the end
        looks = [scenes.LOOKS[name] for name in self.class_names]
        rng = np.random.default_rng([self.seed, index])
        image, boxes, labels = scenes.draw_scene(rng, self.size, looks, self.objects_per_scene)
        return {
            "image": image,
            "polygons": boxes_to_polygons(boxes).astype(np.float32),
            "labels": labels,
            "difficulty": np.zeros(len(labels), np.int32),
            "image_id": f"scene_{self.seed}_{index:06d}",
        }

    def labels(self, index):
        """The example's polygons, labels and difficulty, as a dict. The scene is drawn for it."""
        example = self[index]
        return {name: example[name] for name in ("polygons", "labels", "difficulty")}

    def summary(self):
        """Text: how many scenes of which size."""
        return f"{self.num_scenes} generated scenes of {self.size[0]} x {self.size[1]} pixels, seed {self.seed}"


def open_source(kind, class_names, *, filter_empty=False, **settings):
    """Opens the source that a configuration names.

    Args:
      kind: "folder" (FolderSource: images_dir, labels_dir), "tfds" (TfdsSource: directory, split) or
        "scenes" (SceneSource: num_scenes, size, seed).
      class_names: the classes, in the order of their labels.
      filter_empty: leaves out images without an object. Scenes are all kept: where the ground for a scene's
        objects is taken it may have none.
      **settings: what the source of this kind takes.

    Raises:
      ValueError: an unknown kind, a setting that this kind does not have, or a path in a bucket; and what the source
        itself raises.
    """
    kinds = {"folder": FolderSource, "tfds": TfdsSource, "scenes": SceneSource}
    if kind not in kinds:
        raise UserError(f"expected a kind of source among {', '.join(kinds)}, found '{kind}'")
    if kind != "scenes":
        settings["filter_empty"] = filter_empty
    try:
        inspect.signature(kinds[kind]).bind(class_names=class_names, **settings)
    except TypeError as error:
        raise UserError(f"settings of a source of kind '{kind}' do not fit: {error}") from error
    for name in ("directory", "images_dir", "labels_dir"):
        if files.is_bucket(settings.get(name) or ""):
            raise UserError(
                f"{name}: {settings[name]} is in a bucket, and images and records are read from disks: mount the "
                "bucket or copy the folder to a disk of each host, and name that"
            )
    return kinds[kind](class_names=class_names, **settings)


def write_dota_folder(source, folder, *, extension="png"):
    """Writes a source's examples as `images/<image_id>.<extension>` and `labelTxt/<image_id>.txt`.

    Args:
      source: any source of this module.
      folder: where to; made if missing. Existing files of the same names are replaced.
      extension: "png", or "jpg" (quality 95).

    Returns:
      (folder of images, folder of labels).
    """
    images_dir, labels_dir = pathlib.Path(folder) / "images", pathlib.Path(folder) / "labelTxt"
    for made in (images_dir, labels_dir):
        made.mkdir(parents=True, exist_ok=True)
    for index in range(len(source)):
        example = source[index]
        encoded, data = cv2.imencode(f".{extension}", cv2.cvtColor(example["image"], cv2.COLOR_RGB2BGR))
        if not encoded:
            raise UserError(f"cannot write images as '.{extension}'; use png or jpg")
        lines = [
            format_label_line(polygon, source.class_names[label], difficulty)
            for polygon, label, difficulty in zip(
                example["polygons"], example["labels"], example["difficulty"], strict=True
            )
        ]
        files.write_text(labels_dir / f"{example['image_id']}.txt", "".join(line + "\n" for line in lines), sync=False)
        files.write_bytes(images_dir / f"{example['image_id']}.{extension}", data.tobytes(), sync=False)
    return images_dir, labels_dir
