"""Masks: files whose pixels are classes, as numbers or as colours. Read here alone, so that all see the same labels."""

import contextlib
import os
import pathlib
import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from haksnet_jax.errors import UserError
from haksnet_jax.images import reader
from haksnet_jax.images.headers import MAX_PIXELS, ImageError, read_header
from haksnet_jax.labels import encodings
from haksnet_jax.labels.problems import printable

IGNORED = 255  # the label of pixels that neither loss nor score looks at
MASK_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp")
MAX_CLASSES = 254
_UNREADABLE = "unreadable_mask"  # the reason of ImageError, as in `problems.Reason`
_SHOWN = 6  # values that a message names
_MODES = ("P", "1", "L", "I", "I;16", "I;16B", "I;16L", "RGB", "RGBA", "LA")  # Pillow's, of masks

Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns beyond it and refuses beyond its double
warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged files, which are named in our own words


class Legend(NamedTuple):
    """What the values of masks mean.

    Attributes:
      num_classes: K.
      values: {pixel value: label}, of masks that hold numbers; label IGNORED is no class.
      colours: {(red, green, blue): label}, of masks that hold colours, or None where they hold numbers.
    """

    num_classes: int
    values: dict
    colours: dict | None = None


def number_legend(
    num_classes: int, values: Sequence[int | Sequence[int]] | None = None, ignored: Sequence[int] = (IGNORED,)
) -> Legend:
    """The legend of masks that hold numbers.

    Args:
      num_classes: K.
      values: pixel value of each class, in their order, or a sequence of values for a class; None: 0 .. K - 1.
      ignored: values of pixels without a class.

    Raises:
      UserError: a value stands twice, or the number of values is not that of the classes.
    """
    values = range(num_classes) if values is None or not len(values) else values
    if len(values) != num_classes:
        raise UserError(f"data.mask_values: expected a value for each of the {num_classes} classes, got {len(values)}")
    table = {}
    for label, of_class in enumerate(values):
        for value in of_class if isinstance(of_class, (tuple, list)) else (of_class,):
            if int(value) in table:
                raise UserError(f"data.mask_values: the value {int(value)} stands for two classes")
            table[int(value)] = label
    return Legend(num_classes, {int(value): IGNORED for value in ignored} | table)


_PALETTE_LINE = re.compile(
    r"(?:#?(?P<hex>[0-9a-fA-F]{6})|(?P<r>\d{1,3})[ ,]+(?P<g>\d{1,3})[ ,]+(?P<b>\d{1,3}))\s+(?P<name>.+)"
)


def read_palette(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], Legend]:
    """Reads a palette.txt: a line for each colour, `8429F6 land` or `132 41 246 land`.

    Several lines may name the same class; the name `ignored` is none. Empty lines and those that begin with `# ` are
    left out.

    Args:
      path: of the file.

    Returns:
      (names of the classes in the order of their first lines, Legend).

    Raises:
      UserError: the file cannot be read, a line has another form, or a colour stands twice.
    """
    path = pathlib.Path(path)
    try:
        lines = encodings.decode(path.read_bytes()).splitlines()
    except OSError as error:
        raise UserError(f"{path}: the palette cannot be read: {error.strerror or error}") from error
    except encodings.EncodingError as error:
        raise UserError(f"{path}:{error.line}: {error}") from None
    return parse_palette(lines, path)


