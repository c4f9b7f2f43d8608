"""The labels of a folder of images, in any of the formats that are read.

A format is a file for each image, of the image's name (`dota`, `yolo-obb`, `rolabelimg`, `labelme`, `geojson`), or one
file for all images (`coco`, `cvat`, `label-studio`).
"""

import difflib
import functools
import os
import pathlib
from typing import Any

import msgspec

from haksnet_jax.errors import UserError
from haksnet_jax.images.headers import ImageError, read_header
from haksnet_jax.labels import classes, dota, encodings, folders, name_lists, objects, recognise
from haksnet_jax.labels.formats import coco, cvat_xml, geojson, items, label_studio, labelme, voc_xml, yolo_obb
from haksnet_jax.labels.formats.structured import FormatError, decode_json, read_bytes
from haksnet_jax.labels.problems import Problem, Reason

_EACH = {  # formats of a file an image, by the endings of their files
    "dota": (".txt",),
    "yolo-obb": (".txt",),
    "rolabelimg": (".xml",),
    "labelme": (".json",),
    "geojson": (".geojson", ".json"),
}
_WHOLE = {"coco": ".json", "cvat": ".xml", "label-studio": ".json"}
NEEDS_IMAGES = ("yolo-obb", "geojson")  # shares of the image, and places on the ground
FORMATS = ("auto", *_EACH, *_WHOLE)


class LabelSet:
    """Labels of many images.

    Attributes:
      format: the format's name, recognised where "auto" was asked for.
      path: pathlib.Path of the folder or file.
      class_names: the classes in the order that the labels' own files list (COCO's categories, data.yaml, classes.txt),
        or None where they list none.
      problems: list of Problem with files as a whole.
    """

    def __init__(self, path: str | os.PathLike[str], format: str = "dota") -> None:
        """Finds the label files; one file for all images is read at once.

        Args:
          path: folder of label files, or one file.
          format: one of FORMATS.

        Raises:
          UserError: there is nothing there, or the format is not known or not recognised.
        """
        self.path = pathlib.Path(path)
        if format not in FORMATS:
            near = difflib.get_close_matches(format, FORMATS, n=1, cutoff=0.5)
            meant = f"; meant is {near[0]}?" if near else ""
            raise UserError(f"expected a format of labels among {', '.join(FORMATS)}, got '{format}'{meant}")
        if not self.path.exists():
            raise UserError(f"Expected labels at {self.path}, found nothing.")
        folders.require_finished(self.path)
        self.format = recognise_format(self.path) if format == "auto" else format
        self.problems: list[Problem] = []
        self.class_names: tuple[str, ...] | None = None
        self._files: dict[str, pathlib.Path] = {}
        self._items: dict[str, list] = {}
        if self.format in _WHOLE:
            self._read_whole()
        elif not self.path.is_dir():
            raise UserError(f"{self.path}: expected a folder with a label file for each image, found a file")
        else:
            self._files, twice = folders.label_files(self.path, _EACH[self.format])
            self.problems += twice
        if self.class_names is None:
            self.class_names = self._listed_near()

    def _listed_near(self):
        if self.format == "yolo-obb":
            names = yolo_obb.class_names_near(self.path)
            if names is not None:
                return names
        listed = folders.class_list_near(self.path)
        return None if listed is None else classes.read_class_names(str(listed))

    def _read_whole(self):
        paths = [self.path] if self.path.is_file() else folders.files_of(self.path, (_WHOLE[self.format],))
        if not paths:
            raise UserError(f"{self.path}: expected {self.format} labels in files {_WHOLE[self.format]}, found none")
        names = []
        for path in paths:
            try:
                if self.format == "coco":
                    found, listed, strays = coco.read_file(path)
                elif self.format == "cvat":
                    found, listed, strays = cvat_xml.read_file(path)
                else:
                    (found, strays), listed = label_studio.read_file(path), None
            except FormatError as error:
                self.problems.append(error.problem(path))
                continue
            except OSError as error:
                self.problems.append(Problem(str(path), 0, Reason.UNREADABLE_LABELS, str(error.strerror)))
                continue
            names += listed or ()
            self.problems += [error.problem(path) for error in strays]
            for stem, content in found.items():
                self._files.setdefault(stem, path)
                self._items.setdefault(stem, []).extend(content)
        self.class_names = tuple(dict.fromkeys(names)) or None

    @property
    def files(self) -> dict[str, pathlib.Path]:
        """Dict from the name of an image, without its ending, to the pathlib.Path of the file with its labels."""
        return self._files

    def read(
        self,
        stem: str,
        class_names: tuple[str, ...],
        image: str | os.PathLike[str] | None = None,
        class_aliases: dict[str, str] | None = None,
    ) -> tuple[objects.Objects, list[Problem]]:
        """The labels of one image.

        Args:
          stem: a key of `files`.
          class_names: tuple of the classes, in the order of their labels.
          image: path of the image; formats in shares of the image and GeoJSON need it.
          class_aliases: dict from another spelling to a class.

        Returns:
          (Objects, list of Problem). The content of files never raises.
        """
        path = self._files[stem]
        try:
            if self.format == "dota":
                return dota.read_labels(path, class_names, class_aliases=class_aliases)
            finder = classes.finder(tuple(class_names), tuple((class_aliases or {}).items()))
            found, problems = items.collect(path, self._items_of(stem, class_names, image), finder)
        except FormatError as error:
            return objects.none(), [error.problem(path)]
        except OSError as error:
            return objects.none(), [Problem(str(path), 0, Reason.UNREADABLE_LABELS, str(error.strerror or error))]
        return found, problems

    def names_in(self, stem: str) -> tuple[str, ...]:
        """Class names of one image's labels, as written, in their order; () where they cannot be read."""
        try:
            if self.format == "dota":
                return dota.written_class_names(self._files[stem])
            found = self._items_of(stem, self.class_names, None)
        except (FormatError, OSError):
            return ()
        return tuple(dict.fromkeys(item.name for item in found if not isinstance(item, FormatError)))

    def found_class_names(self) -> tuple[str, ...]:
        """The classes that the labels list themselves, else all that are written in them, in alphabetical order."""
        if self.class_names is not None:
            return self.class_names
        return tuple(sorted({name for stem in self._files for name in self.names_in(stem) if name_lists.usable(name)}))

    def _items_of(self, stem, class_names, image):
        path = self._files[stem]
        if self.format in _WHOLE:
            return self._items[stem]
        if self.format == "rolabelimg":
            return voc_xml.read_file(path)
        if self.format == "labelme":
            return labelme.read_file(path)
        if self.format == "geojson":
            return geojson.read_file(path, image)
        # The indices are those of the list that the labels bring, whatever the order of the classes that are asked for.
        return yolo_obb.read_file(path, _size(image), self.class_names or class_names)


