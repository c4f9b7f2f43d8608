"""The loaded detector: reading of images, resizing, windows, merging, and agreement with the reference."""

import cv2
import jax
import numpy as np
import pytest
from bright_objects import find_bright, save_tiny, scene, use_bright_objects

import haksnet_jax
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.inference.predictor import DetectionError, Detector, ImageFile, Settings, _cut_off, _View, merge
from haksnet_jax.results.tiles import windows
from haksnet_jax.training import checkpoint

MOST = 40  # detections of the small network for an image: more than it finds by default, fewer than above 0.01

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, golden_file):
    return save_tiny(
        tmp_path_factory.mktemp("model") / "tiny", golden_file("state_dict_tiny.json"), input_size=(128, 128)
    )


def load(folder, **options):
    # One device: the tests run with four, and a program for four takes longer to compile.
    return haksnet_jax.load(folder, accelerators=jax.local_devices()[:1], **options)


@pytest.fixture(scope="module")
def loaded(tiny):
    """A detector before its first image; the tests that use it put a network into it."""
    return load(tiny, batch_size=3)


@pytest.fixture
def bright(loaded, monkeypatch):
    """(detector of bright rectangles, its counters)."""
    monkeypatch.setattr(loaded, "_steps", {})
    return loaded, use_bright_objects(monkeypatch)


def corner_distance(box, boxes):
    """[n] largest distance of corresponding corners, whichever corner comes first."""
    one = boxes_to_corners(np.asarray(box, np.float64)[None])[0]
    others = boxes_to_corners(np.asarray(boxes, np.float64).reshape(-1, 5))
    return np.min([abs(np.roll(others, k, axis=1) - one).max(axis=(1, 2)) for k in range(4)], axis=0)


def assert_finds(detections, boxes, tolerance=1.5):
    """Each object once. The tolerance: pixels are whole, rotated edges have steps."""
    assert len(detections["boxes"]) == len(boxes)
    for cx, cy, w, h, degrees in boxes:
        box = (cx, cy, w, h, np.deg2rad(degrees))
        assert corner_distance(box, detections["boxes"]).min() < tolerance


# ------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize(
    ("fixture", "image", "prefix"),
    [
        ("inference_pipeline_tiny", "input_small.png", ""),
        # Another shape, which takes as long to compile again.
        pytest.param("inference_tiny", "input_image.png", "full/", marks=pytest.mark.slow),
    ],
)
def test_detections_are_those_of_the_reference(golden, golden_file, tmp_path, fixture, image, prefix):
    recorded, path = golden(fixture), golden_file(image)
    folder = save_tiny(tmp_path / "tiny", golden_file("state_dict_tiny.json"), input_size=(1024, 1024))
    found = load(folder)(path, resize="fit")
    boxes, labels = recorded[f"{prefix}det_boxes"], recorded[f"{prefix}det_labels"]

    def without_counterpart(first, second):
        count = 0
        for box, score, label in zip(*first, strict=True):
            same = (second[2] == label) & (abs(second[1] - score) < 1e-3)
            # Smaller than the manifest's 0.1 to 0.2 pixel; decisions at a threshold may flip with rounding.
            count += not (same.any() and corner_distance(box, second[0][same]).min() < 0.1)
        return count

    ours = (found["boxes"], found["scores"], found["labels"])
    theirs = (boxes[:, :5], boxes[:, 5], labels)
    allowed = max(1, 0.005 * len(boxes))
    assert without_counterpart(theirs, ours) <= allowed
    assert without_counterpart(ours, theirs) <= allowed


@pytest.fixture(scope="module")
def real(tiny):
    """The network with caps of its own: what is looked at here needs no thousand proposals."""
    arrays, info = checkpoint.load_model(tiny)
    proposals = {"candidates_per_level": 200, "max_proposals": 200, "iou_threshold": 0.8}
    info |= {"proposals": proposals, "detections": {"iou_threshold": 0.1, "max_detections": MOST}}
    return Detector(arrays, info, accelerators=jax.local_devices()[:1])


def test_an_image_is_fitted_padded_and_scaled_back(real):
    image = np.random.default_rng(0).integers(0, 255, (48, 40, 3), np.uint8)
    found = real(image, resize="fit")
    # By hand: 128 / 48 makes it 128 x 107 (106.67), padded to 128 x 128.
    canvas = np.zeros((1, 128, 128, 3), np.uint8)
    canvas[0, :, :107] = cv2.resize(image, (107, 128), interpolation=cv2.INTER_LINEAR)
    ones = np.ones((1, 2), np.float32)
    expected = real._detect(canvas, np.array([[128, 107]], np.int32), ones, Settings(), spread=False)
    valid = np.asarray(expected.valid[0])
    assert valid.sum() > 3
    factors = np.array([107 / 40, 128 / 48] * 2 + [1], np.float32)
    np.testing.assert_allclose(found["boxes"], np.asarray(expected.boxes[0])[valid] / factors, rtol=1e-5)
    np.testing.assert_array_equal(found["scores"], np.asarray(expected.scores[0])[valid])
    assert found["boxes"].dtype == np.float32 and found["labels"].dtype == np.int32


