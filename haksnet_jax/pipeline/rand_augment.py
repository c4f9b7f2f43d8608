"""RandAugment as timm's recipes name it, `rand-m9-mstd0.5-inc1`, in OpenCV and numpy.

Cubuk et al., 2020. Two operations are drawn of fifteen, each is applied with probability 0.5 and a magnitude drawn
about 9 of 10 with standard deviation 0.5. "inc1": where more magnitude once meant less change, it means more.
Definitions of the operations are Pillow's, to a level or so of rounding.
"""

import math

import cv2
import numpy as np
from numpy.typing import ArrayLike

FILL = (124, 116, 104)  # RGB of what comes in from outside: the mean colour of ImageNet in whole numbers
MAX_MAGNITUDE = 10.0
_INTERPOLATIONS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)
_SMOOTHING = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def grey(image: np.ndarray) -> np.ndarray:
    """Luminance. Args: image [H, W, 3] uint8 RGB. Returns: [H, W] uint8."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel to 0..255; a channel of one value stays. Args: image [H, W, 3] uint8."""
    table = np.empty((256, 3), np.uint8)
    values = np.arange(256)
    for channel in range(3):
        low, high, _, _ = cv2.minMaxLoc(np.ascontiguousarray(image[..., channel]))
        stretched = values if high <= low else (values - low) * (255.0 / (high - low))
        table[:, channel] = np.clip(stretched, 0, 255)
    return cv2.LUT(image, table[None])


