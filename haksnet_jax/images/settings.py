"""How samples of image files become the network's input: which bands, which limits, what is no data.

The choice is made once for a data set and travels with it: in `image_settings.json` beside tiles and records, and in a
model's `model.json`. So a tile is as bright as its scene, and prediction sees what training saw.
"""

import argparse
import json
import math
import numbers
import os
import pathlib
from typing import Any, NamedTuple

from haksnet_jax import files, json_files
from haksnet_jax.errors import UserError

FILE = "image_settings.json"  # in a folder of images or records
MAX_CHOSEN = 16  # bands
# ImageNet's, of red, green and blue in 0..255: what upstream normalises with, and models that say nothing else.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class ImageSettings(NamedTuple):
    """How images are read.

    Attributes:
      bands: numbers from 1, or names (red, green, blue, nir, alpha, or what the file calls them), in the order wanted.
        None: red, green and blue as the file declares them, else the first three bands, else the first one three times.
      limits: (low, high): these values become 0 and 255, what lies beyond is cut off. They hold for all images but
        those of 8 bits, which stay as they are unless high is at most 255. None: 0 and 2**bits - 1 with as many bits as
        the largest value needs.
      nodata: the value of pixels without data, which become 0; None: what the file says.
    """

    bands: tuple[int | str, ...] | None = None
    limits: tuple[float, float] | None = None
    nodata: float | None = None

    @property
    def num_channels(self) -> int:
        """Channels of what is read."""
        return 3 if self.bands is None else len(self.bands)


DEFAULT = ImageSettings()


def checked(settings: ImageSettings, where: str = "") -> ImageSettings:
    """The settings, if they can be used.

    Args:
      settings: ImageSettings, whose values may be lists as JSON and configs have them.
      where: config section or file they come from, put before their names in messages: "data.".

    Raises:
      UserError: names the setting.
    """
    bands, limits, nodata = settings
    if bands is not None:
        bands = tuple(bands) if isinstance(bands, (list, tuple)) else (bands,)
        if not 1 <= len(bands) <= MAX_CHOSEN:
            raise UserError(f"{where}bands: expected 1 to {MAX_CHOSEN} bands, got {len(bands)}")
        for band in bands:
            is_name = isinstance(band, str) and band != ""
            is_number = isinstance(band, numbers.Integral) and not isinstance(band, bool) and band >= 1
            if not is_name and not is_number:
                raise UserError(f"{where}bands: expected numbers from 1 or names such as red, got {str(band)[:40]!r}")
        bands = tuple(band if isinstance(band, str) else int(band) for band in bands)
    if limits is not None:
        both = tuple(limits) if isinstance(limits, (list, tuple)) else (limits,)
        if len(both) != 2 or not all(_is_number(value) for value in both) or not both[0] < both[1]:
            raise UserError(
                f"{where}limits: expected two numbers, the value that becomes 0 and the larger one that becomes 255, "
                f"got {str(both)[:80]}"
            )
        limits = (float(both[0]), float(both[1]))
    if nodata is not None:
        if isinstance(nodata, bool) or not isinstance(nodata, numbers.Real):
            raise UserError(f"{where}nodata: expected a number, got {str(nodata)[:40]!r}")
        nodata = float(nodata)
    return ImageSettings(bands, limits, nodata)


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def parse_bands(text: str) -> tuple[int | str, ...]:
    """Bands as a command's option gives them: "4,3,2" or "nir,red,green" to (4, 3, 2) or ("nir", "red", "green")."""
    words = [word.strip() for word in text.replace(" ", ",").split(",") if word.strip()]
    bands = checked(ImageSettings(bands=tuple(int(word) if word.isdigit() else word for word in words))).bands
    assert bands is not None
    return bands


