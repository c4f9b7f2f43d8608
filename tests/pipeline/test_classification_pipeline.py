"""Sources of labelled images, and what is drawn for them against its definition."""

import pickle

import cv2
import numpy as np
import pytest
from class_folders import write_classes

from haksnet_jax.errors import UserError
from haksnet_jax.images.settings import ImageSettings
from haksnet_jax.pipeline import classification_sources as sources
from haksnet_jax.pipeline import classification_transforms as transforms
from haksnet_jax.pipeline import loader


def test_labels_follow_the_folders_and_the_order_of_the_classes(tmp_path):
    write_classes(tmp_path, {"forest": 3, "lake": 2})
    (tmp_path / "lake" / "notes.txt").write_text("no image")
    source = sources.ClassFolderSource(tmp_path, ("lake", "forest"))
    assert len(source) == 5 and source.labels.tolist() == [0, 0, 1, 1, 1]
    assert source.image_ids[0] == "lake/000.jpg" and source[4]["image_id"] == "forest/002.jpg"
    assert source[0]["image"].pixels().shape == (20, 24, 3)
    assert "1 file or folder left out" in source.summary() and "2 (lake) to 3 (forest)" in source.summary()
    with pytest.raises(IndexError):
        source[5]


def test_shares_of_one_seed_divide_every_class_without_overlap(tmp_path):
    write_classes(tmp_path, {"a": 10, "b": 7})
    parts = [sources.ClassFolderSource(tmp_path, ("a", "b"), share=share, seed=3) for share in ((0, 0.8), (0.8, 1))]
    assert [np.bincount(part.labels).tolist() for part in parts] == [[8, 6], [2, 1]]
    assert not set(parts[0].image_ids) & set(parts[1].image_ids)
    assert len(set(parts[0].image_ids) | set(parts[1].image_ids)) == 17
    other = sources.ClassFolderSource(tmp_path, ("a", "b"), share=(0, 0.8), seed=4)
    assert other.image_ids != parts[0].image_ids


def test_a_list_states_the_split(tmp_path):
    write_classes(tmp_path / "images", {"a": 3, "b": 3})
    (tmp_path / "train.txt").write_text("a/001.jpg\nb/002\n\n")
    source = sources.ClassFolderSource(tmp_path / "images", ("a", "b"), image_list=tmp_path / "train.txt")
    assert source.image_ids == ["a/001.jpg", "b/002.jpg"]
    for line, said in (("c/001.jpg", ":2: expected CLASS/IMAGE"), ("a/777.jpg", "the first is 'a/777'")):
        (tmp_path / "train.txt").write_text(f"b/000.jpg\n{line}\na/000.jpg\n")
        with pytest.raises(UserError, match=said):
            sources.ClassFolderSource(tmp_path / "images", ("a", "b"), image_list=tmp_path / "train.txt")


def test_folders_that_do_not_fit_the_classes_are_named(tmp_path):
    write_classes(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(UserError, match=r"no folder for 'c'; not among data.class_names 'b'"):
        sources.ClassFolderSource(tmp_path, ("a", "c"))
    (tmp_path / "b" / "000.jpg").unlink()
    with pytest.raises(UserError, match="expected images of the class 'b'"):
        sources.ClassFolderSource(tmp_path, ("a", "b"))
    source = sources.ClassFolderSource(tmp_path, ("a", "b", "c"), may_lack_classes=True, prefix="val")
    assert source.image_ids == ["val/a/000.jpg"] and "0 (b) to 1 (a)" in source.summary()
    with pytest.raises(UserError, match="no such folder"):
        sources.class_folders(tmp_path / "nowhere")


def test_a_source_travels_to_workers_without_its_cache(tmp_path):
    write_classes(tmp_path, {"a": 4}, size=(100, 100))
    source = sources.ClassFolderSource(tmp_path, ("a",), cache_mib=1)
    first = [source[index]["image"].pixels() for index in range(4)]
    assert source[0]["image"].pixels() is first[0]  # kept
    assert len(pickle.dumps(source)) < 5000
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[2]["image"].pixels(), first[2])


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    write_classes(tmp_path, {"a": 1})
    path = tmp_path / "a" / "000.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"000.jpg.*truncated"):
        sources.ClassFolderSource(tmp_path, ("a",))[0]["image"].pixels()


def test_scenes_of_one_class_have_its_label():
    source = sources.SceneClassSource(4, size=64, seed=1, class_names=("plane", "ship"))
    assert [source[index]["label"] for index in range(4)] == source.labels.tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(source[1]["image"].pixels(), source[1]["image"].pixels())


def test_crop_boxes_have_the_areas_and_ratios_of_their_definition():
    rng = np.random.default_rng(0)
    boxes = np.array([
        transforms.random_crop_box(300, 400, rng, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)) for _ in range(3000)
    ])  # fmt: skip
    assert (boxes[:, 0] + boxes[:, 2] <= 300).all() and (boxes[:, 1] + boxes[:, 3] <= 400).all() and (boxes >= 0).all()
    area, ratio = boxes[:, 2] * boxes[:, 3] / 120000, boxes[:, 3] / boxes[:, 2]
    assert 0.078 < area.min() < 0.09 and area.max() > 0.85  # rounding of a 98-pixel side: 1 %
    assert 0.74 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.35
    # Small boxes always fit, so that their areas are as even as drawn: [0.08, 0.28) and [0.28, 0.48) as often.
    small, medium = ((area < 0.28).sum(), ((area >= 0.28) & (area < 0.48)).sum())
    assert 0.85 < small / medium < 1.2


