"""Images and their labels: of the same name in two folders, or as a split's list names them."""

import functools
import pathlib
from collections.abc import Callable, Sequence

from numpy.typing import ArrayLike

from haksnet_jax.images import files as image_files
from haksnet_jax.labels import encodings, folders, objects
from haksnet_jax.labels.classes import Finder
from haksnet_jax.labels.formats import items, structured, voc_xml
from haksnet_jax.labels.formats.structured import FormatError
from haksnet_jax.labels.label_set import LabelSet
from haksnet_jax.labels.problems import Problem, Reason
from haksnet_jax.preparation.records import DataError, Record

ReadAnnotations = Callable[[pathlib.Path], tuple[objects.Objects, list[Problem]]]


def pair_labels(
    images: pathlib.Path, labels: pathlib.Path | None, class_names: tuple[str, ...] | None, format: str = "dota"
) -> tuple[list[Record], list[Problem]]:
    """Records of a folder of images and labels in one of the formats that are read.

    Args:
      images: pathlib.Path of the folder of images.
      labels: path of the labels, or None.
      class_names: tuple of the classes, in the order of their labels; None: those that the labels list.
      format: of the labels, see label_set.FORMATS.

    Returns:
      (list of Record in the order of the names, list of Problem: images and labels without partner).

    Raises:
      UserError: a folder is missing, or holds no image.
    """
    paths = image_files.list_images(images)
    folders.require_finished(images)
    if labels is None:
        return [Record(path, None) for path in paths], []
    label_set = LabelSet(labels, format)
    names = label_set.found_class_names() if class_names is None else class_names

    def read(path):
        return label_set.read(path.stem, names, path)

    return _paired(paths, label_set.files, read, label_set.problems, labels, images)


def pair_files(
    images: pathlib.Path, annotations: pathlib.Path | None, read: ReadAnnotations
) -> tuple[list[Record], list[Problem]]:
    """Records of a folder of images and a folder of XML files of the same names.

    Args:
      images: pathlib.Path of the folder of images.
      annotations: pathlib.Path of the folder of annotation files, or None.
      read: path of an annotation file -> (Objects, list of Problem).

    Returns:
      (list of Record in the order of the names, list of Problem: images and annotations without partner).

    Raises:
      UserError: a folder is missing, or holds no image.
    """
    paths = image_files.list_images(images)
    if annotations is None:
        return [Record(path, None) for path in paths], []
    if not annotations.is_dir():
        raise DataError(f"Expected a folder of annotations at {annotations}, found none.")
    found, problems = folders.label_files(annotations, (".xml",))
    return _paired(paths, found, lambda path: read(found[path.stem]), problems, annotations, images)


def pair_coco(
    path: pathlib.Path, images: pathlib.Path, class_names: tuple[str, ...]
) -> tuple[list[Record], list[Problem]]:
    """Records of the images that a COCO file lists, in its order; others of the folder are not of the split.

    Args:
      path: pathlib.Path of the file.
      images: pathlib.Path of the folder of images; nothing outside of it is opened, whatever the file names.
      class_names: tuple of the classes, in the order of their labels.

    Returns:
      (list of Record, list of Problem).

    Raises:
      UserError: the file or the folder is missing.
    """
    if not path.is_file() or not images.is_dir():
        raise DataError(f"Expected {path} and a folder {images}; one of them is missing.")
    label_set = LabelSet(path, "coco")
    paths = {image.stem: image for image in image_files.list_images(images)}
    problems = list(label_set.problems)
    for stem in label_set.files:
        if stem not in paths:
            detail = f"expected an image {stem} in {images}, found none"
            problems.append(Problem(str(path), 0, Reason.MISSING_FILE, detail))
    listed = [stem for stem in label_set.files if stem in paths]
    return [Record(paths[stem], functools.partial(label_set.read, stem, class_names)) for stem in listed], problems


def _paired(paths, labels, read, problems, labels_path, images_dir):
    records = [Record(path, functools.partial(read, path)) for path in paths if path.stem in labels]
    images = {path.stem: path for path in paths}
    return records, [*problems, *folders.pair(images, labels, labels_path, images_dir)]


def pair_listed(
    list_file: pathlib.Path, image_folders: Sequence[pathlib.Path], annotations: pathlib.Path, read: ReadAnnotations
) -> tuple[list[Record], list[Problem]]:
    """Records of the images that a split's list names, in its order.

    Args:
      list_file: text file with one image name a line, with or without folder and extension.
      image_folders: folders in which the images are.
      annotations: folder of XML files of the same names.
      read: path of an annotation file -> (Objects, problems).

    Returns:
      (list of Record, list of Problem: names without image or annotations, with the line of the list).

    Raises:
      UserError: the list or a folder is missing, or the list is no text.
    """
    if not list_file.is_file():
        raise DataError(f"Expected the list of a split's images at {list_file}, found none.")
    if not annotations.is_dir():
        raise DataError(f"Expected a folder of annotations at {annotations}, found none.")
    images = {path.stem: path for folder in image_folders for path in image_files.list_images(folder)}
    files, problems = folders.label_files(annotations, (".xml",))
    try:
        lines = encodings.decode(list_file.read_bytes()).splitlines()
    except encodings.EncodingError as error:
        raise DataError(f"{list_file}:{error.line}: {error}") from None
    records = []
    for line, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        name = pathlib.PurePosixPath(text.strip()).name
        stem = name if name in images else pathlib.PurePosixPath(name).stem
        if stem in images and stem in files:
            records.append(Record(images[stem], functools.partial(read, files[stem])))
            continue
        wanted = f"{stem}.xml in {annotations}" if stem in images else f"in {', '.join(map(str, image_folders))}"
        missing = f"expected annotations {wanted}" if stem in images else f"expected an image {stem} {wanted}"
        problems.append(Problem(str(list_file), line, Reason.MISSING_FILE, f"{missing}, found none"))
    return records, problems


def read_xml(
    path: pathlib.Path,
    finder: Finder,
    *,
    objects_at: str = "object",
    describe: Callable[[structured.Node], tuple[str, ArrayLike, str | None]] | None = None,
) -> tuple[objects.Objects, list[Problem]]:
    """Reads the objects of one XML annotation file.

    Args:
      path: the file.
      finder: classes.Finder of the classes.
      objects_at: where the objects are below the root: "object" or "objects/object".
      describe: structured.Node of an object -> (class name, [P, 2] points in pixels, difficulty as written); None:
        those of roLabelImg, DIOR-R and SSDD.

    Returns:
      (Objects, list of Problem). The content never raises.
    """
    try:
        return items.collect(path, voc_xml.read_file(path, objects_at, describe), finder)
    except FormatError as error:
        return objects.none(), [error.problem(path)]
    except OSError as error:
        return objects.none(), [Problem(str(path), 0, Reason.UNREADABLE_LABELS, str(error.strerror or error))]
