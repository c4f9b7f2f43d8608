"""Images to be looked at: which files are meant, and arrays in memory that are read as files are."""

import os
import pathlib
from collections.abc import Iterable

import cv2
import numpy as np

from haksnet_jax.errors import UserError
from haksnet_jax.images import files as image_files
from haksnet_jax.results.dota import image_stem

_WILDCARDS = set("*?[")


def find_images(sources: Iterable[str]) -> tuple[list[pathlib.Path], int]:
    """The image files that are meant.

    Args:
      sources: files, folders (the images in them, not in folders below) and patterns (** for any folders).

    Returns:
      (paths, number of files in folders that do not end like an image).

    Raises:
      UserError: a source names no image, or two images have the same name.
    """
    paths, num_others = [], 0
    for source in sources:
        path = pathlib.Path(source)
        if path.is_dir():
            found = image_files.list_images(path)
            num_others += sum(file.is_file() and not file.name.startswith(".") for file in path.iterdir()) - len(found)
        elif path.is_file():
            found = [path]
        elif _WILDCARDS & set(source):
            found = image_files.matching(source)
            if not found:
                raise UserError(f"no file matches {source}")
        elif "://" in str(source):
            raise UserError(f"{source}: addresses are not read; download the image and name the file")
        else:
            raise UserError(f"{source} is neither a file, nor a folder, nor a pattern with *")
        paths += found
    paths = list({os.path.abspath(path): path for path in paths}.values())
    by_stem: dict[str, pathlib.Path] = {}
    for path in paths:
        other = by_stem.setdefault(image_stem(path.name), path)
        if other is not path:
            raise UserError(
                f"{other} and {path} have the same name, which the results go by: predict them into two folders"
            )
    return paths, num_others


class ImageArray:
    """An image in memory with the interface of `images.reader.ImageFile`.

    Args:
      pixels: [H, W, C] uint8, RGB or the model's bands; or [H, W], which is repeated to three channels.
      channels: C that the model takes.

    Raises:
      UserError: another type or shape.
    """

    def __init__(self, pixels: np.ndarray, channels: int = 3) -> None:
        pixels = np.asarray(pixels)
        if pixels.ndim == 2 and channels == 3:
            pixels = np.repeat(pixels[..., None], 3, axis=-1)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != channels or 0 in pixels.shape:
            order = " in the order R, G, B" if channels == 3 else ""
            raise UserError(
                f"expected an image [H, W, {channels}] of uint8{order}, got {pixels.dtype} {list(pixels.shape)}"
            )
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def read(self, x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
        """[y2 - y1, x2 - x1, C] uint8 of a window inside the image."""
        return self._pixels[y1:y2, x1:x2]

    def thumbnail(self, longest_side: int) -> tuple[np.ndarray, float]:
        """(image, factor): the whole image, reduced so that no side is longer than `longest_side` pixels."""
        factor = min(1.0, longest_side / max(self.width, self.height))
        if factor == 1.0:
            return self._pixels, factor
        size = tuple(max(1, int(side * factor + 0.5)) for side in (self.width, self.height))
        return cv2.resize(self._pixels, size, interpolation=cv2.INTER_AREA), factor

    def close(self) -> None:
        """Nothing to close."""
