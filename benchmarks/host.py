"""Speed of the work after the network: merging detections, scoring them, writing them.

    python benchmarks/host.py [--quick]

Prints each time beside its limit on two CPU cores, and how much faster the code is than a plain single-threaded form of
the same work (one pair of polygons after another, shapely) on a smaller size. Exit status 1 if a limit is missed or a
result differs from the plain form's.
"""

import argparse
import os
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
import shapely

from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.labels.classes import CLASSES
from haksnet_jax.results import dota
from haksnet_jax.results.mean_ap import mean_average_precision
from haksnet_jax.results.tiles import merge_detections

CLASS_NAMES = CLASSES["dota10"]
SCENE = 20_000  # pixels


def crowded_scene(seed, count, size=SCENE, detections_per_object=5):
    """Detections as overlapping tiles give them: (boxes [n, 5], scores [n], labels [n])."""
    generator = np.random.default_rng(seed)
    objects = max(1, count // detections_per_object)
    side = np.exp(generator.normal(3.4, 0.7, objects))  # half of the widths between 30 and 80 pixels
    place, stretch = generator.uniform(0, size, (objects, 2)), generator.uniform(1, 3, objects)
    angle = generator.uniform(-np.pi / 2, np.pi / 2, objects)
    shape = np.stack([*place.T, side * stretch, side * 0.7, angle], axis=-1)
    pick = generator.integers(0, objects, count)
    noise = generator.normal(size=(count, 5)) * np.stack([side[pick] * 0.08] * 4 + [np.full(count, 0.06)], axis=-1)
    boxes = shape[pick] + noise
    boxes[:, 2:4] = np.maximum(boxes[:, 2:4], 2)
    labels = generator.integers(0, len(CLASS_NAMES), objects)[pick]
    return boxes.astype(np.float32), generator.uniform(size=count).astype(np.float32), labels


def labelled_images(seed, images, detections, labels, size=4000):
    """(detections, labels), lists of `images` images with so many detections and labels in all."""
    generator = np.random.default_rng(seed)
    all_detections, all_labels = [], []
    for each in range(images):
        count = labels * (each + 1) // images - labels * each // images
        low, high = [0, 0, 20, 10, -np.pi / 2], [size, size, 150, 60, np.pi / 2]
        boxes = generator.uniform(low, high, (count, 5))
        classes = generator.integers(0, len(CLASS_NAMES), count)
        difficulty = (generator.uniform(size=count) < 0.1).astype(int)
        all_labels.append({"polygons": boxes_to_corners(boxes), "labels": classes, "difficulty": difficulty})
        number = detections * (each + 1) // images - detections * each // images
        pick = generator.integers(0, count, number)
        moved = boxes[pick] + generator.normal(size=(number, 5)) * [4, 4, 4, 3, 0.05]
        found = {"boxes": moved.astype(np.float32), "scores": generator.uniform(size=number), "labels": classes[pick]}
        all_detections.append(found)
    return all_detections, all_labels


def plain_merge(boxes, scores, labels, threshold=0.1):
    """Each detection against every kept one of its class."""
    polygons = [shapely.Polygon(corners) for corners in boxes_to_corners(boxes.astype(np.float64))]
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        if all(labels[other] != labels[index] or _iou(polygons[other], polygons[index]) <= threshold for other in kept):
            kept.append(index)
    return np.array(kept)


def plain_ap50(detections, labels):
    """VOC12 AP of each class at IoU 0.5, [K]."""
    table = []
    for label in range(len(CLASS_NAMES)):
        rows, num_gts, objects = [], 0, []
        for image, (found, truth) in enumerate(zip(detections, labels, strict=True)):
            own = np.flatnonzero(truth["labels"] == label)
            objects.append([(row, shapely.Polygon(truth["polygons"][row])) for row in own])
            num_gts += int((truth["difficulty"][own] == 0).sum())
            for row in np.flatnonzero(found["labels"] == label):
                corners = boxes_to_corners(found["boxes"][row].astype(np.float64))
                rows.append((found["scores"][row], image, shapely.Polygon(corners)))
        taken, outcome = set(), []
        for _, image, polygon in sorted(rows, key=lambda row: -row[0]):
            overlaps = [_iou(polygon, other) for _, other in objects[image]]
            best = int(np.argmax(overlaps)) if overlaps else None
            if best is None or overlaps[best] <= 0.5:
                outcome.append(0)
            elif labels[image]["difficulty"][objects[image][best][0]] == 0:
                outcome.append(int((image, best) not in taken))
                taken.add((image, best))
        true = np.cumsum(outcome)
        precision = true / np.arange(1, len(true) + 1)
        best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
        table.append(np.sum(best_from_here * np.array(outcome)) / num_gts)
    return np.array(table)


def _iou(polygon1, polygon2):
    shared = polygon1.intersection(polygon2).area
    return shared / (polygon1.area + polygon2.area - shared)


def seconds(function, *arguments):
    """(seconds, result)."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def write_and_read(detections):
    """Task-1 files of all images, written, read, and zipped with checks."""
    by_image = {f"P{image:04}": one for image, one in enumerate(detections)}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write, _ = seconds(dota.write_task1, folder / "task1", by_image, CLASS_NAMES)
        read, _ = seconds(dota.read_task1, folder / "task1", CLASS_NAMES)
        submit, problems = seconds(dota.write_submission, folder / "s.zip", by_image, CLASS_NAMES)
        assert not problems, problems[:3]
    return write, read, submit


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes, without limits")
    shrink = 10 if parser.parse_args().quick else 1
    good = True
    print(f"{os.cpu_count()} CPU cores")

    def show(what, taken, limit=None, note=""):
        nonlocal good
        missed = limit is not None and shrink == 1 and taken > limit
        good &= not missed
        limit_text = "" if limit is None else f"limit {limit} s{' MISSED' if missed else ''}"
        print(f"{what:<58}{taken:9.2f} s   {limit_text:<16}{note}")

    for count, limit in ((100_000, 3), (1_000_000, 40)):
        count //= shrink
        taken, kept = seconds(merge_detections, *crowded_scene(0, count))
        show(f"merge {count:,} detections of {SCENE:,} x {SCENE:,}", taken, limit, f"{len(kept):,} kept")
    small = crowded_scene(1, 5000 // shrink, size=SCENE // 20)
    plain_taken, expected = seconds(plain_merge, *small)
    taken, kept = seconds(merge_detections, *small)
    same = np.array_equal(kept, expected)
    good &= same
    note = f"{plain_taken / taken:,.0f} times as fast as the plain form, {'identical' if same else 'DIFFERENT'}"
    show(f"merge {len(small[0]):,} detections of {SCENE // 20:,} x {SCENE // 20:,}", taken, note=note)

    images = 450 // shrink
    detections, labels = labelled_images(2, images, 250_000 // shrink, 30_000 // shrink)
    taken, result = seconds(mean_average_precision, detections, labels, CLASS_NAMES)
    what = f"score {images} images, {250_000 // shrink:,} detections, {30_000 // shrink:,} labels"
    show(what, taken, 30, f"AP50:95 {result.figures()['AP50:95']:.4f}, ten thresholds")
    part = detections[: images // 45], labels[: images // 45]
    plain_taken, expected = seconds(plain_ap50, *part)
    taken, result = seconds(mean_average_precision, *part, CLASS_NAMES)
    difference = np.abs(result.ap_voc12[:, 0] - expected).max()
    good &= bool(difference < 1e-4)
    note = f"{plain_taken / taken:,.0f} times as fast as the plain form at one, AP differs by {difference:.0e}"
    show(f"score {len(part[0])} of these images", taken, note=note)

    for what, taken in zip(("write", "read", "zip and check"), write_and_read(detections), strict=True):
        show(f"{what} Task-1 files of {250_000 // shrink:,} detections", taken)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