def test_a_higher_score_leaves_out_the_weak_ones_without_compiling_again(real):
    image = np.random.default_rng(0).integers(0, 255, (48, 40, 3), np.uint8)
    everything, some = real(image), real(image, score=0.3)
    shapes = real.num_shapes
    strong = everything["scores"] > 0.3
    assert 0 < strong.sum() < len(strong)
    np.testing.assert_array_equal(some["boxes"], everything["boxes"][strong])
    real(np.random.default_rng(1).integers(0, 255, (128, 120, 3), np.uint8))
    assert real.num_shapes == shapes == 1


def test_the_caps_of_a_model_bind_its_detector(real):
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    (found,) = real.stream([image], Settings(score=0.01))
    assert len(found.detections["scores"]) == MOST and found.num_cut > 0


def test_one_window_of_the_size_of_the_image_gives_the_same_as_fitting(real):
    image = np.random.default_rng(1).integers(0, 255, (128, 128, 3), np.uint8)
    fitted, tiled = real(image, resize="fit"), real(image, resize="tile")
    for name in fitted:
        np.testing.assert_array_equal(fitted[name], tiled[name])


def test_a_backbone_alone_and_odd_settings_are_refused(tiny):
    arrays, info = checkpoint.load_model(tiny)
    backbone = info | {"architecture": info["architecture"] | {"fpn_channels": None, "num_classes": None}}
    with pytest.raises(checkpoint.CheckpointError, match="backbone"):
        Detector(arrays, backbone)
    with pytest.raises(checkpoint.CheckpointError, match=r"3 classes.*15"):
        Detector(arrays, info | {"class_names": ["a", "b", "c"]})
    with pytest.raises(checkpoint.CheckpointError, match="does not know: most"):
        Detector(arrays, info | {"proposals": {"most": 3}})
    assert Detector(arrays, info).max_detections == 2000  # upstream's, for a model that does not say
    with pytest.raises(checkpoint.CheckpointError, match="input_size"):
        Detector(arrays, {name: value for name, value in info.items() if name != "input_size"})
    with pytest.raises(checkpoint.CheckpointError, match=r"fc_1.*missing"):
        Detector({name: value for name, value in arrays.items() if "fc_1" not in name}, info)
    detector = load(tiny)
    for settings, message in (
        ({"resize": "stretch"}, "resize"),
        ({"score": 0.0}, "score"),
        ({"scales": ()}, "scales"),
        ({"tile": 100}, "tile"),
        ({"overlap": 128}, "overlap"),
    ):
        with pytest.raises(DetectionError, match=message):
            detector(np.zeros((8, 8, 3), np.uint8), **settings)


# ------------------------------------------------------------------------ windows, with a stand-in


def test_an_object_on_the_border_of_windows_is_found_once(bright):
    # Windows of 128, 48 shared: they begin at 0, 80, 160, ... Objects lie over every edge and over a crossing.
    boxes = [
        (80, 40, 30, 10, 0),
        (128, 90, 36, 12, 30),
        (160, 160, 24, 16, 70),
        (128, 208, 40, 10, 90),
        (20, 20, 12, 8, 5),
    ]
    detector, _ = bright
    image = scene(300, 340, boxes)
    assert_finds(detector(image, resize="tile", overlap=48), boxes)


def test_pieces_at_an_edge_do_not_stay_beside_their_object(bright):
    # 4 of 40 columns lie in the first window: an IoU of 0.1 and less, which merging by overlap would leave.
    boxes = [(144, 60, 40, 10, 0)]
    detector, _ = bright
    assert len(find_bright(scene(128, 260, boxes)[:, :128])) == 1
    assert_finds(detector(scene(128, 260, boxes), resize="tile", overlap=48), boxes, 0.6)


def test_an_object_larger_than_the_overlap_stays(bright):
    boxes = [(128, 64, 110, 12, 0)]  # no window of 128 with 16 shared holds it
    detector, _ = bright
    assert len(detector(scene(128, 260, boxes), resize="tile", overlap=16)["boxes"]) >= 1