def parse_palette(lines: Sequence[str], where: str | os.PathLike[str]) -> tuple[tuple[str, ...], Legend]:
    """`read_palette` of lines. Args: lines; where, their place, for messages. Returns and Raises: as there."""
    names, colours = [], {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("# "):
            continue
        match = _PALETTE_LINE.fullmatch(line.strip())
        if match is None:
            raise UserError(
                f"{where}:{number}: expected a line like '8429F6 land' or '132 41 246 land', got {line!r:.80}"
            )
        if match["hex"]:
            colour = tuple(bytes.fromhex(match["hex"]))
        else:
            colour = tuple(int(match[channel]) for channel in "rgb")
        if max(colour) > 255:
            raise UserError(f"{where}:{number}: a colour's values lie between 0 and 255, got {line!r:.80}")
        if colour in colours:
            raise UserError(f"{where}:{number}: the colour {hexadecimal(colour)} stands for two classes")
        name = match["name"].strip()
        if name != "ignored" and name not in names:
            names.append(name)
        colours[colour] = IGNORED if name == "ignored" else names.index(name)
    if not names:
        raise UserError(f"{where} names no class; expected lines like '8429F6 land'")
    if len(names) > MAX_CLASSES:
        raise UserError(f"{where} names {len(names)} classes; at most {MAX_CLASSES} fit a mask")
    return tuple(names), Legend(len(names), {IGNORED: IGNORED}, colours)


def hexadecimal(colour: Sequence[int]) -> str:
    """(132, 41, 246) as "8429F6"."""
    return bytes(colour).hex().upper()


class Mask(NamedTuple):
    """A mask that was read.

    Attributes:
      labels: [H, W] uint8, 0 .. K - 1 or IGNORED.
      unknown: {value or (red, green, blue): number of pixels} that the legend does not know; their label is IGNORED.
    """

    labels: np.ndarray
    unknown: dict


def read_mask(path: str | os.PathLike[str], legend: Legend) -> Mask:
    """Reads a mask.

    Args:
      path: PNG, TIFF or BMP with one channel of 1 to 16 bits, a palette, or three or four channels of 8 bits.
      legend: Legend. Where it has colours, a palette's numbers are looked up as their colours, and grey as R = G = B.
        Where it has numbers, a palette's are taken as they are, and colours only where R = G = B.

    Returns:
      Mask. Pixels that are wholly transparent are IGNORED.

    Raises:
      ImageError: the file cannot be read.
      UserError: it is a JPEG, or holds something else than a mask.
    """
    pixels, opaque = _read_pixels(pathlib.Path(path), colours=legend.colours is not None)
    if pixels.ndim == 3:
        labels, unknown = _labels_of_colours(pixels, legend.colours)
    elif pixels.min(initial=0) < 0 or pixels.max(initial=0) >= 2**16:
        found = f"{pixels.min()} to {pixels.max()}"
        raise UserError(f"{path}: expected values of a mask between 0 and 65535, got {found}")
    else:
        labels, unknown = _labels_of_numbers(pixels, legend.values)
    if opaque is not None:
        labels[~opaque] = IGNORED
    return Mask(labels, unknown)


def read_mask_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(rows, columns) of a mask, turned as its file says, by its header. Raises: as `read_mask`."""
    header = _header(path)
    return header.height, header.width


@contextlib.contextmanager
def _naming(path, what):
    """Makes one sentence of what Pillow's decoders raise for a damaged file: nearly any kind of error."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        reason = printable(" ".join(str(error).split()))[:200] or type(error).__name__
        raise ImageError(_UNREADABLE, f"the mask cannot be {what}: {reason}", path) from error


def _header(path):
    """The file's Header, for which its lengths are compared: Pillow takes a chunk's word for what it has to read."""
    try:
        header = read_header(path)
    except ImageError as error:
        raise ImageError(_UNREADABLE, f"the mask cannot be read: {error.sentence}", path) from None
    except OSError as error:
        raise ImageError(_UNREADABLE, f"the mask cannot be read: {error.strerror or error}", path) from None
    if header.format == "JPEG":
        raise UserError(
            f"{path}: a mask as JPEG, which changes the values at every border: save it again as PNG from what it "
            "was made of"
        )
    if header.format == "TIFF" and header.orientation != 1:  # Pillow 13 mixes up the rows of some of these
        raise UserError(f"{path}: a TIFF mask that is to be turned (orientation {header.orientation}): save it upright")
    return header


def _read_pixels(path, *, colours):
    """(pixels [H, W] of numbers or [H, W, 3] of colours, [H, W] bool which are opaque, or None for all)."""
    header = _header(path)
    with _naming(path, "read"):
        opened = Image.open(path, formats=(header.format,))
    with opened as image:
        mode = image.mode
        if mode not in _MODES:
            raise UserError(f"{path}: expected a mask of whole numbers or colours of 8 bits, got PIL's mode {mode}")
        with _naming(path, "decoded"):
            pixels = np.asarray(image.convert("RGB") if mode == "P" and colours else image)
    if header.format == "PNG":
        pixels = reader.turned(pixels, header.orientation)
    opaque = None
    if mode in ("RGBA", "LA"):
        opaque = pixels[..., -1] > 0
        pixels = pixels[..., :-1] if mode == "RGBA" else pixels[..., 0]
    if mode == "1":
        pixels = pixels.astype(np.uint8)
    if colours and pixels.ndim == 2:
        if pixels.max(initial=0) > 255:
            raise UserError(
                f"{path}: expected colours of 8 bits as the palette has them, got values up to {pixels.max()}"
            )
        pixels = np.repeat(pixels[..., None].astype(np.uint8), 3, axis=-1)
    if not colours and pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise UserError(
                f"{path}: the mask holds colours, and there is no palette: name each colour's class in a palette.txt "
                "beside the folders of images and masks (lines like '8429F6 land')"
            )
        pixels = pixels[..., 0]
    return pixels, opaque


def _labels_of_numbers(pixels, values):
    size = int(pixels.max(initial=0)) + 1
    table = np.full(size, IGNORED, np.uint8)
    known = np.zeros(size, bool)
    for value, label in values.items():
        if value < size:
            table[value], known[value] = label, True
    return table[pixels], _unknown(pixels, known)


def _unknown(pixels, known):
    """{value: count} of the values that are not known."""
    if known.all():
        return {}
    counts = np.bincount(pixels.reshape(-1), minlength=len(known))
    return {int(value): int(counts[value]) for value in np.flatnonzero((counts > 0) & ~known)}


def _labels_of_colours(pixels, colours):
    packed = (pixels[..., 0].astype(np.int32) << 16) | (pixels[..., 1].astype(np.int32) << 8) | pixels[..., 2]
    known = np.array(sorted((r << 16 | g << 8 | b, label) for (r, g, b), label in colours.items()), np.int32)
    place = np.searchsorted(known[:, 0], packed).clip(max=len(known) - 1)
    found = known[place, 0] == packed
    labels = np.where(found, known[place, 1], IGNORED).astype(np.uint8)
    unknown = {}
    if not found.all():
        values, counts = np.unique(packed[~found], return_counts=True)
        unknown = {(v >> 16, v >> 8 & 255, v & 255): n for v, n in zip(values.tolist(), counts.tolist(), strict=True)}
    return labels, unknown


def describe_unknown(unknown: Any) -> str:
    """Text: the most frequent unknown values or colours of a mask. Args: unknown, see `Mask`, not empty."""
    ranked = sorted(unknown.items(), key=lambda item: -item[1])
    names = [hexadecimal(value) if isinstance(value, tuple) else str(value) for value, _ in ranked[:_SHOWN]]
    more = f" and {len(ranked) - _SHOWN} more" if len(ranked) > _SHOWN else ""
    kind = "colours" if isinstance(ranked[0][0], tuple) else "values"
    return f"{sum(unknown.values())} pixels have {kind} that are no class: {', '.join(names)}{more}"
