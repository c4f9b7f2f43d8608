"""Labelled images of a folder, with label files of the same names in any of the formats that are read."""

import collections
import concurrent.futures
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from haksnet_jax.errors import UserError
from haksnet_jax.geometry.polygons import outside_fraction, polygons_to_boxes
from haksnet_jax.images import files as image_files
from haksnet_jax.images import reader, scaling
from haksnet_jax.images.headers import ImageError, read_header
from haksnet_jax.images.settings import DEFAULT, ImageSettings
from haksnet_jax.labels import folders
from haksnet_jax.labels.label_set import LabelSet
from haksnet_jax.labels.objects import select
from haksnet_jax.labels.problems import Problem, Reason, require_read, unknown_classes
from haksnet_jax.wording import counted

_MAX_TOLD = 20  # images that are named in one message


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
        images_dir: str | os.PathLike[str],
        labels_dir: str | os.PathLike[str],
        class_names: Sequence[str],
        *,
        filter_empty: bool = False,
        min_side: float = 0.0,
        class_aliases: Mapping[str, str] | None = None,
        image_ids: Sequence[str] | None = None,
        image_settings: ImageSettings = DEFAULT,
        format: str = "dota",
        allow_unknown_classes: bool = False,
    ) -> None:
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
        self.problems: list[Problem] = []
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
                objects = self._read_objects(label_set, image_id, path, class_aliases, min_side)
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

    def _read_objects(self, label_set, image_id, path, class_aliases, min_side):
        objects, problems = label_set.read(image_id, self.class_names, path, class_aliases)
        self.problems.extend(problems)
        return self._leave_out_small(objects, min_side, label_set.files[image_id]) if min_side > 0 else objects

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
            raise UserError(
                f"the folder of labels {labels_dir} does not exist, looked for from {os.getcwd()}: name it, in "
                "training with data.train.labels_dir and data.val.labels_dir"
            )
        label_set = LabelSet(labels_dir, format)
        self.problems += label_set.problems
        for stem in sorted(label_set.files.keys() - paths.keys()) if everything else ():
            detail = f"there is no image named {stem} in {images_dir}"
            self._report(label_set.files[stem], Reason.LABELS_WITHOUT_IMAGE, detail)
        if not label_set.files.keys() & paths.keys():
            require_read(self.problems)
            first = next(iter(paths))
            raise UserError(
                f"{labels_dir} holds no labels for any of the {counted(len(paths), 'image')} of {images_dir}; "
                f"expected for example {first}.txt"
            )
        return label_set

    def _leave_out_small(self, objects, min_side, path):
        _, large_enough = polygons_to_boxes(objects.polygons, min_side)
        for line in objects.lines[~large_enough].tolist():
            detail = f"left out: a side of the object's box is below {min_side:g} pixels"
            self.problems.append(Problem(str(path), line, Reason.TOO_SMALL, detail))
        return select(objects, large_enough)

    def __len__(self) -> int:
        return len(self.image_ids)

    def labels(self, index: int) -> dict[str, np.ndarray]:
        """The example's polygons, labels and difficulty, as a dict, without its image being read."""
        index = range(len(self))[index]
        part = slice(self._offsets[index], self._offsets[index + 1])
        return {
            "polygons": self._polygons[part].copy(),
            "labels": self._labels[part].copy(),
            "difficulty": self._difficulty[part].copy(),
        }

    def __getitem__(self, index: int) -> dict[str, Any]:
        labels = self.labels(index)
        path = self._paths[index]
        try:
            image = reader.read(path, self.image_settings)
        except OSError as error:
            raise ImageError("unreadable_image", f"the image cannot be read ({error.strerror})", path) from error
        return {"image": image, **labels, "image_id": self.image_ids[index]}

    @property
    def num_channels(self) -> int:
        """C of the images."""
        return self.image_settings.num_channels

    def check_images(self, *, decode: bool = False, num_threads: int = 8, bad_images: str = "keep") -> list[Problem]:
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
        if not decode and header.pages > 1:
            detail = f"the file holds {header.pages} images, of which the first is read"
            problems.append(Problem(path, 0, Reason.SEVERAL_PAGES, detail))
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

    def summary(self) -> str:
        """Text: how many images and objects, and how many problems of each kind with their first places."""
        lines = [f"{counted(len(self), 'image')}, {counted(int(self.num_objects.sum()), 'object')}"]
        if self.has_labels:
            lines[0] += f", {counted(int((self.num_objects == 0).sum()), 'image')} without objects"
            if self.num_filtered:
                lines[0] += f", {self.num_filtered} more without objects left out"
        counts = collections.Counter(problem.reason for problem in self.problems)
        for reason, count in counts.most_common():
            first = next(problem for problem in self.problems if problem.reason == reason)
            lines.append(f"  {reason}: {count}, the first is {first}")
        if self._unknown:
            lines.append(f"  warning: {self._unknown}")
        return "\n".join(lines)
