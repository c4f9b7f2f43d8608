"""Small folders of images with masks, and of pairs, for tests."""

import cv2
import numpy as np
from PIL import Image

COLOURS = {0: (132, 41, 246), 1: (226, 169, 41), 255: (0, 0, 0)}
PALETTE = "8429F6 land\nE2A929 water\n# a remark\n0 0 0 ignored\n"


def write_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[..., ::-1])


def write_mask(path, labels, kind="index"):
    """Writes labels as numbers, as a palette PNG ("palette"), as colours ("colours") or in 16 bits ("deep")."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "index":
        Image.fromarray(labels).save(path)
    elif kind == "deep":
        Image.fromarray(labels.astype(np.uint16)).save(path)
    elif kind == "palette":
        image = Image.fromarray(labels)
        image.putpalette([value for i in range(256) for value in COLOURS.get(i, (i, i, i))])
        image.save(path)
    else:
        Image.fromarray(np.array([COLOURS[i] for i in labels.ravel()], np.uint8).reshape(*labels.shape, 3)).save(path)


def two_fields(rng, size=(96, 80)):
    """(image, labels): land and water side by side, water blue, and some pixels without a label."""
    labels = np.zeros(size, np.uint8)
    labels[:, int(rng.integers(20, size[1] - 20)) :] = 1
    image = np.where(labels[..., None] == 1, (40, 80, 160), (150, 130, 90)) + rng.normal(0, 8, (*size, 3))
    labels[:4, :4] = 255
    return np.clip(image, 0, 255).astype(np.uint8), labels


def write_segmentation_folder(root, *, num=4, kind="index", seed=0):
    """Writes `train` and `val` with images and masks of two classes."""
    rng = np.random.default_rng(seed)
    for split in ("train", "val"):
        for i in range(num):
            image, labels = two_fields(rng)
            write_image(root / split / "images" / f"{split}_{i}.png", image)
            write_mask(root / split / "masks" / f"{split}_{i}.png", labels, kind)
    if kind in ("colours", "palette"):
        (root / "palette.txt").write_text(PALETTE)
    else:
        (root / "classes.txt").write_text("land\nwater\n")


def write_change_folder(root, *, num=4, seed=0):
    """Writes `train` and `val` with A, B and label; a bright square is new in B."""
    rng = np.random.default_rng(seed)
    for split in ("train", "val"):
        for i in range(num):
            before, _ = two_fields(rng)
            after, mask = before.copy(), np.zeros(before.shape[:2], np.uint8)
            y, x = rng.integers(5, 50, 2)
            after[y : y + 24, x : x + 24] = 230
            mask[y : y + 24, x : x + 24] = 255
            write_image(root / split / "A" / f"{split}_{i}.png", before)
            write_image(root / split / "B" / f"{split}_{i}.png", after)
            write_mask(root / split / "label" / f"{split}_{i}.png", mask)