def test_boxes_that_reach_an_inner_edge_are_left_to_the_window_that_holds_them():
    grid = (100, np.array([0, 80]), np.array([0]), 180, 100)
    boxes = np.array([[96, 50, 8, 4, 0], [85, 50, 8, 4, 0], [60, 50, 80, 4, 0], [50, 2, 10, 4, 0]], np.float32)
    view = _View(0, (0, 0), (1.0, 1.0), None, grid)
    # The third reaches both windows' edges; the fourth reaches the image's edge alone.
    assert _cut_off(boxes, view).tolist() == [True, False, False, False]


def test_windows_of_one_colour_are_skipped_and_counted(bright):
    detector, stand_in = bright
    image = scene(128, 288, [(20, 20, 12, 8, 5)])
    image[:, 80:] = 77  # windows begin at 0, 80 and 160
    (found,) = detector.stream([image], Settings(resize="tile", overlap=48))
    assert (found.num_views, found.num_skipped) == (1, 2) and stand_in.num_images == 1
    (found,) = detector.stream([np.zeros((200, 300, 3), np.uint8)])
    assert found.num_views == 0 and len(merge(found, Settings())["boxes"]) == 0


def test_batches_have_one_shape_whatever_the_number_of_windows(bright):
    detector, stand_in = bright
    images = [scene(130 + 50 * n, 300, [(40, 40, 20, 10, 0)]) for n in range(3)]
    found = list(detector.stream(images, Settings(resize="tile", overlap=48)))
    assert sorted(one.index for one in found) == [0, 1, 2]
    assert stand_in.shapes == {(3, 128, 128, 3)}
    assert all(len(merge(one, Settings())["boxes"]) == 1 for one in found)


def test_small_images_are_fitted_and_large_ones_tiled(bright):
    detector, stand_in = bright
    detector(scene(128, 100, []))
    assert stand_in.shapes == {(1, 128, 128, 3)}  # 100 columns, padded up to the next multiple of 32
    stand_in.shapes.clear()
    detector(scene(129, 100, []))
    assert stand_in.shapes == {(3, 128, 128, 3)}
    stand_in.shapes.clear()
    detector(scene(60, 200, []), resize="fit")
    assert stand_in.shapes == {(1, 64, 128, 3)}  # 38.4 rows
    stand_in.shapes.clear()
    detector(scene(60, 200, []), resize="fit", pad="full")
    assert stand_in.shapes == {(1, 128, 128, 3)}


def test_an_oblong_input_lies_as_the_image_does(tiny, monkeypatch):
    stand_in = use_bright_objects(monkeypatch)
    arrays, info = checkpoint.load_model(tiny)
    detector = Detector(arrays, info | {"input_size": [64, 128]}, accelerators=jax.local_devices()[:1])
    detector(scene(300, 100, []), resize="fit")  # upstream: the longer side within 128, the shorter within 64
    assert stand_in.shapes == {(1, 128, 64, 3)}


@pytest.mark.parametrize("resize", ["fit", "tile"])
def test_mirrored_and_scaled_views_find_each_object_once_in_its_place(bright, resize):
    boxes = [(50, 60, 40, 16, 25), (80, 100, 20, 30, 0)]
    detector, stand_in = bright
    image = scene(128, 110, boxes)
    found = detector(image, resize=resize, overlap=32, flip=True)
    assert stand_in.num_images == 2
    # The mirror image of W pixels puts pixel x at W - 1 - x as in training, while outer edges go to W - x.
    assert_finds(found, boxes, 2.5)
    found = detector(image, resize=resize, overlap=32, scales=(1.0, 2.0), flip=True)
    assert_finds(found, boxes, 2.5)


