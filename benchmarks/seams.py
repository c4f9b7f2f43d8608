"""How many pixels of a scene change their class where it is looked at in windows instead of in one piece.

    python benchmarks/seams.py --checkpoint=RUN --side=4096

The scene is put together from generated ones; of a checkpoint for real images, name one with --images (and a second one
of another date for a change detector).
"""

import argparse
import time

import numpy as np

import haksnet_jax
from haksnet_jax.images import reader
from haksnet_jax.pipeline import scene_objects, scenes
from haksnet_jax.pipeline.scene_source import SCENE_CLASSES

_PART = 1024


def generated(side, num_images):
    """One image, or two dates, of a scene of side x side pixels, a multiple of 1024."""
    looks = [scene_objects.LOOKS[name] for name in SCENE_CLASSES]
    count = side // _PART
    parts = [
        [
            scenes.draw_pair(np.random.default_rng([5, row, column]), (_PART, _PART), looks, (60, 90))
            for column in range(count)
        ]
        for row in range(count)
    ]
    return [np.concatenate([np.concatenate([part[i] for part in row], 1) for row in parts]) for i in range(num_images)]


def main():
    """Measures and prints a line for each kind of window."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--images", nargs="+", help="an image, or two dates; they are cut to a square")
    parser.add_argument("--side", type=int, default=4096, help="pixels, a multiple of 1024 for generated scenes")
    parser.add_argument("--precision", default="bfloat16")
    arguments = parser.parse_args()
    predictor = haksnet_jax.load(arguments.checkpoint, precision=arguments.precision, batch_size=1)
    if arguments.images:
        images = [reader.read(path, predictor.image_settings) for path in arguments.images]
        side = min(arguments.side, *(size // 32 * 32 for image in images for size in image.shape[:2]))
        images = [np.ascontiguousarray(image[:side, :side]) for image in images]
    else:
        side, images = arguments.side, generated(arguments.side, predictor.num_images)
    whole = predictor.labels(*images, settings=predictor.settings(tile=side, overlap=0))
    shares = np.bincount(whole.reshape(-1), minlength=len(predictor.class_names)) / whole.size
    print(f"{side} px in one piece: " + ", ".join(f"{s:.1%}" for s in shares))
    for tile in (2048, 1024, 512):
        if tile >= side:
            continue
        for overlap in (tile // 4, tile // 2):
            started = time.monotonic()
            found = predictor.labels(*images, settings=predictor.settings(tile=tile, overlap=overlap))
            seconds = time.monotonic() - started
            print(f"windows of {tile}, overlap {overlap}: {(found != whole).mean():.3%} differ, {seconds:.1f} s")


if __name__ == "__main__":
    main()
