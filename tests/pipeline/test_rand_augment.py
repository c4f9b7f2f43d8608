"""RandAugment's operations against Pillow, which defines them, and how they are drawn against the recipe's name."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from haksnet_jax.pipeline import rand_augment


def _picture():
    """Smooth colours with some noise and both ends of the scale, 48 x 64."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, (64, 48), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth.astype(int) + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)


PICTURE = _picture()
PILLOW = Image.fromarray(PICTURE)
# At magnitude 9, for which the recipe is named: factors, degrees and shares of the table behind "inc1".
EXPECTED = {
    ("auto_contrast", False): lambda: ImageOps.autocontrast(PILLOW),
    ("equalize", False): lambda: ImageOps.equalize(PILLOW),
    ("invert", False): lambda: ImageOps.invert(PILLOW),
    ("posterize", False): lambda: ImageOps.posterize(PILLOW, 1),  # 4 - int(0.9 * 4) bits
    ("solarize", False): lambda: ImageOps.solarize(PILLOW, 26),  # 256 - int(0.9 * 256)
    ("color", False): lambda: ImageEnhance.Color(PILLOW).enhance(1.81),
    ("color", True): lambda: ImageEnhance.Color(PILLOW).enhance(0.19),
    ("contrast", False): lambda: ImageEnhance.Contrast(PILLOW).enhance(1.81),
    ("contrast", True): lambda: ImageEnhance.Contrast(PILLOW).enhance(0.19),
    ("brightness", False): lambda: ImageEnhance.Brightness(PILLOW).enhance(1.81),
    ("brightness", True): lambda: ImageEnhance.Brightness(PILLOW).enhance(0.19),
    ("sharpness", False): lambda: ImageEnhance.Sharpness(PILLOW).enhance(1.81),
    ("sharpness", True): lambda: ImageEnhance.Sharpness(PILLOW).enhance(0.19),
}


@pytest.mark.parametrize("name,negative", EXPECTED)
def test_an_operation_of_colours_is_pillows(name, negative):
    expected = np.asarray(EXPECTED[name, negative]())
    found = rand_augment.apply(PICTURE, name, 9.0, negative=negative)
    # Pillow cuts fractions off where OpenCV rounds; sharpening multiplies what rounding left by up to 1.81.
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2


def test_adding_to_dark_values_stops_at_the_threshold():
    found = rand_augment.apply(PICTURE, "solarize_add", 9.0)  # int(0.9 * 110) = 99
    expected = np.where(PICTURE < 128, np.minimum(PICTURE.astype(int) + 99, 255), PICTURE)
    np.testing.assert_array_equal(found, expected)


MOVES = {
    "rotate": lambda s: PILLOW.rotate(s * 27, Image.Resampling.BILINEAR, fillcolor=rand_augment.FILL),
    "shear_x": lambda s: _transformed(1, s * 0.27, 0, 0, 1, 0),
    "shear_y": lambda s: _transformed(1, 0, 0, s * 0.27, 1, 0),
    "translate_x": lambda s: _transformed(1, 0, s * 0.405 * 64, 0, 1, 0),
    "translate_y": lambda s: _transformed(1, 0, 0, 0, 1, s * 0.405 * 48),
}


def _transformed(*matrix):
    how = Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    return PILLOW.transform(PILLOW.size, *how, fillcolor=rand_augment.FILL)


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("negative", [False, True])
def test_a_move_is_pillows(name, negative):
    expected = np.asarray(MOVES[name](-1 if negative else 1)).astype(int)
    found = rand_augment.apply(PICTURE, name, 9.0, negative=negative).astype(int)
    # Pillow mixes the outermost pixels with nothing, OpenCV with the fill: a line of pixels on each edge may differ.
    differs = np.abs(found - expected).max(axis=-1) > 4
    inner = cv2.erode((~np.all(expected == rand_augment.FILL, axis=-1)).astype(np.uint8), np.ones((5, 5), np.uint8))
    assert not (differs & (inner > 0)).any()
    assert differs.mean() < 0.06
    assert not np.array_equal(found, PICTURE)


def test_all_fifteen_operations_leave_size_and_type():
    assert len(rand_augment.OPERATIONS) == 15
    for name in rand_augment.OPERATIONS:
        for magnitude in (0.0, 10.0):
            result = rand_augment.apply(PICTURE, name, magnitude)
            assert result.shape == PICTURE.shape and result.dtype == np.uint8


def test_a_picture_of_one_colour_stays_usable():
    flat = np.full((8, 8, 3), 77, np.uint8)
    for name in ("auto_contrast", "equalize"):
        np.testing.assert_array_equal(rand_augment.apply(flat, name, 9.0), flat)


def test_a_quarter_of_the_pictures_stay_as_they_are():
    # Each of two operations is left out with probability 1/2; of the others, few change nothing in this picture.
    rng = np.random.default_rng(1)
    same = sum(np.array_equal(rand_augment.rand_augment(PICTURE, rng), PICTURE) for _ in range(400))
    assert 75 < same < 160


def test_magnitudes_are_drawn_about_nine(monkeypatch):
    drawn = []
    monkeypatch.setattr(rand_augment, "apply", lambda image, name, magnitude, **_: drawn.append(magnitude) or image)
    rng = np.random.default_rng(2)
    for _ in range(1000):
        rand_augment.rand_augment(PICTURE, rng)
    assert 900 < len(drawn) < 1100  # two times a half each
    assert abs(np.mean(drawn) - 9) < 0.1 and 0.4 < np.std(drawn) < 0.55 and max(drawn) <= 10


def test_the_smoothing_behind_sharpness_is_pillows():
    expected = np.asarray(PILLOW.filter(ImageFilter.SMOOTH)).astype(int)
    assert np.abs(rand_augment.sharpness(PICTURE, 0.0).astype(int) - expected).max() <= 1
