"""Crops, turns and light of images with masks."""

import numpy as np
import pytest

from haksnet_jax.pipeline import dense_transforms as transforms
from haksnet_jax.pipeline import loader


def ramp(rows, columns):
    """An image whose channels are row and column, and a mask that names a pixel by both."""
    y, x = np.mgrid[:rows, :columns].astype(np.uint8)
    return np.stack([y, x, (y + x) // 2], axis=-1), (y // 2 + x // 2).astype(np.uint8)


class Fixed:
    """A source of one example again and again."""

    class_names = ("a", "b")

    def __init__(self, example):
        self.example = example

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return dict(self.example)


def example_of(image, mask):
    return {"image": image, "mask": mask, "num_unknown": np.int32(0), "image_id": "a"}


def test_a_crop_of_the_same_scale_is_an_exact_piece():
    image, mask = ramp(90, 70)
    for seed in range(20):
        matrix = transforms.crop_matrix(np.random.default_rng(seed), (90, 70), (32, 48))
        left, top = matrix[:, 2].astype(int)
        np.testing.assert_array_equal(matrix[:, :2], np.eye(2))
        assert 0 <= top <= 90 - 32 and 0 <= left <= 70 - 48
        piece = transforms.warp(image, matrix, (32, 48))
        np.testing.assert_array_equal(piece, image[top : top + 32, left : left + 48])
        labels = transforms.warp(mask, matrix, (32, 48), nearest=True, outside=255)
        np.testing.assert_array_equal(labels, mask[top : top + 32, left : left + 48])


def test_an_image_smaller_than_the_crop_lies_whole_inside_it():
    image, mask = ramp(20, 70)
    matrix = transforms.crop_matrix(np.random.default_rng(1), (20, 70), (64, 64))
    labels = transforms.warp(mask, matrix, (64, 64), nearest=True, outside=255)
    assert (labels != 255).sum() == 20 * 64
    piece = transforms.warp(image, matrix, (64, 64))
    assert (piece[labels == 255] == transforms.padding(3)).all()


def test_image_and_mask_move_together_through_scales_and_turns():
    image, _ = ramp(128, 128)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        matrix = transforms.crop_matrix(rng, (128, 128), (64, 64), scale_range=(0.7, 2.0), max_degrees=30)
        piece = transforms.warp(image, matrix, (64, 64)).astype(int)
        row, column = (
            transforms.warp(image[..., c].copy(), matrix, (64, 64), nearest=True, outside=255).astype(int)
            for c in (0, 1)
        )
        inside = (np.minimum(row, column) > 1) & (np.maximum(row, column) < 126)  # away from the image's border
        assert inside.sum() > 1000
        # bilinear between rows and columns against the next ones
        assert np.abs(piece[..., 0] - row)[inside].max() <= 1 and np.abs(piece[..., 1] - column)[inside].max() <= 1


# Nothing but flips and quarter turns.
PLAIN = transforms.Augment(
    scale_range=(1.0, 1.0), brightness=0.0, contrast=0.0, saturation=0.0, tint=0.0, max_class_share=1.0
)


def make(source, **settings):
    crop = settings.pop("crop", (64, 64))
    return transforms.Augmentation(source, crop=crop, augment=PLAIN._replace(**settings))


def test_flips_and_quarter_turns_keep_each_pixel_with_its_label():
    image, _ = ramp(64, 64)
    mask = ((image[..., 0].astype(int) * 3 + image[..., 1]) % 251).astype(np.uint8)
    seen = set()
    for seed in range(40):
        row = make(None)(example_of(image, mask), np.random.default_rng(seed))
        np.testing.assert_array_equal(row["mask"], (row["image"][..., 0].astype(int) * 3 + row["image"][..., 1]) % 251)
        seen.add((int(row["image"][0, 0, 0]), int(row["image"][0, 0, 1]), int(row["image"][0, 63, 0])))
    assert len(seen) == 8  # every symmetry of the square


def test_crops_of_one_class_are_drawn_again():
    image = np.zeros((400, 400, 3), np.uint8)
    mask = np.zeros((400, 400), np.uint8)
    mask[:, 300:] = 1
    shares = {}
    for limit in (1.0, 0.75):
        rows = [
            make(None, crop=(64, 64), max_class_share=limit)(example_of(image, mask), np.random.default_rng(seed))
            for seed in range(60)
        ]
        shares[limit] = np.mean([max((row["mask"] == k).mean() for k in (0, 1)) <= 0.75 for row in rows])
    assert shares[1.0] < 0.2  # one crop in eleven lies so by chance
    assert shares[0.75] > 0.4


def test_crops_without_a_label_are_counted():
    image = np.zeros((80, 80, 3), np.uint8)
    row = make(None)(example_of(image, np.full((80, 80), 255, np.uint8)), np.random.default_rng(0))
    assert row["num_empty"] == 1
    row = make(None)(example_of(image, np.zeros((80, 80), np.uint8)), np.random.default_rng(0))
    assert row["num_empty"] == 0


def test_dates_change_places_and_have_a_light_of_their_own():
    image, mask = ramp(64, 64)
    example = {"before": image, "after": image // 2, "mask": mask, "num_unknown": np.int32(0), "image_id": "a"}
    brighter = [
        row["before"].mean() > row["after"].mean()
        for row in (make(None, exchange=0.5)(example, np.random.default_rng(seed)) for seed in range(40))
    ]
    assert 8 < sum(brighter) < 32
    light = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "tint": 0.05}
    same = example | {"after": image}
    row = make(None, exchange=0.0, **light)(same, np.random.default_rng(0))
    assert np.abs(row["before"].astype(int) - row["after"]).mean() > 2


def test_a_mosaic_holds_pieces_of_its_examples():
    image, mask = ramp(64, 64)
    other = Fixed(example_of(np.full((64, 64, 3), 7, np.uint8), np.ones((64, 64), np.uint8)))
    row = make(other, mosaic=1.0)(example_of(np.zeros_like(image), np.zeros_like(mask)), np.random.default_rng(3))
    assert (row["mask"] == (row["image"][..., 0] == 7)).all()
    assert 0.2 < row["mask"].mean() < 0.95


@pytest.mark.parametrize("bands", [1, 5])
def test_any_number_of_bands_is_cropped_and_lit(bands):
    image = np.random.default_rng(0).integers(0, 255, (70, 70, bands), np.uint8)
    light = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "tint": 0.05}
    row = make(None, scale_range=(0.5, 2.0), **light)(
        example_of(image, np.zeros((70, 70), np.uint8)), np.random.default_rng(0)
    )
    assert row["image"].shape == (64, 64, bands) and row["image"].dtype == np.uint8


def test_the_stream_gives_the_same_rows_from_any_position():
    image, mask = ramp(80, 80)
    source = Fixed(example_of(image, mask))
    settings = {"batch_size": 2, "seed": 5}
    whole = loader.stream_batches(source, make(source, mosaic=0.5), **settings)
    batches = [next(whole) for _ in range(3)]
    whole.close()
    again = loader.stream_batches(source, make(source, mosaic=0.5), first_example=4, **settings)
    np.testing.assert_array_equal(next(again)["image"], batches[2]["image"])
    again.close()
