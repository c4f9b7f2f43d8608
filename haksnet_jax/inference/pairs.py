"""Two dates of one place on one grid: images of different grids are warped onto that of the earlier one."""

import os
import pathlib
import warnings
from typing import Any

import numpy as np

from haksnet_jax.errors import UserError
from haksnet_jax.images import geotiff
from haksnet_jax.images.geotiff import EXTRA
from haksnet_jax.images.reader import ImageFile
from haksnet_jax.images.settings import DEFAULT, ImageSettings

_TOLERANCE = 1e-6  # of a pixel's side, within which two grids are one


def open_pair(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    scratch: str | os.PathLike[str],
    settings: ImageSettings = DEFAULT,
) -> tuple[Any, Any, str]:
    """Opens two images of one place.

    Args:
      before, after: paths.
      scratch: folder for a warped copy of the later image.
      settings: ImageSettings of both.

    Returns:
      (ImageFile of the earlier image, ImageFile of the later one on the same grid, sentence that says what was done, or
      ""). Close both.

    Raises:
      UserError: an image cannot be read, sizes differ without a georeference, or the places do not overlap.
    """
    first = ImageFile(before, settings)
    try:
        second_path, told = _on_grid_of(first, pathlib.Path(before), pathlib.Path(after), pathlib.Path(scratch))
        second = ImageFile(second_path, settings)
        if (first.height, first.width) != (second.height, second.width):
            second.close()
            raise UserError(
                f"{after} has {second.height} x {second.width} pixels, {before} {first.height} x {first.width}, and "
                "they are not both georeferenced: bring them to one grid first (gdalwarp)"
            )
    except BaseException:
        first.close()
        raise
    return first, second, told


def _on_grid_of(first, before, after, scratch):
    """(path of the later image on the earlier one's grid, sentence)."""
    if first.header.format != "TIFF" or after.suffix.lower() not in (".tif", ".tiff"):
        return after, ""
    try:
        import rasterio
        import rasterio.errors
        import rasterio.shutil
        from rasterio.enums import Resampling
        from rasterio.vrt import WarpedVRT
    except ImportError:
        raise UserError(f"{before}: comparing the grids of two TIFF files needs rasterio: {EXTRA}") from None
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    try:
        with (
            geotiff.open_image(before) as target,
            geotiff.open_image(after) as source,
        ):
            placed = [not dataset.transform.is_identity and dataset.crs is not None for dataset in (target, source)]
            if not all(placed) or _same_grid(target, source):
                return after, ""
            overlap = _shared(target, source)
            if overlap <= 0:
                raise UserError(f"{before} and {after} show different places: their extents do not overlap")
            scratch.mkdir(parents=True, exist_ok=True)
            warped = scratch / f"{after.stem}.warped.tif"
            with WarpedVRT(
                source,
                crs=target.crs,
                transform=target.transform,
                width=target.width,
                height=target.height,
                resampling=Resampling.bilinear,
                add_alpha=source.nodata is None and "alpha" not in [colour.name for colour in source.colorinterp],
            ) as vrt:
                rasterio.shutil.copy(vrt, warped, driver="GTiff", tiled=True, compress="lzw", bigtiff="if_safer")
            told = (
                f"{after.name} ({source.width} x {source.height} pixels, {source.crs}) was warped to the grid of "
                f"{before.name} ({target.width} x {target.height} pixels, {target.crs}); it covers {overlap:.0%} of it"
            )
            return warped, told
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError) as error:
        raise UserError(f"{before} and {after} cannot be brought to one grid: {error!s:.200}") from error


def _same_grid(target, source):
    """Whether two datasets have the same pixels on the ground."""
    if (target.width, target.height) != (source.width, source.height) or target.crs != source.crs:
        return False
    a, b = np.array(target.transform)[:6], np.array(source.transform)[:6]
    corner = np.array([target.width, target.height, 1])
    moved = (a - b).reshape(2, 3) @ corner
    side = max(abs(a[0]) + abs(a[1]), 1e-12)
    return bool(np.abs(moved).max() <= _TOLERANCE * side and np.abs((a - b)[[2, 5]]).max() <= _TOLERANCE * side)


def _shared(target, source):
    """Share of the target's extent that the source covers, by their bounds."""
    from rasterio.warp import transform_bounds

    left, bottom, right, top = transform_bounds(source.crs, target.crs, *source.bounds)
    low, high = sorted((target.bounds.bottom, target.bounds.top))
    width = min(right, target.bounds.right) - max(left, target.bounds.left)
    height = min(max(bottom, top), high) - max(min(bottom, top), low)
    whole = (target.bounds.right - target.bounds.left) * (high - low)
    return max(width, 0) * max(height, 0) / whole