def test_images_in_memory_are_checked(bright):
    detector, _ = bright
    grey = scene(64, 64, [(30, 30, 20, 10, 0)])[..., 0]
    assert len(detector(grey)["boxes"]) == 1
    for wrong in (np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(DetectionError, match="uint8"):
            detector(wrong)


def test_an_unreadable_image_does_not_stop_the_others(bright, tmp_path):
    detector, _ = bright
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    good = scene(128, 300, [(100, 40, 20, 10, 0)])
    found = {one.index: one for one in detector.stream([good, bad, tmp_path / "none.png", good])}
    assert [found[index].error is None for index in range(4)] == [True, False, False, True]
    assert "bad.png" in str(found[1].error) and isinstance(found[2].error, FileNotFoundError)
    with pytest.raises(ValueError, match=r"bad\.png"):
        detector(bad)


def test_a_consumer_that_leaves_early_stops_the_reading(bright):
    detector, _ = bright
    taken = []

    def images():
        for number in range(1000):
            taken.append(number)
            yield scene(64, 64, [])

    stream = detector.stream(images())
    next(stream)
    stream.close()
    assert len(taken) < 20


def test_an_error_of_the_iterable_reaches_the_consumer(bright):
    def images():
        yield scene(64, 64, [])
        raise RuntimeError("lost the network drive")

    with pytest.raises(RuntimeError, match="network drive"):
        list(bright[0].stream(images()))


# ------------------------------------------------------------------------------------- image files


def write_tiff(path, pixels, **profile):
    """Writes [H, W, C] as TIFF, channels in the order of the array."""
    with rasterio.open(
        path, "w", driver="GTiff", width=pixels.shape[1], height=pixels.shape[0], count=pixels.shape[2],
        dtype=pixels.dtype, **profile,
    ) as dataset:  # fmt: skip
        dataset.write(np.moveaxis(pixels, -1, 0))
    return path


RGB = np.random.default_rng(5).integers(0, 256, (40, 56, 3), np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "png_inside.jpg"])
def test_colours_come_as_red_green_blue(tmp_path, name):
    path = tmp_path / name
    if name.endswith("tif"):
        write_tiff(path, RGB)
    else:
        path.write_bytes(cv2.imencode(".bmp" if name.endswith("bmp") else ".png", RGB[..., ::-1])[1].tobytes())
    with ImageFile(path) as image:
        assert (image.width, image.height) == (56, 40)
        np.testing.assert_array_equal(image.read(3, 5, 20, 31), RGB[5:31, 3:20])


def test_windows_of_a_large_tiff_are_those_of_the_whole(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "a.tif", RGB, tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    monkeypatch.setattr("haksnet_jax.inference.predictor._WHOLE_UP_TO", 0)
    with ImageFile(path) as image:
        assert image._reader._pixels is None
        for x1, y1, x2, y2 in windows(56, 40, 24, 8, padding=False).tolist():
            np.testing.assert_array_equal(image.read(x1, y1, x2, y2), RGB[y1:y2, x1:x2])


@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_other_numbers_of_channels_become_three(tmp_path, channels):
    pixels = np.random.default_rng(channels).integers(0, 256, (20, 24, channels), np.uint8)
    with ImageFile(write_tiff(tmp_path / "a.tif", pixels)) as image:
        read = image.read(0, 0, 24, 20)
    # Grey is repeated; a fourth channel is left out; of more than four the first three are blue, green, red.
    expected = {4: pixels[..., :3], 8: pixels[..., 2::-1]}.get(channels, np.repeat(pixels[..., :1], 3, axis=-1))
    np.testing.assert_array_equal(read, expected)


def test_sixteen_bits_are_scaled_by_the_whole_image_and_not_by_the_window(tmp_path, monkeypatch):
    pixels = np.full((40, 40, 1), 100, np.uint16)
    pixels[30:, 30:] = 1000  # 10 bits: 255 / 1023
    pixels[:5] = 65535
    monkeypatch.setattr("haksnet_jax.inference.predictor._WHOLE_UP_TO", 0)
    with ImageFile(write_tiff(tmp_path / "a.tif", pixels, nodata=65535)) as image:
        assert image.read(0, 10, 20, 20).tolist() == np.full((10, 20, 3), 25).tolist()  # 24.93
        assert image.read(30, 30, 40, 40).max() == 249
        assert image.read(0, 0, 40, 5).min() == 255
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
        with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
            ImageFile(tmp_path / name)
    path = write_tiff(tmp_path / "float.tif", RGB.astype(np.float32))
    with ImageFile(path) as image, pytest.raises(DetectionError, match=r"float\.tif: .*8 or 16 bits"):
        image.read(0, 0, 8, 8)
    path = write_tiff(tmp_path / "cut.tif", RGB)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DetectionError, match=r"cut\.tif: .*truncated"):
        ImageFile(path)


def test_a_thumbnail_shows_the_whole_image(tmp_path, monkeypatch):
    smooth = cv2.resize(RGB, (560, 400), interpolation=cv2.INTER_CUBIC)
    path = write_tiff(tmp_path / "a.tif", smooth)
    monkeypatch.setattr("haksnet_jax.inference.predictor._BAND", 560 * 40)
    with ImageFile(path) as image:
        small, factor = image.thumbnail(140)
        assert small.shape == (100, 140, 3) and factor == 0.25
        np.testing.assert_array_equal(small, cv2.resize(smooth, (140, 100), interpolation=cv2.INTER_AREA))
        assert image.thumbnail(1000)[0].shape == (400, 560, 3)
