"""The loaded detector: reading of images, resizing, windows, merging, and agreement with the reference."""

import cv2
import jax
import numpy as np
import pytest
from bright_objects import find_bright, save_tiny, scene, use_bright_objects

import haksnet_jax
from haksnet_jax.errors import UserError
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.inference.detection_predictor import Detector, Settings, merge
from haksnet_jax.inference.views import View, cut_off
from haksnet_jax.weights import model_folder
from haksnet_jax.weights.errors import CheckpointError

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
    monkeypatch.setattr(loaded.session, "_steps", {})
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
    arrays, info = model_folder.load_model(tiny)
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
    expected = real.session.detect(canvas, np.array([[128, 107]], np.int32), ones, score=0.05)
    valid = np.asarray(expected.valid[0])
    assert valid.sum() > 3
    factors = np.array([107 / 40, 128 / 48] * 2 + [1], np.float32)
    np.testing.assert_allclose(found["boxes"], np.asarray(expected.boxes[0])[valid] / factors, rtol=1e-5)
    np.testing.assert_array_equal(found["scores"], np.asarray(expected.scores[0])[valid])
    assert found["boxes"].dtype == np.float32 and found["labels"].dtype == np.int32


def test_a_higher_score_leaves_out_the_weak_ones_without_compiling_again(real):
    image = np.random.default_rng(0).integers(0, 255, (48, 40, 3), np.uint8)
    everything, some = real(image), real(image, score=0.3)
    shapes = real.session.num_shapes
    strong = everything["scores"] > 0.3
    assert 0 < strong.sum() < len(strong)
    np.testing.assert_array_equal(some["boxes"], everything["boxes"][strong])
    real(np.random.default_rng(1).integers(0, 255, (128, 120, 3), np.uint8))
    assert real.session.num_shapes == shapes == 1


def test_the_caps_of_a_model_bind_its_detector(real):
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    (found,) = real.look([image], Settings(score=0.01))
    assert len(found.detections["scores"]) == MOST and found.num_cut > 0


def test_one_window_of_the_size_of_the_image_gives_the_same_as_fitting(real):
    image = np.random.default_rng(1).integers(0, 255, (128, 128, 3), np.uint8)
    fitted, tiled = real(image, resize="fit"), real(image, resize="tile")
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(fitted[name], tiled[name])


def test_a_backbone_alone_and_odd_settings_are_refused(tiny):
    arrays, info = model_folder.load_model(tiny)
    backbone = info | {"architecture": info["architecture"] | {"fpn_channels": None, "num_classes": None}}
    with pytest.raises(CheckpointError, match="backbone"):
        Detector(arrays, backbone)
    with pytest.raises(CheckpointError, match=r"3 classes.*15"):
        Detector(arrays, info | {"class_names": ["a", "b", "c"]})
    with pytest.raises(CheckpointError, match="does not know: most"):
        Detector(arrays, info | {"proposals": {"most": 3}})
    assert Detector(arrays, info).max_detections == 2000  # upstream's, for a model that does not say
    with pytest.raises(CheckpointError, match="input_size"):
        Detector(arrays, {name: value for name, value in info.items() if name != "input_size"})
    with pytest.raises(CheckpointError, match=r"fc_1.*missing"):
        Detector({name: value for name, value in arrays.items() if "fc_1" not in name}, info)
    detector = load(tiny)
    for settings, message in (
        ({"resize": "stretch"}, "resize"),
        ({"score": 0.0}, "score"),
        ({"scales": ()}, "scales"),
        ({"tile": 100}, "tile"),
        ({"overlap": 128}, "overlap"),
    ):
        with pytest.raises(UserError, match=message):
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
    view = View(0, (0, 0), (1.0, 1.0), None, grid)
    # The third reaches both windows' edges; the fourth reaches the image's edge alone.
    assert cut_off(boxes, view).tolist() == [True, False, False, False]


def test_windows_of_one_colour_are_skipped_and_counted(bright):
    detector, stand_in = bright
    image = scene(128, 288, [(20, 20, 12, 8, 5)])
    image[:, 80:] = 77  # windows begin at 0, 80 and 160
    (found,) = detector.look([image], Settings(resize="tile", overlap=48))
    assert (found.num_views, found.num_skipped) == (1, 2) and stand_in.num_images == 1
    (found,) = detector.look([np.zeros((200, 300, 3), np.uint8)])
    assert found.num_views == 0 and len(merge(found, Settings())["boxes"]) == 0


def test_batches_have_one_shape_whatever_the_number_of_windows(bright):
    detector, stand_in = bright
    images = [scene(130 + 50 * n, 300, [(40, 40, 20, 10, 0)]) for n in range(3)]
    found = list(detector.look(images, Settings(resize="tile", overlap=48)))
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
    arrays, info = model_folder.load_model(tiny)
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
        with pytest.raises(UserError, match="uint8"):
            detector(wrong)


def test_an_unreadable_image_does_not_stop_the_others(bright, tmp_path):
    detector, _ = bright
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    good = scene(128, 300, [(100, 40, 20, 10, 0)])
    found = {one.index: one for one in detector.look([good, bad, tmp_path / "none.png", good])}
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

    stream = detector.look(images())
    next(stream)
    stream.close()
    assert len(taken) < 20


def test_an_error_of_the_iterable_reaches_the_consumer(bright):
    def images():
        yield scene(64, 64, [])
        raise RuntimeError("lost the network drive")

    with pytest.raises(RuntimeError, match="network drive"):
        list(bright[0].look(images()))
