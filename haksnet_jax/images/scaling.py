"""One choice of limits for the images of a data set, and the means and deviations of its bands."""

import concurrent.futures
import contextlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from haksnet_jax.errors import UserError
from haksnet_jax.images import settings as image_settings
from haksnet_jax.images.files import list_images
from haksnet_jax.images.headers import ImageError, read_header
from haksnet_jax.images.reader import ImageFile


def for_images(
    paths: Sequence[str | os.PathLike[str]],
    given: image_settings.ImageSettings = image_settings.DEFAULT,
    *,
    max_measured: int | None = 256,
    num_threads: int | None = None,
) -> image_settings.ImageSettings:
    """The settings by which several images are read alike.

    What is given comes first; then what is kept beside the images of a folder (`image_settings.json`). Where that
    leaves the limits open and images have more than 8 bits, their largest value is looked for, so that a dark image
    among bright ones stays dark.

    Args:
      paths: of the images.
      given: ImageSettings, from options, a config or a model.
      max_measured: images that are looked at, spread evenly over those of more than 8 bits; None for all of them.
      num_threads: images at a time; None: one a core.

    Returns:
      ImageSettings; the limits stay None where all images have 8 bits. Images that cannot be read are passed over.

    Raises:
      UserError: the settings of a folder are damaged, or folders have different ones.
    """
    kept: dict[image_settings.ImageSettings, pathlib.Path] = {}
    for folder in dict.fromkeys(pathlib.Path(path).parent for path in paths):
        kept.setdefault(image_settings.merged(given, image_settings.read_folder(folder)[0]), folder)
    # Folders that were cut one after the other may have been measured with different bits: the most serve for all.
    highest = max((one.limits for one in kept if one.limits and one.limits[0] == 0), default=None)
    all_settings = {
        one._replace(limits=highest) if one.limits is None or one.limits[0] == 0 else one: folder
        for one, folder in kept.items()
    }
    if len(all_settings) > 1:
        (first, one), (second, other) = list(all_settings.items())[:2]
        raise UserError(
            f"{one} and {other} are to be read differently ({image_settings.told(first)}; "
            f"{image_settings.told(second)}): state bands, limits and nodata, or read them one after the other"
        )
    settings = next(iter(all_settings), given)
    if settings.limits is not None:
        return settings
    with concurrent.futures.ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
        deep = [path for path, is_deep in zip(paths, pool.map(_is_deep, paths), strict=True) if is_deep]
        if not deep:
            return settings
        if max_measured is not None and len(deep) > max_measured:
            deep = [deep[index] for index in np.linspace(0, len(deep) - 1, max_measured).astype(int)]
        bits = max(pool.map(lambda path: _bits(path, settings), deep))
    return settings._replace(limits=(0.0, float(2**bits - 1)))


def remarks(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Sentences about what is not read of some images, for the log of a command. Args: paths."""
    several = []
    for path in paths:
        with contextlib.suppress(ImageError, OSError):  # named when it is its turn
            if (header := read_header(path)).pages > 1:
                several.append(f"{path} ({header.pages})")
    if not several:
        return []
    shown = ", ".join(several[:3]) + (f" and {len(several) - 3} more" if len(several) > 3 else "")
    return [f"of files that hold several images the first is read: {shown}"]


def _is_deep(path):
    try:
        header = read_header(path)
    except (ImageError, OSError):  # named when it is its turn
        return False
    return header.bits > 8 and header.kind == "unsigned"


def _bits(path, settings):
    try:
        with ImageFile(path, settings) as image:
            return image.bits()
    except (ImageError, OSError):
        return 8


def band_statistics(
    paths: Sequence[str | os.PathLike[str]],
    settings: image_settings.ImageSettings,
    *,
    max_images: int = 200,
    num_threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Means and deviations of each band, in values of 0 to 255 as the network gets them.

    Args:
      paths: of the images.
      settings: ImageSettings, see `for_images`.
      max_images: that are looked at, spread evenly; of large ones a middle part of 1024 pixels.
      num_threads: images at a time; None: one a core.

    Returns:
      (mean [C] float64, std [C] float64) over all pixels that have data, that is: not 0 in all bands.

    Raises:
      ImageError: none of the images can be read.
    """
    places = np.unique(np.linspace(0, len(paths) - 1, min(max_images, len(paths))).astype(int))
    chosen = [paths[place] for place in places]
    with concurrent.futures.ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
        parts = [part for part in pool.map(lambda path: _sums(path, settings), chosen) if part is not None]
    total = sum(parts, start=np.zeros((3, settings.num_channels)))
    if not total[0].any():
        raise ImageError("no_data", f"none of the {len(chosen)} images that were looked at has pixels with data")
    mean = total[1] / total[0]
    return mean, np.sqrt(np.maximum(total[2] / total[0] - mean**2, 0))


def keep(
    folder: str | os.PathLike[str], given: image_settings.ImageSettings = image_settings.DEFAULT
) -> tuple[image_settings.ImageSettings, np.ndarray, np.ndarray]:
    """Measures the images of a folder and keeps what reading them takes beside them, for training to find.

    Args:
      folder: of images.
      given: ImageSettings.

    Returns:
      (ImageSettings with limits where they are needed, mean [C], std [C]).

    Raises:
      UserError: the folder holds no image that can be read.
      OSError: the file cannot be written.
    """
    paths = list_images(folder)
    settings = for_images(paths, given, max_measured=None)
    mean, std = band_statistics(paths, settings)
    image_settings.write_folder(folder, settings, {"mean": mean.round(3).tolist(), "std": std.round(3).tolist()})
    return settings, mean, std


def _sums(path, settings):
    """[3, C]: number, sum and sum of squares of an image's pixels; None where it cannot be read."""
    try:
        with ImageFile(path, settings) as image:
            x, y = max(image.width - 1024, 0) // 2, max(image.height - 1024, 0) // 2
            pixels = image.read(x, y, min(x + 1024, image.width), min(y + 1024, image.height))
    except (ImageError, OSError):
        return None
    pixels = pixels.reshape(-1, pixels.shape[-1])
    # Histograms are exact and take one pass over bytes.
    with_data = pixels[pixels.any(axis=-1)]
    counts = np.stack([np.bincount(channel, minlength=256) for channel in with_data.T]).astype(np.float64)
    values = np.arange(256)
    return np.stack([counts.sum(-1), counts @ values, counts @ values**2])
