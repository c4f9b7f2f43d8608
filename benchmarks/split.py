"""Speed of the tile splitter, on generated scenes: python benchmarks/split.py [--side=4096] [--scenes=4] [--workers=2]

Compares in one run
  plain     one process that decodes the scene again for every tile, as simple scripts do
  ours      haksnet_jax.splitting with worker processes
and prints the ratio and the share of our work that went into image coding. Goals: 3 or more, and 90 % or more.
Both cut the same windows and write the same PNG files. A scene of 4096 pixels gives 25 tiles of 1024 with an overlap
of 200.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

import cv2
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from haksnet_jax.geometry.polygons import boxes_to_polygons
from haksnet_jax.labels import dota as labels
from haksnet_jax.preparation import splitting
from haksnet_jax.results import tiles


def make_scene(folder, name, side, num_objects, rng):
    """Writes a scene with the noise and smoothness of aerial images, and labels."""
    coarse = rng.integers(0, 256, (side // 16, side // 16, 3), np.uint8)
    image = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    image = cv2.add(image, rng.integers(0, 12, image.shape, np.uint8))
    cv2.imwrite(str(folder / "images" / f"{name}.png"), image)
    boxes = np.column_stack(
        [
            rng.uniform(0, side, (num_objects, 2)),
            rng.uniform(20, 80, num_objects),
            rng.uniform(8, 20, num_objects),
            rng.uniform(-1.5, 1.5, num_objects),
        ]
    )
    lines = [labels.format_label_line(polygon, "ship", 0) + "\n" for polygon in boxes_to_polygons(boxes)]
    (folder / "labelTxt" / f"{name}.txt").write_text("".join(lines))


def plain_split(folder, output):
    """One process, one decoding for each tile; the images alone."""
    (output / "images").mkdir(parents=True)
    for path in sorted((folder / "images").iterdir()):
        rows, columns = cv2.imread(str(path)).shape[:2]
        for x1, y1, x2, y2 in tiles.windows(columns, rows, 1024, 200).tolist():
            tile = cv2.imread(str(path))[y1:y2, x1:x2]
            cv2.imwrite(str(output / "images" / f"{path.stem}__1024__{x1}___{y1}.png"), tile)


def main():
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--objects", type=int, default=500, help="a scene")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        (folder / "images").mkdir()
        (folder / "labelTxt").mkdir()
        for index in range(args.scenes):
            make_scene(folder, f"scene{index}", args.side, args.objects, rng)
        begin = time.perf_counter()
        summary = splitting.split(
            [folder / "images"],
            [folder / "labelTxt"],
            folder / "ours",
            splitting.Parameters(),
            num_workers=args.workers,
        )
        ours = time.perf_counter() - begin
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        begin = time.perf_counter()
        plain_split(folder, folder / "plain")
        plain = time.perf_counter() - begin
        cv2.setNumThreads(threads)
        names = sorted(os.listdir(folder / "plain/images"))
        assert names == sorted(os.listdir(folder / "ours/images"))
        one, other = folder / "plain/images", folder / "ours/images"
        same = all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
        assert same, "the tiles differ"
    result = {
        "scenes": args.scenes,
        "side": args.side,
        "tiles": summary.num_tiles,
        "workers": args.workers,
        "plain_s": round(plain, 2),
        "ours_s": round(ours, 2),
        "ratio": round(plain / ours, 2),
        "coding_share": round(summary.coding_share, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
