"""Runs a file of `haksnet export --to=stablehlo` without haksnet_jax: pip install jax flatbuffers opencv-python

haksnet export --checkpoint=demo --output=demo.stablehlo
python examples/load_stablehlo.py demo.stablehlo image.png [second_date.png]

Prints what was found; where that is in the image (objects, maps), FILE.found.png shows it.
"""

import json
import sys

import cv2
import jax
import numpy as np
from jax import export

path, *image_paths = sys.argv[1:]
with open(f"{path}.json", encoding="utf-8") as file:
    facts = json.load(file)

# One array for each input: images in the file's fixed size (padded with zeros, or cut off), and the lowest score.
inputs, images = [], [cv2.imread(image)[..., ::-1] for image in image_paths]
for name, wanted in facts["inputs"].items():
    if name == "score":
        inputs.append(np.array(0.3, np.float32))
        continue
    image, batch = images[name == "after"], np.zeros(wanted["shape"], wanted["dtype"])
    rows, columns = (min(a, b) for a, b in zip(image.shape[:2], batch.shape[1:3], strict=True))
    batch[0, :rows, :columns] = image[:rows, :columns]
    inputs.append(batch)

with open(path, "rb") as file:
    program = export.deserialize(bytearray(file.read()))
found = jax.tree.map(np.asarray, program.call(*inputs))

names, shown = facts["class_names"], images[0][:rows, :columns, ::-1].copy()
if facts["task"] == "detection":
    for index in np.argsort(-found["scores"][0]):
        if found["valid"][0, index]:
            corners = found["polygons"][0, index].reshape(4, 2)
            print(f"{names[found['labels'][0, index]]} {found['scores'][0, index]:.3f} {corners.round(1).tolist()}")
            cv2.polylines(shown, [corners.round().astype(np.int32)], True, (0, 255, 255))
elif facts["task"] == "classification":
    for label in np.argsort(-found["probabilities"][0])[:5]:
        print(f"{names[label]} {found['probabilities'][0, label]:.3f}")
else:
    labels = found["labels"][0, :rows, :columns]
    for label, name in enumerate(names):
        print(f"{name} {(labels == label).mean():.1%}")
    shown = (labels * (255 // max(1, len(names) - 1))).astype(np.uint8)
cv2.imwrite(f"{path}.found.png", shown)
