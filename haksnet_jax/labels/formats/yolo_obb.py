"""YOLO-OBB: a text file an image, a line an object: `index x1 y1 x2 y2 x3 y3 x4 y4`, corners as shares of the image.

The classes stand in `data.yaml` (or another .yaml) above the labels, as `names: [ship, plane]` or `names: {0: ship}`,
or in `classes.txt`. Longer lines are outlines (YOLO's segmentation): the smallest rectangle around them is taken.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from haksnet_jax.labels import encodings, name_lists, recognise
from haksnet_jax.labels.formats.items import Item
from haksnet_jax.labels.formats.structured import FormatError, read_bytes
from haksnet_jax.labels.problems import Reason, shortened


def read_file(
    path: str | os.PathLike[str], size: tuple[int, int], class_names: Sequence[str] | None
) -> list[Item | FormatError]:
    """Objects of one file.

    Args:
      path: the file.
      size: (width, height) of the image in pixels.
      class_names: names by index, or None where they are not known: the indices are the names.

    Returns:
      List of Item and FormatError.
    """
    try:
        text = encodings.decode(read_bytes(path))
    except encodings.EncodingError as error:
        raise FormatError(Reason.BAD_ENCODING, str(error), error.line) from None
    return [
        _read_line(line.split(), number, size, class_names)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]


def _read_line(words, line, size, class_names):
    where = f"line {line}"
    values = recognise.numbers(words)
    if values is None or not words[0].isdecimal():
        wanted = "a class index and corners between 0 and 1"
        return FormatError(Reason.BAD_NUMBER, f"expected {wanted}, found '{shortened(' '.join(words))}'", line)
    if len(values) < 7:
        detail = "an axis-parallel box (centre, width, height)" if len(values) in (5, 6) else f"{len(values)} numbers"
        return FormatError(Reason.TOO_FEW_NUMBERS, f"expected a class index and 8 numbers, found {detail}", line)
    if len(values) % 2 == 0 and len(values) != 10:  # with one number less a quadrilateral would become a triangle
        detail = f"expected a class index and pairs of numbers, found {len(values) - 1} numbers"
        return FormatError(Reason.BAD_NUMBER, detail, line)
    corners = values[1:] if len(values) % 2 else values[1:-1]  # four corners and a score
    if not all(-0.5 <= value <= 1.5 for value in corners):
        detail = "expected corners between 0 and 1, as shares of the image; these look like pixels"
        return FormatError(Reason.BAD_NUMBER, detail, line)
    index = int(words[0]) if len(words[0]) < 10 else 10**9  # (Python refuses numbers of thousands of digits)
    if index >= (10**9 if class_names is None else len(class_names)):
        detail = f"class index {shortened(words[0])} is beyond the {len(class_names or ())} classes"
        return FormatError(Reason.UNKNOWN_CLASS, detail, line)
    name = str(index) if class_names is None else class_names[index]
    return Item(name, np.reshape(corners, (-1, 2)) * size, None, line, where)


def class_names_near(folder: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """The classes that a .yaml file beside or above a folder of labels lists, by their indices.

    Args:
      folder: of label files: `labels/train`, with data.yaml in it, in `labels` or above.

    Returns:
      Tuple of names, or None where there is no such file. YAML files of other programs are passed over.

    Raises:
      UserError: a list of classes has mistakes, see `name_lists.names_of_any_yaml`.
    """
    folder = pathlib.Path(folder).absolute()
    for place in (folder, *list(folder.parents)[:3]):
        found = [path for path in place.glob("*.y*ml") if not path.name.startswith(".") and path.is_file()]
        for path in sorted(found, key=lambda path: (path.stem != "data", path)):
            names = name_lists.names_of_any_yaml(path)
            if names is not None:
                return names
    return None
