"""Detections as GeoJSON."""

import json
import math

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")
from haksnet_jax.results.geojson import Georeference, feature_collection, read_georeference, write_geojson  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
# Half a metre a pixel, north up, in UTM zone 33 north (its central meridian is 15 degrees east, easting 500,000).
UTM = Georeference((0.5, 0.0, 500_000.0, 0.0, -0.5, 5_000_000.0), rasterio.crs.CRS.from_epsg(32633))
DETECTIONS = {
    "boxes": np.array([[100, 40, 20, 10, 0], [300, 50, 30, 8, math.pi / 6]], np.float32),
    "scores": np.array([0.9, 0.25], np.float32),
    "labels": np.array([1, 0], np.int32),
}
CLASS_NAMES = ("ship", "plane")


def ring_area(ring):
    x, y = np.array(ring).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def test_polygons_are_in_the_coordinates_of_the_image():
    collection = feature_collection(DETECTIONS, CLASS_NAMES, UTM, image="harbour")
    first = collection["features"][0]
    # Columns 90 to 110 are 45 to 55 m east of the corner, rows 35 to 45 are 17.5 to 22.5 m south.
    corners = {(500_045.0, 4_999_982.5), (500_055.0, 4_999_982.5), (500_055.0, 4_999_977.5), (500_045.0, 4_999_977.5)}
    ring = first["geometry"]["coordinates"][0]
    assert {tuple(point) for point in ring} == corners
    assert ring[0] == ring[-1] and len(ring) == 5
    assert first["properties"]["label"] == "plane" and first["properties"]["score"] == pytest.approx(0.9, abs=1e-6)
    assert collection["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633" and collection["name"] == "harbour"


@pytest.mark.parametrize("wgs84", [False, True])
def test_rings_run_counter_clockwise(wgs84):
    for feature in feature_collection(DETECTIONS, CLASS_NAMES, UTM, wgs84=wgs84)["features"]:
        assert ring_area(feature["geometry"]["coordinates"][0]) > 0


def test_wgs84_is_longitude_and_latitude():
    collection = feature_collection(DETECTIONS, CLASS_NAMES, UTM, wgs84=True)
    assert "crs" not in collection  # RFC 7946 knows no other system
    longitude, latitude = np.array(collection["features"][0]["geometry"]["coordinates"][0])[:4].mean(axis=0)
    # 50 m east of the central meridian; the meridian's arc of 5,000,000 / 0.9996 m ends at 45.154 degrees north.
    assert longitude == pytest.approx(15 + math.degrees(50 / (6_378_137 * math.cos(math.radians(45.15)))), abs=2e-5)
    assert latitude == pytest.approx(45.154, abs=2e-3)


def test_an_area_is_the_same_in_pixels_and_on_the_ground():
    collection = feature_collection(DETECTIONS, CLASS_NAMES, UTM)
    assert ring_area(collection["features"][1]["geometry"]["coordinates"][0]) == pytest.approx(30 * 8 * 0.25, rel=1e-3)


def test_a_ring_over_the_antimeridian_stays_in_one_piece():
    georeference = Georeference((0.001, 0, 179.95, 0, -0.001, 10), rasterio.crs.CRS.from_epsg(4326))
    detections = {"boxes": np.array([[50, 50, 20, 10, 0]]), "scores": np.array([0.5]), "labels": np.array([0])}
    ring = feature_collection(detections, CLASS_NAMES, georeference, wgs84=True)["features"][0]["geometry"][
        "coordinates"
    ]
    assert np.ptp(np.array(ring[0])[:, 0]) == pytest.approx(0.02, abs=1e-6)


def test_what_cannot_be_placed_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="not known"):
        feature_collection(DETECTIONS, CLASS_NAMES, UTM._replace(crs=None), wgs84=True)
    assert "crs" not in feature_collection(DETECTIONS, CLASS_NAMES, UTM._replace(crs=None))
    far = UTM._replace(transform=(0.5, 0, 1e12, 0, -0.5, 1e12))
    with pytest.raises(ValueError, match="outside"):
        feature_collection(DETECTIONS, CLASS_NAMES, far, wgs84=True)


def test_no_detections_give_an_empty_collection(tmp_path):
    empty = {"boxes": np.zeros((0, 5)), "scores": np.zeros(0), "labels": np.zeros(0, int)}
    for wgs84 in (False, True):
        collection = feature_collection(empty, CLASS_NAMES, UTM, wgs84=wgs84)
        write_geojson(tmp_path / "a.geojson", collection)
        assert json.loads((tmp_path / "a.geojson").read_text()) == collection
    assert [path.name for path in tmp_path.iterdir()] == ["a.geojson"]


def test_other_readers_understand_the_file(tmp_path):
    write_geojson(tmp_path / "a.geojson", feature_collection(DETECTIONS, CLASS_NAMES, UTM))
    shapely = pytest.importorskip("shapely")
    shapes = shapely.from_geojson((tmp_path / "a.geojson").read_text())
    assert [round(shape.area, 1) for shape in shapes.geoms] == [50.0, 60.0]


def test_where_an_image_lies_is_read_from_the_file(tmp_path):
    profile = {"driver": "GTiff", "width": 8, "height": 6, "count": 1, "dtype": "uint8"}
    transform = rasterio.Affine(*UTM.transform)
    with rasterio.open(tmp_path / "a.tif", "w", crs=UTM.crs, transform=transform, **profile) as dataset:
        dataset.write(np.ones((1, 6, 8), np.uint8))
    with rasterio.open(tmp_path / "plain.tif", "w", **profile) as dataset:
        dataset.write(np.ones((1, 6, 8), np.uint8))
    georeference, reason = read_georeference(tmp_path / "a.tif")
    assert georeference.transform == UTM.transform and georeference.crs.to_epsg() == 32633 and not reason
    assert read_georeference(tmp_path / "plain.tif") == (None, "it is not georeferenced")
    assert read_georeference(tmp_path / "none.tif")[0] is None
