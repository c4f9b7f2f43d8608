"""One scene written in many forms is one image to whoever reads it."""

import cv2
import numpy as np
import pytest

from haksnet_jax.images import geotiff, reader
from haksnet_jax.images.headers import ImageError
from haksnet_jax.images.reader import ImageFile
from haksnet_jax.images.settings import ImageSettings
from haksnet_jax.pipeline.sources import FolderSource
from haksnet_jax.preparation import splitting, validation
from haksnet_jax.results import geojson
from haksnet_jax.results.tiles import windows

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
RGB = np.random.default_rng(5).integers(0, 256, (48, 56, 3), np.uint8)
GREY = RGB[..., :1]
NEAR_INFRARED = np.random.default_rng(6).integers(0, 256, (48, 56, 1), np.uint8)


def write_tiff(path, pixels, colours=None, **profile):
    """Writes [H, W, C] as TIFF, channels in the order of the array."""
    rows, columns, channels = pixels.shape
    size = {"width": columns, "height": rows, "count": channels, "dtype": profile.pop("dtype", pixels.dtype)}
    with rasterio.open(path, "w", driver="GTiff", **size, **profile) as dataset:
        if colours:
            dataset.colorinterp = [rasterio.enums.ColorInterp[colour] for colour in colours.split()]
        dataset.write(np.moveaxis(pixels, -1, 0))
    return path


def write_palette(path):
    indexes = np.arange(48 * 56, dtype=np.uint16).reshape(48, 56)
    with rasterio.open(
        path, "w", driver="GTiff", width=56, height=48, count=1, dtype="uint8", photometric="PALETTE"
    ) as file:
        colours = RGB.reshape(-1, 3)[:256]
        file.write_colormap(1, {index: (*map(int, colour), 255) for index, colour in enumerate(colours)})
        file.write((indexes % 256).astype(np.uint8), 1)
    return colours[indexes % 256]


