"""What `load` gives, used as a user does; reading ahead; and that evaluation and prediction see the same."""

import threading

import cv2
import jax
import numpy as np
import pytest
from bright_objects import save_tiny, scene, use_bright_objects

import haksnet_jax
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.errors import UserError
from haksnet_jax.inference import detection_evaluator, detection_session, stream, view_settings
from haksnet_jax.inference.detection_predictor import merge

SHIPS = [(40, 40, 30, 10, 20), (80, 100, 24, 12, 0)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, golden_file):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return save_tiny(folder, golden_file("state_dict_tiny.json"), input_size=(128, 128))


@pytest.fixture
def detector(tiny, monkeypatch):
    use_bright_objects(monkeypatch)
    return haksnet_jax.load(tiny, accelerators=jax.local_devices()[:1], batch_size=3)


@pytest.fixture
def folder(tmp_path):
    for name, objects in (("b.png", SHIPS), ("a.png", SHIPS[:1]), ("c.png", [])):
        cv2.imwrite(str(tmp_path / name), scene(128, 110, objects))
    return tmp_path


def test_one_image_gives_detections_and_several_give_a_list_in_order(detector, folder):
    found = detector(folder / "b.png")
    assert isinstance(found, haksnet_jax.Detections) and len(found) == 2 and found.size == (110, 128)
    assert found.names == ["plane", "plane"] and found.path == folder / "b.png"
    assert [(one.image, len(one)) for one in detector(folder)] == [("a.png", 1), ("b.png", 2), ("c.png", 0)]
    assert len(detector(str(folder / "*.png"), score=0.6)) == 3
    pixels = scene(128, 110, SHIPS)
    assert [len(one) for one in detector([pixels, folder / "a.png"], classes="plane")] == [2, 1]
    assert len(detector(pixels, classes=["ship"])) == 0
    assert detector(pixels).plot(legend=False).shape == pixels.shape


def test_one_bad_image_of_several_is_warned_of_and_says_why(detector, folder):
    (folder / "b.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"b\.png"):
        found = detector(folder)
    assert [one.error is None for one in found] == [True, False, True] and len(found[1]) == 0
    assert "b.png" in repr(found[1])


def test_a_wrong_option_is_answered_with_the_right_one(detector):
    pixels = scene(64, 64, [])
    with pytest.raises(UserError, match="unknown option 'scores': is score meant"):
        detector(pixels, scores=0.3)
    with pytest.raises(UserError, match="unknown option 'colour': there are resize, score"):
        detector(pixels, colour=1)
    with pytest.raises(UserError, match=r"score: .*, got 30; 30 % is 0\.3"):
        detector(pixels, score=30)
    assert view_settings.settings_of({"scales": 2}).scales == (2,)


def test_results_come_in_the_order_of_the_images_whatever_their_kind(detector):
    # The first waits for its windows to fill a batch, while those behind it are batches of their own.
    images = [scene(128, 200, SHIPS[:1]), *(scene(100, 100, SHIPS[:1]) for _ in range(40)), scene(128, 200, [])]
    found = list(detector.look(images, view_settings.Settings(overlap=48)))
    assert [one.index for one in found] == list(range(42))
    assert all(len(merge(one, view_settings.Settings())["scores"]) == 1 for one in found[:-1])


def test_reading_ahead_is_bounded_and_ends_with_its_consumer():
    put_so_far = []

    def produce(put):
        for number in range(1000):
            put(number)
            put_so_far.append(number)

    items = stream.ahead(produce, size=2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    items.close()
    assert len(put_so_far) <= 6 and not any(one.name == "haksnet-reader" for one in threading.enumerate())

    def fails(put):
        put(1)
        raise RuntimeError("lost")

    items = stream.ahead(fails)
    assert next(items) == 1
    with pytest.raises(RuntimeError, match="lost"):
        next(items)


class Images:
    """A source of two images, one larger than the network's input."""

    class_names, image_ids = ("plane",), ("a", "b")

    def __init__(self):
        rng = np.random.default_rng(3)
        self.pixels = [
            cv2.resize(rng.integers(0, 255, (20, 26, 3), np.uint8), size) for size in ((128, 90), (300, 260))
        ]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        nothing = {"polygons": np.zeros((0, 4, 2)), "labels": np.zeros(0, int), "difficulty": np.zeros(0, int)}
        return {"image": self.pixels[index], "image_id": self.image_ids[index], **nothing}


def test_evaluation_and_prediction_find_the_same(tiny):
    caps = {"candidates_per_level": 100, "max_proposals": 100, "iou_threshold": 0.8}
    detector = haksnet_jax.load(
        tiny,
        accelerators=jax.local_devices()[:1],
        proposal_caps=caps,
        detection_caps={"max_detections": 40, "max_candidates": 400},
    )
    source, mesh = Images(), devices.data_mesh(jax.local_devices()[:1])
    step = detection_session.make_step(
        detector.session.graph,
        mesh,
        proposal_settings=detector.session.proposal_settings,
        detection_settings=detector.session.detection_settings,
    )
    with jax.set_mesh(mesh), detector.session.arithmetic():
        found, _ = detection_evaluator.detect_split(
            step,
            jax.device_put(detector.session.variables, devices.replicated(mesh)),
            source,
            mesh,
            image_size=(128, 128),
            batch_size_per_device=1,
            score=0.05,
        )
    for one, other in zip(found, detector.stream(source.pixels, resize="fit", pad="full"), strict=True):
        assert one["size"] == other.size and len(other) > 3
        np.testing.assert_array_equal(one["scores"], other.scores)
        np.testing.assert_array_equal(one["labels"], other.labels)
        # Equal but for boxes that are almost square, whose sides prediction puts in order.
        np.testing.assert_allclose(one["boxes"][:, :2], other.boxes[:, :2], rtol=1e-6)
