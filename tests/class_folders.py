"""Small sets of labelled images, one folder a class."""

import cv2
import numpy as np


def write_classes(folder, counts, *, size=(20, 24), ending="jpg", seed=0):
    """`counts` {class: images}, each class in its own colour. Returns: folder."""
    rng = np.random.default_rng(seed)
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            image = np.full((*size, 3), 40 + 60 * label, np.uint8) + rng.integers(0, 20, (*size, 3)).astype(np.uint8)
            assert cv2.imwrite(str(folder / name / f"{index:03d}.{ending}"), image)
    return folder