def _size(image):
    """(width, height) of an image, by its header; (1, 1) without an image."""
    if image is None:
        return 1, 1
    try:
        header = read_header(image)
    except ImageError as error:
        raise FormatError(Reason.UNREADABLE_LABELS, f"its image {image} cannot be read: {error}") from None
    return header.width, header.height


def recognise_format(path: pathlib.Path) -> str:
    """The format of labels, by the endings and beginnings of the first files.

    Args:
      path: pathlib.Path of a folder of label files, or of one file.

    Returns:
      One of FORMATS.

    Raises:
      UserError: none is recognised.
    """
    paths = [path] if path.is_file() else folders.files_of(path, (".txt", ".xml", ".json", ".geojson"))
    for one in paths[:50]:
        found = _format_of(one)
        if found:
            return found
    if not paths:
        raise UserError(f"{path}: expected label files (.txt, .xml, .json or .geojson), found none")
    raise UserError(
        f"{path}: the format of the labels is not recognised{_why_not(paths[0])}; name it by "
        f"--format={{{','.join(FORMATS[1:])}}}"
    )


def _format_of(path):
    """The format of one file, or None where it cannot be told (an empty file)."""
    extension = path.suffix.lower()
    if extension == ".txt":
        lines = [line for line in dota.raw_lines(path) if line.strip() and not recognise.HEADER.match(line)][:4]
        if not lines:
            return None
        return "yolo-obb" if all(recognise.is_yolo_obb_line(line.split()) for line in lines) else "dota"
    start = encodings.beginning(path)
    if extension == ".xml":
        return "cvat" if "<annotations" in start else "rolabelimg" if "<annotation" in start else None
    if extension == ".geojson" or '"FeatureCollection"' in start:
        return "geojson"
    if start.lstrip("\ufeff \r\n\t").startswith("["):
        return "label-studio"
    return _format_of_json(path)


def _why_not(path):
    """What is odd about the first of files that are not recognised, as the end of a sentence."""
    if path.suffix.lower() != ".json":
        return ""
    try:
        decode_json(read_bytes(path), Any)
    except (FormatError, OSError) as error:
        return f" ({path.name}: {error})"
    return f" ({path.name} has the keys of none)"


@functools.lru_cache(maxsize=8)
def _format_of_json(path):
    try:
        keys = decode_json(read_bytes(path), dict[str, msgspec.Raw]).keys()
    except FormatError:
        return None
    return "labelme" if "shapes" in keys else "coco" if {"images", "annotations"} <= keys else None