def test_a_crop_of_an_odd_shape_falls_back_to_the_middle():
    rng = np.random.default_rng(0)
    box = transforms.random_crop_box(10, 1000, rng, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3))
    assert box == (0, 493, 10, 13)  # 4/3 of ten rows


def test_evaluation_takes_the_middle_and_keeps_the_ratio():
    image = np.zeros((80, 120, 3), np.uint8)
    image[20:60, 40:80] = 200  # the middle half of the shorter side
    stored = sources.StoredImage(pixels=image, name="x")
    assert transforms.centre_crop(stored, (40, 40), 0.5).min() == 200
    whole = transforms.centre_crop(stored, (40, 40), 1.0)
    assert whole[:9].max() == 0 and whole[12:28, 12:28].min() == 200 and whole[31:].max() == 0


def test_partial_decoding_shows_the_same_part(tmp_path):
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (805, 603), interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
    whole = sources.StoredImage(pixels=cv2.cvtColor(image, cv2.COLOR_BGR2RGB), name="x")
    for box, reduction in (((100, 212, 420, 408), 4), ((0, 0, 603, 805), 4), ((10, 20, 210, 206), 2)):
        assert transforms.largest_reduction(box[2], box[3], (100, 100)) == reduction
        stored = sources.StoredImage(data, name="x")
        found = transforms.crop_and_resize(stored, box, (100, 100)).astype(int)
        expected = transforms.crop_and_resize(whole, box, (100, 100)).astype(int)
        # Two ways of making pixels larger differ by less than the picture from one pixel of the result to the next.
        assert np.abs(found - expected).mean() < 0.5 * np.abs(np.diff(expected, axis=1)).mean()
    assert transforms.largest_reduction(99, 5000, (100, 100)) == 1


def test_flips_and_quarter_turns_reach_all_eight_positions():
    image = np.zeros((8, 8, 3), np.uint8)
    image[0, 1] = 255
    stored = sources.StoredImage(pixels=image, name="x")
    make = transforms.TrainingRow(
        size=(8, 8), augment=transforms.Augment(crop_scale=(1, 1), flip_probabilities=(0.5, 0.5), quarter_turns=True)
    )
    places = set()
    for seed in range(200):
        row = make({"image": stored, "label": 3}, np.random.default_rng(seed))
        assert row["label"] == 3 and row["image"].sum() == 765 and row["image"].flags.c_contiguous
        places.add(tuple(np.argwhere(row["image"][..., 0])[0].tolist()))
    assert len(places) == 8


def test_colour_jitter_stays_within_its_strength():
    grey = np.full((4, 4, 3), 100, np.uint8)
    rng = np.random.default_rng(0)
    values = [int(transforms.colour_jitter(grey, rng, 0.4)[0, 0, 0]) for _ in range(500)]
    # Contrast and saturation leave a grey picture as it is, but for rounding; brightness gives 60 to 140.
    assert 58 <= min(values) < 64 and 136 < max(values) <= 141


def test_batches_of_the_stream_hold_images_and_labels(tmp_path):
    write_classes(tmp_path, {"a": 5, "b": 3})
    source = sources.ClassFolderSource(tmp_path, ("a", "b"))
    make = transforms.TrainingRow(
        size=(16, 16), augment=transforms.Augment(rand_augment_magnitude=9.0, colour_jitter=0.4)
    )
    batches = loader.stream_batches(source, make, batch_size=4, seed=0, num_epochs=1)
    seen = []
    for batch in batches:
        assert batch["image"].shape == (4, 16, 16, 3) and batch["image"].dtype == np.uint8
        np.testing.assert_array_equal(source.labels[batch["image_index"]], batch["label"])
        seen += batch["image_index"].tolist()
    assert sorted(seen) == list(range(8))
    make = transforms.EvaluationRow(size=(16, 16), share=0.875)
    (first, last) = loader.ordered_batches(source, make, make.filler, batch_size=5)
    assert last["image_index"].tolist() == [5, 6, 7, -1, -1] and first["label"].tolist() == [0, 0, 0, 0, 0]


def test_chosen_bands_of_geotiffs_are_read(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    (tmp_path / "a").mkdir()
    samples = np.arange(4 * 40 * 50, dtype=np.uint16).reshape(4, 40, 50)
    with rasterio.open(tmp_path / "a" / "x.tif", "w", "GTiff", 50, 40, 4, dtype="uint16") as file:
        file.write(samples)
    source = sources.ClassFolderSource(tmp_path, ("a",), settings=ImageSettings(bands=(4, 2, 1, 3)))
    pixels = source[0]["image"].pixels()
    assert pixels.shape == (40, 50, 4) and source.image_settings.limits == (0.0, 8191.0)  # 7999 needs 13 bits
    np.testing.assert_array_equal(pixels[..., 0], np.rint(samples[3] * (255 / 8191)))
    row = transforms.TrainingRow(size=(32, 32), augment=transforms.Augment())(source[0], np.random.default_rng(0))
    assert row["image"].shape == (32, 32, 4)
    with pytest.raises(UserError, match="band"):
        sources.ClassFolderSource(tmp_path, ("a",), settings=ImageSettings(bands=(5,)))[0]["image"].pixels()