def equalize(image: np.ndarray) -> np.ndarray:
    """Makes the histogram of each channel even. Args: image [H, W, 3] uint8."""
    table = np.empty((256, 3), np.uint8)
    for channel in range(3):
        counts = np.bincount(image[..., channel].reshape(-1), minlength=256)
        used = counts[counts > 0]
        step = (counts.sum() - used[-1]) // 255
        if len(used) < 2 or step == 0:
            table[:, channel] = np.arange(256)
        else:
            before = np.cumsum(counts) - counts
            table[:, channel] = np.minimum((step // 2 + before) // step, 255)
    return cv2.LUT(image, table[None])


def invert(image: np.ndarray) -> np.ndarray:
    """255 minus each value."""
    return cv2.bitwise_not(image)


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the upper bits of each value. Args: image; bits, 0 to 8."""
    return image & np.uint8(256 - 2 ** (8 - bits))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Inverts the values from a threshold on. Args: image; threshold, 0 to 256."""
    values = np.arange(256)
    return cv2.LUT(image, np.where(values < threshold, values, 255 - values).astype(np.uint8))


def solarize_add(image: np.ndarray, amount: float, threshold: float = 128) -> np.ndarray:
    """Adds to the values below a threshold. Args: image; amount; threshold."""
    values = np.arange(256)
    return cv2.LUT(image, np.where(values < threshold, np.minimum(values + amount, 255), values).astype(np.uint8))


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Between grey (0) and the image (1), or beyond. Args: image; factor."""
    return cv2.addWeighted(image, factor, cv2.cvtColor(grey(image), cv2.COLOR_GRAY2RGB), 1.0 - factor, 0.0)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Between the mean luminance (0) and the image (1), or beyond. Args: image; factor."""
    mean = int(grey(image).mean() + 0.5)
    return cv2.LUT(image, np.clip(mean + factor * (np.arange(256) - mean), 0, 255).astype(np.uint8))


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Between black (0) and the image (1), or beyond. Args: image; factor."""
    return cv2.LUT(image, np.clip(factor * np.arange(256), 0, 255).astype(np.uint8))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Between the smoothed image (0) and the image (1), or beyond; the outermost pixels stay. Args: image; factor."""
    smooth = cv2.filter2D(image, -1, _SMOOTHING)
    result = cv2.addWeighted(image, factor, smooth, 1.0 - factor, 0.0)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        result[edge] = image[edge]
    return result


def affine(image: np.ndarray, matrix: ArrayLike, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
    """Moves an image on a canvas of the same size.

    Args:
      image: [H, W, 3] uint8.
      matrix: [2, 3]; it gives the place in the image for a place in the result, both measured from the outer corner.
      interpolation: of OpenCV.

    Returns:
      [H, W, 3] uint8, FILL where the place is outside.
    """
    moved = np.array(matrix, np.float64)
    moved[:, 2] += moved[:, :2].sum(axis=1) * 0.5 - 0.5  # OpenCV measures from the centre of the first pixel
    return cv2.warpAffine(
        image,
        moved,
        (image.shape[1], image.shape[0]),
        flags=interpolation | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=FILL,
    )


def rotate(image: np.ndarray, degrees: float, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
    """Turns an image about its middle, counter-clockwise on the screen. Args: image; degrees; interpolation."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = image.shape[1] / 2, image.shape[0] / 2
    matrix = [[cosine, -sine, x - cosine * x + sine * y], [sine, cosine, y - sine * x - cosine * y]]
    return affine(image, matrix, interpolation)


_GEOMETRIC = {
    "rotate": rotate,
    "shear_x": lambda image, amount, how: affine(image, [[1, amount, 0], [0, 1, 0]], how),
    "shear_y": lambda image, amount, how: affine(image, [[1, 0, 0], [amount, 1, 0]], how),
    "translate_x": lambda image, share, how: affine(image, [[1, 0, share * image.shape[1]], [0, 1, 0]], how),
    "translate_y": lambda image, share, how: affine(image, [[1, 0, 0], [0, 1, share * image.shape[0]]], how),
}
_LARGEST = {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.45, "translate_y": 0.45}
_ENHANCING = {"color": color, "contrast": contrast, "brightness": brightness, "sharpness": sharpness}
_PLAIN = {"auto_contrast": auto_contrast, "equalize": equalize, "invert": invert}
OPERATIONS = (*_PLAIN, "posterize", "solarize", "solarize_add", *_ENHANCING, *_GEOMETRIC)


def apply(
    image: np.ndarray, name: str, magnitude: float, *, negative: bool = False, interpolation: int = cv2.INTER_LINEAR
) -> np.ndarray:
    """One operation.

    Args:
      image: [H, W, 3] uint8 RGB.
      name: among OPERATIONS.
      magnitude: 0 to MAX_MAGNITUDE.
      negative: the other way, where there are two: less instead of more, left instead of right.
      interpolation: of OpenCV, where the image is moved.

    Returns:
      [H, W, 3] uint8.
    """
    share = magnitude / MAX_MAGNITUDE
    sign = -1.0 if negative else 1.0
    if name in _PLAIN:
        return _PLAIN[name](image)
    if name == "posterize":
        return posterize(image, 4 - int(share * 4))
    if name == "solarize":
        return solarize(image, 256 - min(256, int(share * 256)))
    if name == "solarize_add":
        return solarize_add(image, min(128, int(share * 110)))
    if name in _ENHANCING:
        return _ENHANCING[name](image, max(0.1, 1.0 + sign * share * 0.9))
    return _GEOMETRIC[name](image, sign * share * _LARGEST[name], interpolation)


def rand_augment(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    magnitude: float = 9.0,
    deviation: float = 0.5,
    num_operations: int = 2,
    probability: float = 0.5,
) -> np.ndarray:
    """Random operations one after another.

    Args:
      image: [H, W, 3] uint8 RGB.
      rng: np.random.Generator.
      magnitude: mean, of MAX_MAGNITUDE.
      deviation: standard deviation; what is drawn is clipped to 0..MAX_MAGNITUDE.
      num_operations: drawn with replacement.
      probability: of each one drawn to be applied.

    Returns:
      [H, W, 3] uint8.
    """
    for which in rng.integers(len(OPERATIONS), size=num_operations):
        applied, negative, interpolation = rng.random(3)
        drawn = min(max(rng.normal(magnitude, deviation), 0.0), MAX_MAGNITUDE)
        if applied < probability:
            how = _INTERPOLATIONS[int(interpolation * 2)]
            image = apply(image, OPERATIONS[which], drawn, negative=negative < 0.5, interpolation=how)
    return image
