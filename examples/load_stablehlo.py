"""Runs a detector that `haksnet export` wrote, with JAX and OpenCV alone (pip install jax flatbuffers opencv-python).

haksnet export --checkpoint=demo --output=demo.stablehlo
python examples/load_stablehlo.py demo.stablehlo image.png
"""

import json
import sys

import cv2
import jax
import numpy as np
from jax import export


def detect(path, image, score=0.3):
    """What a file finds in an image.

    Args:
      path: of the file; PATH.json lies beside it.
      image: [rows, columns, 3] uint8 RGB; what is larger than the program's size is cut off.
      score: lowest score.

    Returns:
      List of (class name, score, polygon [4, 2] in pixels), the best first.
    """
    with open(path, "rb") as file:
        program = export.deserialize(bytearray(file.read()))
    with open(f"{path}.json", encoding="utf-8") as file:
        facts = json.load(file)
    batch = np.zeros(facts["images"]["shape"], np.uint8)
    rows, columns = (min(a, b) for a, b in zip(image.shape[:2], batch.shape[1:3], strict=True))
    batch[0, :rows, :columns] = image[:rows, :columns]
    found = jax.tree.map(np.asarray, program.call(batch, np.float32(score)))
    order = [index for index in np.argsort(-found["scores"][0]) if found["valid"][0, index]]
    names, polygons = facts["class_names"], found["polygons"][0].reshape(-1, 4, 2)
    return [(names[found["labels"][0, index]], float(found["scores"][0, index]), polygons[index]) for index in order]


if __name__ == "__main__":
    for name, value, polygon in detect(sys.argv[1], cv2.imread(sys.argv[2])[..., ::-1]):
        print(f"{name} {value:.3f} {polygon.round(1).tolist()}")