def deep(pixels, largest=2047):
    """8 bits as more of them; scaled back, they are what they were."""
    return ((pixels.astype(np.uint32) * largest + 127) // 255).astype(np.uint16)


# Name of the form: (function of a path that writes it, pixels that it shows, settings)
BRIGHT = RGB.copy()
BRIGHT[0, 0] = 255
EMPTY = BRIGHT.copy()
EMPTY[2:4, 5:9] = 0
HOLE = np.where((EMPTY == 0).all(-1, keepdims=True), np.uint16(65535), deep(BRIGHT))
NONE = ImageSettings()
TIFFS = {
    "striped": ({}, RGB),
    "tiled": ({"tiled": True, "blockxsize": 16, "blockysize": 16}, RGB),
    "planes": ({"interleave": "band"}, RGB),
    "big": ({"BIGTIFF": "YES"}, RGB),
    "big_endian": ({"ENDIANNESS": "BIG"}, RGB),
    "rgb": ({"photometric": "RGB"}, RGB),
    "declared_as_grey": ({"photometric": "MINISBLACK"}, RGB),
    **{
        name: ({"compress": name, "tiled": True, "blockxsize": 16, "blockysize": 16}, RGB)
        for name in ("packbits", "lzw", "deflate", "zstd", "lerc", "lzma")
    },
    "predictor": ({"compress": "deflate", "predictor": 2}, RGB),
    "webp": ({"compress": "webp", "WEBP_LOSSLESS": "YES"}, RGB),
}
FORMS = {
    "bmp": (lambda path: cv2.imwrite(str(path), RGB[..., ::-1]), RGB, NONE),
    "png": (lambda path: cv2.imwrite(str(path), RGB[..., ::-1]), RGB, NONE),
    "alpha.png": (lambda path: cv2.imwrite(str(path), np.dstack([RGB[..., ::-1], GREY])), RGB, NONE),
    "grey.png": (lambda path: cv2.imwrite(str(path), GREY), GREY.repeat(3, -1), NONE),
    "grey.bmp": (lambda path: cv2.imwrite(str(path), GREY), GREY.repeat(3, -1), NONE),
    "16_bits.png": (lambda path: cv2.imwrite(str(path), deep(BRIGHT)[..., ::-1]), BRIGHT, NONE),
    **{
        f"{name}.tif": (lambda path, options=options: write_tiff(path, RGB, **options), shown, NONE)
        for name, (options, shown) in TIFFS.items()
    },
    "grey.tif": (lambda path: write_tiff(path, GREY), GREY.repeat(3, -1), NONE),
    "min_is_white.tif": (
        lambda path: write_tiff(path, 255 - GREY, photometric="MINISWHITE"),
        GREY.repeat(3, -1),
        NONE,
    ),
    "1_bit.tif": (lambda path: write_tiff(path, GREY // 128, nbits=1), (GREY // 128 * 255).repeat(3, -1), NONE),
    "1_bit_min_is_white.tif": (
        lambda path: write_tiff(path, 1 - GREY // 128, nbits=1, photometric="MINISWHITE"),
        (GREY // 128 * 255).repeat(3, -1),
        NONE,
    ),
    "4_bits.tif": (lambda path: write_tiff(path, GREY // 16, nbits=4), (GREY // 16 * 17).repeat(3, -1), NONE),
    "12_bits.tif": (lambda path: write_tiff(path, deep(BRIGHT, 4095), nbits=12), BRIGHT, NONE),
    "11_of_16_bits.tif": (lambda path: write_tiff(path, deep(BRIGHT)), BRIGHT, NONE),
    "16_bits.tif": (lambda path: write_tiff(path, BRIGHT.astype(np.uint16) * 257), BRIGHT, NONE),
    "nodata.tif": (lambda path: write_tiff(path, HOLE, nodata=65535), EMPTY, NONE),
    "stated_nodata.tif": (lambda path: write_tiff(path, HOLE), EMPTY, ImageSettings(nodata=65535)),
    "nodata_8_bits.tif": (
        lambda path: write_tiff(
            path, np.where((EMPTY == 0).all(-1, keepdims=True), 7, BRIGHT).astype(np.uint8), nodata=7
        ),
        EMPTY,
        NONE,
    ),
    "signed.tif": (
        lambda path: write_tiff(path, RGB.astype(np.int16) * 50 - 3000),
        RGB,
        ImageSettings(limits=(-3000, 9750)),
    ),
    "float.tif": (
        lambda path: write_tiff(path, RGB.astype(np.float32) / 255, nodata=np.nan),
        RGB,
        ImageSettings(limits=(0, 1)),
    ),
    "alpha.tif": (lambda path: write_tiff(path, np.dstack([RGB, NEAR_INFRARED]), alpha="yes"), RGB, NONE),
    "near_infrared.tif": (lambda path: write_tiff(path, np.dstack([RGB, NEAR_INFRARED])), RGB, NONE),
    "blue_first.tif": (
        lambda path: write_tiff(path, np.dstack([RGB[..., ::-1], NEAR_INFRARED]), "blue green red undefined"),
        RGB,
        NONE,
    ),
    "two_bands.tif": (lambda path: write_tiff(path, np.dstack([GREY, NEAR_INFRARED])), GREY.repeat(3, -1), NONE),
    "five_bands.tif": (lambda path: write_tiff(path, np.dstack([RGB, NEAR_INFRARED, GREY])), RGB, NONE),
    "chosen_bands.tif": (
        lambda path: write_tiff(path, np.dstack([NEAR_INFRARED, RGB[..., ::-1]])),
        RGB,
        ImageSettings(bands=(4, 3, 2)),
    ),
    "named_bands.tif": (
        lambda path: write_tiff(path, np.dstack([NEAR_INFRARED, RGB]), "undefined red green blue"),
        np.dstack([RGB[..., 2], RGB[..., 0], NEAR_INFRARED, RGB[..., 0]]),
        ImageSettings(bands=("blue", 2, 1, "Red")),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_scene_in_many_forms_is_one_image_to_every_reader(form, tmp_path):
    write, shown, settings = FORMS[form]
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / (form if "." in form else f"a.{form}")
    write(path)
    np.testing.assert_array_equal(reader.read(path, settings), shown)  # what evaluation and records read
    with ImageFile(path, settings, whole_up_to=0) as image:  # prediction, by windows
        assert (image.width, image.height) == (56, 48)
        for x1, y1, x2, y2 in windows(56, 48, 24, 8, padding=False).tolist():
            np.testing.assert_array_equal(image.read(x1, y1, x2, y2), shown[y1:y2, x1:x2])
    source = FolderSource(tmp_path / "images", None, ("ship",), image_settings=settings)  # training
    np.testing.assert_array_equal(source[0]["image"], shown)
    report = validation.validate(tmp_path / "images", settings=settings)
    assert not report.lost, report.problems
    parameters = splitting.Parameters(tile=32, overlap=8, images=settings)
    summary = splitting.split([tmp_path / "images"], [], tmp_path / "tiles", parameters, num_workers=0)
    assert summary.num_tiles == 4 and not summary.problems
    tiles = FolderSource(tmp_path / "tiles/images", None, ("ship",))  # the settings lie beside the tiles
    for index, name in enumerate(tiles.image_ids):
        x, y = int(name.split("__")[2]), int(name.split("___")[1])
        tile = tiles[index]["image"][: 48 - y, : 56 - x]
        np.testing.assert_array_equal(tile, shown[y : y + 32, x : x + 32])


def test_a_palette_shows_its_colours(tmp_path):
    shown = write_palette(tmp_path / "a.tif")
    np.testing.assert_array_equal(reader.read(tmp_path / "a.tif"), shown)


def test_a_jpeg_is_the_same_in_a_tiff(tmp_path):
    """Not bit for bit: libjpeg's colour conversion is asked for by two libraries."""
    smooth = cv2.resize(RGB[:6, :7], (112, 96), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "a.jpg"), smooth[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    write_tiff(tmp_path / "a.tif", smooth, compress="jpeg", photometric="YCBCR", JPEG_QUALITY=95)
    assert np.abs(reader.read(tmp_path / "a.jpg").astype(int) - reader.read(tmp_path / "a.tif")).max() < 24
    grey = cv2.imencode(".jpg", smooth[..., 0])[1].tobytes()
    pixels = reader.decode(grey, "a")
    assert pixels.shape == (96, 112, 3) and (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "png_inside.jpg"])
def test_colours_come_as_red_green_blue(tmp_path, name):
    path = tmp_path / name
    if name.endswith("tif"):
        write_tiff(path, RGB)
    else:
        path.write_bytes(cv2.imencode(".bmp" if name.endswith("bmp") else ".png", RGB[..., ::-1])[1].tobytes())
    with ImageFile(path) as image:
        assert (image.width, image.height) == (56, 48)
        np.testing.assert_array_equal(image.read(3, 5, 20, 31), RGB[5:31, 3:20])


def test_sixteen_bits_are_scaled_by_the_whole_image_and_not_by_the_window(tmp_path):
    pixels = np.full((40, 40, 1), 100, np.uint16)
    pixels[30:, 30:] = 1000  # 10 bits: 255 / 1023
    pixels[:5] = 65535
    with ImageFile(write_tiff(tmp_path / "a.tif", pixels, nodata=65535), whole_up_to=0) as image:
        assert image.read(0, 10, 20, 20).tolist() == np.full((10, 20, 3), 25).tolist()  # 24.93
        assert image.read(30, 30, 40, 40).max() == 249
        assert image.read(0, 0, 40, 5).max() == 0
    cv2.imwrite(str(tmp_path / "a.png"), pixels[5:])
    with ImageFile(tmp_path / "a.png") as image:
        assert image.read(0, 0, 1, 1).tolist() == [[[25, 25, 25]]]


def test_images_that_cannot_be_used_are_refused_in_a_sentence(tmp_path):
    whole = cv2.imencode(".png", RGB)[1].tobytes()
    cases = {
        "short.png": (whole[: len(whole) // 2], "truncated"),
        "empty.png": (b"", "empty"),
        "page.png": (b"<html>", "expected a PNG"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=rf"{name}: .*{message}"):
            ImageFile(tmp_path / name)
    write_tiff(tmp_path / "float.tif", RGB.astype(np.float32))
    with pytest.raises(ImageError, match=r"float\.tif: .*floating-point.*--limits.*data\.limits"):
        ImageFile(tmp_path / "float.tif")
    write_tiff(tmp_path / "signed.tif", RGB.astype(np.int16))
    with pytest.raises(ImageError, match=r"signed\.tif: .*negative"):
        ImageFile(tmp_path / "signed.tif")
    with pytest.raises(ImageError, match=r"signed\.tif: the image lacks band 'nir'; its 3 bands: 1 .*"):
        ImageFile(tmp_path / "signed.tif", ImageSettings(bands=(1, "nir")))
    path = write_tiff(tmp_path / "cut.tif", RGB)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ImageError, match=r"cut\.tif: .*truncated"):
        ImageFile(path)


def test_without_rasterio_plain_tiffs_are_read_and_others_name_the_extra(tmp_path, monkeypatch):
    plain = [
        name for name in TIFFS if name not in ("tiled", "planes", "declared_as_grey", "lerc", "zstd", "lzma", "webp")
    ]
    for name in plain:
        write_tiff(tmp_path / f"{name}.tif", RGB, **{**TIFFS[name][0], "photometric": "RGB"})
    write_tiff(tmp_path / "alpha.tif", np.dstack([RGB, GREY]))
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    for name in plain:
        np.testing.assert_array_equal(reader.read(tmp_path / f"{name}.tif"), RGB)
    with pytest.raises(ImageError, match=r"alpha\.tif: .*pip install rasterio"):
        reader.read(tmp_path / "alpha.tif")


def test_a_thumbnail_shows_the_whole_image(tmp_path, monkeypatch):
    smooth = cv2.resize(RGB, (560, 400), interpolation=cv2.INTER_CUBIC)
    path = write_tiff(tmp_path / "a.tif", smooth)
    monkeypatch.setattr("haksnet_jax.images.reader._PIECE", 560 * 40)
    with ImageFile(path) as image:
        small, factor = image.thumbnail(140)
        assert small.shape == (100, 140, 3) and factor == 0.25
        np.testing.assert_array_equal(small, cv2.resize(smooth, (140, 100), interpolation=cv2.INTER_AREA))
        assert image.thumbnail(1000)[0].shape == (400, 560, 3)


@pytest.mark.parametrize("channels, shown", [(1, (0, 0, 0)), (2, (0, 0, 0)), (3, (0, 1, 2)), (5, (0, 1, 2))])
def test_bands_of_any_number_are_drawn_as_a_picture(channels, shown):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, channels), np.uint8)
    np.testing.assert_array_equal(reader.picture(pixels), pixels[..., list(shown)])


@pytest.mark.parametrize(
    "content",
    [
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        "<SourceFilename>/vsicurl/http://127.0.0.1:9/a.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>",
        '<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:9/</ServerUrl></Service></GDAL_WMS>',
    ],
)
def test_a_file_that_names_others_is_opened_by_no_driver_of_gdal(tmp_path, content):
    pytest.importorskip("rasterio")
    path = tmp_path / "a.tif"
    path.write_text(content)
    with pytest.raises(ImageError, match="expected a PNG, JPEG, BMP or TIFF"):
        geotiff.open_image(path)
    found, why = geojson.read_georeference(path)
    assert found is None and "its place cannot be read" in why


def test_coordinate_systems_are_codes_or_wkt_alone(tmp_path):
    crs = pytest.importorskip("rasterio.crs").CRS.from_epsg(32632)
    for text in ("EPSG:32632", "epsg:32632", "urn:ogc:def:crs:EPSG::32632", crs.to_wkt()):
        assert geotiff.coordinate_system(text) == crs
    assert geotiff.coordinate_system("http://www.opengis.net/def/crs/EPSG/0/32632") == crs
    (tmp_path / "crs").write_text(crs.to_wkt())
    for text in (str(tmp_path / "crs"), "http://127.0.0.1:9/crs", "+proj=utm +zone=32", "", "A" * 200_000):
        with pytest.raises(ImageError, match="coordinate system"):
            geotiff.coordinate_system(text)