def parse_limits(text: str) -> tuple[float, float]:
    """Limits as a command's option gives them: "0,2047" to (0.0, 2047.0)."""
    try:
        values = tuple(float(word) for word in text.replace(" ", ",").split(",") if word)
    except ValueError:
        raise UserError(f"limits: expected two numbers such as 0,2047, got {text[:80]!r}") from None
    limits = checked(ImageSettings(limits=values)).limits  # type: ignore[arg-type]  # (any number of values)
    assert limits is not None
    return limits


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds --bands, --limits and --nodata to an argparse parser."""
    parser.add_argument(
        "--bands",
        metavar="BANDS",
        help="which bands of the images, by numbers from 1 or names: 4,3,2 or nir,red,green; default: red, green and "
        "blue as declared, else the first three",
    )
    parser.add_argument(
        "--limits",
        metavar="LOW,HIGH",
        help="values that become black and white in images of more than 8 bits; default: 0 and the largest value of as "
        "many bits as the images use; needed for signed and floating-point values",
    )
    parser.add_argument("--nodata", type=float, help="value of pixels without data; default: what each image says")


def of_options(arguments: argparse.Namespace) -> ImageSettings:
    """ImageSettings of the options that `add_options` added. Raises: UserError."""
    bands = None if arguments.bands is None else parse_bands(arguments.bands)
    limits = None if arguments.limits is None else parse_limits(arguments.limits)
    return checked(ImageSettings(bands, limits, arguments.nodata))


def merged(given: ImageSettings, kept: ImageSettings) -> ImageSettings:
    """Each setting as it is given, and where it is None as it is kept with the data or the model."""
    return given._replace(**{name: value for name, value in kept._asdict().items() if getattr(given, name) is None})


def to_json(settings: ImageSettings) -> dict[str, Any]:
    """Dict of plain values for JSON files; of settings that say something alone."""
    values = {name: value for name, value in settings._asdict().items() if value is not None}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def told(settings: ImageSettings) -> str:
    """Text: `bands (4, 3, 2), limits (0.0, 2047.0)`, or that nothing is stated."""
    values = {name: value for name, value in settings._asdict().items() if value is not None}
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "bands as declared and 8 bits"


def from_json(values: dict[str, Any], where: str) -> ImageSettings:
    """ImageSettings of a dict as `to_json` makes it. Args: where, the file, for messages. Raises: UserError."""
    if not isinstance(values, dict) or not values.keys() <= set(ImageSettings._fields):
        raise UserError(f"{where}: expected an object with {', '.join(ImageSettings._fields)}, got {str(values)[:80]}")
    return checked(ImageSettings(**values), f"{where}: ")


def read_folder(folder: str | os.PathLike[str]) -> tuple[ImageSettings, dict[str, Any]]:
    """What is kept beside the images of a folder.

    Args:
      folder: of images, tiles or records.

    Returns:
      (ImageSettings, dict of what else the file says, such as "mean" and "std" of each band); the defaults and {} where
      there is no such file.

    Raises:
      UserError: the file is damaged.
    """
    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        return ImageSettings(), {}
    values = json_files.load(path, max_bytes=2**20)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected an object, got {str(values)[:80]!r}; make it again (validate --keep, split)")
    for name in ("mean", "std"):
        numbers_of = values.get(name, [])
        least = 0 if name == "std" else -math.inf
        if not isinstance(numbers_of, list) or not all(_is_number(one) and one >= least for one in numbers_of):
            raise UserError(f"{path}: {name}: expected a number for each band, got {str(numbers_of)[:80]!r}")
    own = {name: values.pop(name) for name in ImageSettings._fields if name in values}
    return from_json(own, str(path)), values


def write_folder(folder: str | os.PathLike[str], settings: ImageSettings, more: dict[str, Any] | None = None) -> None:
    """Keeps settings beside the images of a folder. Args: more, a dict that is kept with them (see `read_folder`)."""
    text = json.dumps({**to_json(settings), **(more or {})}, indent=1)
    files.write_text(pathlib.Path(folder) / FILE, text + "\n")
