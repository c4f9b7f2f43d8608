"""Two dates on one grid: the same, warped, of another place, or without any place."""

import numpy as np
import pytest

from haksnet_jax.errors import UserError
from haksnet_jax.inference.pairs import open_pair

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


def write(path, pixels, transform=None, crs="EPSG:32640"):
    place = {} if transform is None else {"transform": rasterio.Affine(*transform), "crs": crs}
    with rasterio.open(
        path, "w", driver="GTiff", height=pixels.shape[0], width=pixels.shape[1], count=3, dtype="uint8",
        photometric="rgb", **place,
    ) as file:  # fmt: skip
        file.write(np.moveaxis(pixels, -1, 0))
    return path


def smooth(rows, columns, step=1.0):
    """Colours that are a function of the place, in units of the first grid."""
    y, x = np.mgrid[:rows, :columns] * step + step / 2
    return np.stack([128 + 60 * np.sin(x / 9), 128 + 60 * np.cos(y / 7), x + y], axis=-1).clip(0, 255).astype(np.uint8)


GRID = (1.0, 0, 1000.0, 0, -1.0, 5000.0)


def test_images_of_one_grid_are_taken_as_they_are(tmp_path):
    before, after = (write(tmp_path / name, smooth(40, 60), GRID) for name in ("a.tif", "b.tif"))
    first, second, told = open_pair(before, after, tmp_path / "scratch")
    np.testing.assert_array_equal(first.read(0, 0, 60, 40), second.read(0, 0, 60, 40))
    assert not told and not (tmp_path / "scratch").exists()


def test_a_later_image_of_another_grid_is_warped_to_the_earlier_ones(tmp_path):
    before = write(tmp_path / "a.tif", smooth(40, 60), GRID)
    # half the size of pixels, from five pixels further right: the left of the earlier image is not covered
    fine = smooth(80, 120, step=0.5)[:, 10:]
    after = write(tmp_path / "b.tif", fine, (0.5, 0, 1005.0, 0, -0.5, 5000.0))
    first, second, told = open_pair(before, after, tmp_path / "scratch")
    assert (second.height, second.width) == (40, 60)
    assert told.startswith("b.tif (110 x 80 pixels, EPSG:32640) was warped to the grid of a.tif") and "92%" in told
    # two interpolations apart, of colours that change by a few units a pixel
    assert np.abs(second.read(7, 2, 58, 38).astype(int) - first.read(7, 2, 58, 38)).max() <= 6
    alpha, _ = second.samples(0, 0, 60, 40, [second.band_names.index("alpha")])
    assert (alpha[:, :4] == 0).all() and (alpha[2:38, 7:58] > 0).all()


def test_images_of_different_places_are_refused(tmp_path):
    before = write(tmp_path / "a.tif", smooth(40, 60), GRID)
    after = write(tmp_path / "b.tif", smooth(40, 60), (1.0, 0, 9000.0, 0, -1.0, 5000.0))
    with pytest.raises(UserError, match="show different places"):
        open_pair(before, after, tmp_path / "scratch")


def test_sizes_that_differ_without_a_place_are_refused(tmp_path):
    before = write(tmp_path / "a.tif", smooth(40, 60))
    after = write(tmp_path / "b.tif", smooth(30, 60))
    with pytest.raises(UserError, match=r"has 30 x 60 pixels, .* 40 x 60, and they are not both georeferenced"):
        open_pair(before, after, tmp_path / "scratch")
