"""Maps as files: colours, place, rows that come in any portions, polygons with exact areas."""

import json

import numpy as np
import pytest
import shapely.geometry
from PIL import Image

from haksnet_jax.results import dense_maps, map_files

rasterio = pytest.importorskip("rasterio")

COLOURS = [(10, 20, 30), (200, 0, 0), (0, 0, 250)]
HALF_METRES = (0.5, 0.0, 300_000.0, 0.0, -0.5, 2_800_000.0)


def ground(epsg=32640):
    return map_files.Ground(HALF_METRES, rasterio.crs.CRS.from_epsg(epsg))


def blocks(seed=0, size=(600, 530)):
    """A map of rectangles."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(size, np.uint8)
    for value in (1, 2, 1, 0, 255):
        y, x = rng.integers(0, size[0] - 100), rng.integers(0, size[1] - 100)
        labels[y : y + 90, x : x + 70] = value
    return labels


def write(path, labels, portions=(7, 300, 1, 256), place=None):
    writer = map_files.MapWriter(path, *labels.shape, COLOURS, place)
    row, number = 0, 0
    while row < len(labels):
        count = portions[number % len(portions)]
        writer(row, labels[row : row + count])
        row, number = row + count, number + 1
    writer.close()
    return writer


@pytest.mark.parametrize("name", ["map.tif", "map.png"])
def test_a_map_holds_labels_colours_and_place(tmp_path, name):
    labels = blocks()
    writer = write(tmp_path / name, labels, place=ground() if name == "map.tif" else None)
    with Image.open(tmp_path / name) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        assert (np.asarray(image.convert("RGB"))[labels == 1] == COLOURS[1]).all()
    np.testing.assert_array_equal(writer.counts, np.bincount(labels.ravel(), minlength=256))
    if name == "map.tif":
        with rasterio.open(tmp_path / name) as dataset:
            assert dataset.crs.to_epsg() == 32640 and tuple(dataset.transform)[:6] == HALF_METRES
            assert dataset.nodata == 255 and dataset.colormap(1)[2] == (0, 0, 250, 255)


def test_a_preview_is_every_so_many_rows_and_columns(tmp_path):
    labels = blocks()
    writer = map_files.MapWriter(tmp_path / "m.png", *labels.shape, COLOURS, preview_side=100)
    for row in range(0, 600, 11):
        writer(row, labels[row : row + 11])
    np.testing.assert_array_equal(writer.preview, labels[::6, ::6])


def test_what_is_discarded_leaves_nothing(tmp_path):
    for name in ("map.tif", "map.png"):
        writer = map_files.MapWriter(tmp_path / name, 300, 300, COLOURS)
        writer(0, np.zeros((10, 300), np.uint8))
        writer.discard()
    assert not list(tmp_path.iterdir())


def test_polygons_have_the_areas_of_their_pixels_and_lie_where_the_map_does(tmp_path):
    labels = np.zeros((40, 50), np.uint8)
    labels[5:15, 10:30] = 1
    labels[8:10, 15:18] = 0  # a hole
    labels[30, 40] = 2  # one pixel
    write(tmp_path / "m.tif", labels, place=ground())
    written, left_out = map_files.write_polygons(
        tmp_path / "p.geojson", tmp_path / "m.tif", ("ground", "roof", "pool"), ground=ground(), min_pixels=5
    )
    collection = json.loads((tmp_path / "p.geojson").read_text())
    assert collection["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32640"
    assert left_out == 1 and written == len(collection["features"]) == 3
    roof = next(f for f in collection["features"] if f["properties"]["class"] == "roof")
    assert roof["properties"] == {"class": "roof", "pixels": 200 - 6, "square_metres": 0.25 * 194}
    shape = shapely.geometry.shape(roof["geometry"])
    assert shape.area == pytest.approx(0.25 * 194) and len(shape.interiors) == 1
    assert shape.bounds == (300_005.0, 2_799_992.5, 300_015.0, 2_799_997.5)
    assert shape.exterior.is_ccw and not shape.interiors[0].is_ccw


def test_areas_are_told_in_square_metres_where_the_coordinate_system_has_metres_or_feet(tmp_path):
    assert ground(32640).square_metres == 0.25
    assert ground(2263).square_metres == pytest.approx(0.25 * 0.3048006**2, rel=1e-6)  # New York, US survey feet
    assert ground(4326).square_metres is None
    counts = np.bincount([0] * 6 + [1] * 2 + [255], minlength=256)
    found = map_files.areas(counts, ("a", "b"), 0.25)
    assert found["classes"]["a"] == {"pixels": 6, "share": 0.75, "square_metres": 1.5} and found["without_data"] == 1


def test_an_overlay_shows_the_image_where_a_class_is_transparent():
    image = np.full((20, 20, 3), 100, np.uint8)
    labels = np.zeros((20, 20), np.uint8)
    labels[5:10, 5:10] = 1
    drawn = dense_maps.overlay(image, labels, COLOURS, transparent=(0,))
    np.testing.assert_array_equal(drawn[0, 0], (100, 100, 100))
    assert drawn[7, 7, 0] > 140 and drawn[7, 7, 2] < 60


def test_a_comparison_shows_images_prediction_and_labels_below_their_titles():
    labels = np.zeros((40, 60), np.uint8)
    labels[:, 30:] = 1
    labels[:5] = 255
    image = np.full((40, 60, 3), 7, np.uint8)
    drawn = dense_maps.comparison({"before": image, "after": image + 1}, 1 - labels.clip(0, 1), labels, COLOURS)
    panels = [drawn[-40:, start : start + 60] for start in range(0, 4 * 64, 64)]
    assert drawn.shape == (40 + 22, 4 * 64 - 4, 3)
    assert (panels[0] == 7).all() and (panels[1] == 8).all()
    assert (panels[3][10, 10] == COLOURS[0]).all() and (panels[2][10, 10] == COLOURS[1]).all()
    assert (panels[2][:5] == 0).all()  # no prediction where there is no label
    assert all((drawn[:22, start : start + 60] < 100).any() for start in range(0, 4 * 64, 64))  # a title above each
