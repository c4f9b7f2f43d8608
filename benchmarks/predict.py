"""Memory and speed of predicting on a large scene, and its seams.

    python benchmarks/predict.py [--side=20000] [--image=FILE.tif] [--checkpoint=DIR] [--keep=DIR]

Generates a GeoTIFF of side x side pixels (aerial-like ground with objects) and, without --checkpoint, a narrow detector
with random weights and an input of 1024 x 1024. Then `haksnet_jax.predict` looks at the scene in a process of its own.
Prints its peak memory beside the limit of 3 GiB, its time, and whether any two detections of one class still overlap by
more than the merge allows, at a seam or elsewhere. Exit status 1 if the limit is missed or seams are left.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

LIMIT_GIB = 3.0
_STRIP = 1024
SPREAD, BACKGROUND = 8.0, 12.0


def write_scene(path, side, seed=0):
    """Writes a georeferenced scene, strip by strip: every strip repeats generated tiles in another order."""
    import rasterio

    from haksnet_jax.pipeline.sources import SceneSource

    generator = np.random.default_rng(seed)
    source = SceneSource(12, size=_STRIP, seed=seed, objects_per_scene=(20, 60))
    pictures = [np.moveaxis(source[index]["image"], -1, 0) for index in range(len(source))]
    profile = {
        "driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "crs": "EPSG:32633",
        "transform": rasterio.Affine(0.3, 0, 400_000, 0, -0.3, 5_800_000),
        "tiled": True, "blockxsize": 256, "blockysize": 256, "photometric": "RGB", "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as dataset:
        for y in range(0, side, _STRIP):
            rows = min(_STRIP, side - y)
            order = generator.integers(0, len(pictures), -(-side // _STRIP))
            strip = np.concatenate([pictures[number][:, :rows] for number in order], axis=2)[:, :, :side]
            window = rasterio.windows.Window(0, y, side, rows)
            dataset.write(strip, window=window)


def save_narrow_detector(folder):
    """Saves a detector with narrow widths and random weights."""
    from flax import nnx

    from haksnet_jax.labels.classes import CLASSES
    from haksnet_jax.models.architecture import haksnet_detector
    from haksnet_jax.models.backbones.haksnet import BackboneSize
    from haksnet_jax.models.oriented_rcnn import PIXEL_MEAN, PIXEL_STD
    from haksnet_jax.weights import model_folder

    size = {"channels": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "mlp_ratios": (2, 2, 2, 2)}
    widths = {"fpn_channels": 32, "hidden": 64, "num_classes": 15}
    model = haksnet_detector(BackboneSize(*size.values()), 15, channels=32, hidden=64, rngs=nnx.Rngs(0))
    _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    info = {
        "architecture": {name: list(value) for name, value in size.items()} | widths,
        "class_names": CLASSES["dota10"],
        "pixel_mean": PIXEL_MEAN,
        "pixel_std": PIXEL_STD,
        "input_size": [1024, 1024],
        "keep_ratio": True,
        "padding_divisor": 32,
    }
    arrays = {
        name: np.asarray(value) for name, value in (model_folder.flatten(params) | model_folder.flatten(stats)).items()
    }
    # Random scores are all alike: spread them, and let background be the rule, as it is for a trained detector.
    arrays["roi_head.logits.kernel"] = arrays["roi_head.logits.kernel"] * SPREAD
    arrays["roi_head.logits.bias"] = (
        arrays["roi_head.logits.bias"] + np.eye(1, 16, 15, dtype=np.float32)[0] * BACKGROUND
    )
    model_folder.save_model(folder, arrays, info)


def overlapping_pairs(detections, iou_threshold):
    """How many detections of one class overlap a better one by more than the threshold (rounded to files)."""
    from haksnet_jax.results.tiles import merge_detections

    boxes = np.array([one["box"] for one in detections], np.float64).reshape(-1, 5)
    scores = np.array([one["score"] for one in detections])
    labels = np.unique([one["label"] for one in detections], return_inverse=True)[1]
    return len(boxes) - len(merge_detections(boxes, scores, labels, iou_threshold=iou_threshold + 1e-3))


def main():
    """The benchmark. Returns: exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20_000, help="pixels; default: %(default)s")
    parser.add_argument("--image", help="a scene of one's own")
    parser.add_argument("--checkpoint", help="a detector of one's own")
    parser.add_argument("--keep", help="folder for scene, detector and results; default: removed at the end")
    parser.add_argument("--score", type=float, default=0.3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(arguments.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        image, checkpoint = arguments.image, arguments.checkpoint
        if not image:
            image = folder / "scene.tif"
            if not image.exists():
                write_scene(image, arguments.side)
        if not checkpoint:
            checkpoint = folder / "detector"
            if not checkpoint.exists():
                # In a process of its own: the memory of this one would count.
                subprocess.run([sys.executable, __file__, "--make-detector", checkpoint], check=True)
        started = time.perf_counter()
        subprocess.run(
            [
                sys.executable, "-m", "haksnet_jax", "predict", f"--checkpoint={checkpoint}", f"--images={image}",
                f"--output={folder / 'out'}", "--resize=tile", f"--score={arguments.score}",
            ],
            check=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        (entry,) = json.loads((folder / "out" / "detections.json").read_text())["images"]
        seams = overlapping_pairs(entry["detections"], 0.1)
    megapixels = entry["width"] * entry["height"] / 1e6
    print(f"{entry['width']} x {entry['height']} pixels, {len(entry['detections'])} detections, {os.cpu_count()} cores")
    print(f"time {seconds:.0f} s ({megapixels / seconds:.1f} megapixels/s, start and compilation included)")
    print(f"peak memory {peak:.2f} GiB, limit {LIMIT_GIB:g} GiB: {'met' if peak < LIMIT_GIB else 'MISSED'}")
    print(f"detections left that overlap a better one: {seams}")
    return int(peak >= LIMIT_GIB or seams > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make-detector"]:
        save_narrow_detector(pathlib.Path(sys.argv[2]).absolute())
    else:
        sys.exit(main())
