"""Packs predictions for DOTA's evaluation server and checks the zip: what the command `submit` does."""

import collections
import pathlib
import sys

from haksnet_jax.errors import UserError
from haksnet_jax.labels.dota import polygons_to_boxes
from haksnet_jax.results import dota, tiles

_SHOWN = 20


def image_names(source):
    """Image names without extension: of the files in a folder and below, or of the lines of a text file.

    Raises:
      ValueError: there is no such folder or file, or it names no image.
    """
    path = pathlib.Path(source)
    if path.is_dir():
        names = [file.name for file in sorted(path.rglob("*")) if dota.is_image_file(file)]
    elif path.is_file():
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    else:
        raise UserError(f"{source} is neither a folder of images nor a list of their names.")
    if not names:
        raise UserError(f"{source} names no image.")
    return list(dict.fromkeys(dota.image_stem(name) for name in names))


def read_predictions(source, class_names):
    """Predictions in any form the command takes.

    Returns:
      (detections_by_image, list of Problem).

    Raises:
      ValueError: the source is none of these forms, or its content does not fit the classes.
    """
    path = pathlib.Path(source)
    if path.is_dir() and any(path.glob("Task1_*.txt")):
        detections, problems = dota.read_task1(path, class_names)
        beside = next((p for p in (path / "detections.json", path.parent / "detections.json") if p.is_file()), None)
        if beside is not None and any(map(tiles.is_tile_name, detections)):  # it knows to what tiles were resized
            sizes = {name: one["size"] for name, one in dota.read_detections_json(beside, class_names).items()}
            detections = {name: {**one, "size": sizes.get(name)} for name, one in detections.items()}
        return detections, problems
    if path.is_dir() and (path / "detections.json").is_file():
        path = path / "detections.json"
    if not path.is_file():
        raise UserError(f"{source} is neither a detections.json nor a folder with one or with Task1_<class>.txt files.")
    return dota.read_detections_json(path, class_names), []


def original_images(names):
    """Names of the images that tiles were cut from; names that are not those of tiles stay."""
    return {tiles.parse_tile_name(name).image if tiles.is_tile_name(name) else name for name in names}


def merge_if_tiles(detections_by_image, iou_threshold):
    """(detections by image, number of merged tiles): predictions for tiles merged, others as they are."""
    if not detections_by_image or not all(map(tiles.is_tile_name, detections_by_image)):
        return detections_by_image, 0
    boxed = {}
    for name, detections in detections_by_image.items():
        boxes = detections["boxes"] if "boxes" in detections else polygons_to_boxes(detections["polygons"])[0]
        boxed[name] = {**detections, "boxes": boxes}
    windows = {tiles.parse_tile_name(name).scale for name in boxed}
    if len(windows) > 1 and not any(one.get("size") for one in boxed.values()):
        print(
            f"warning: tiles have windows of several sizes ({', '.join(map(str, sorted(windows)))}) and are taken as "
            "not resized; a detections.json beside Task-1 files would tell",
            file=sys.stderr,
        )
    return tiles.merge_tiles(boxed, iou_threshold=iou_threshold), len(boxed)


def submit(predictions, output, class_names, *, test_images=None, train_images=None, iou_threshold=0.1):
    """Reads predictions, merges tiles, writes the zip and says on the terminal what it did and found.

    Args:
      predictions: folder of Task-1 files, or a detections.json, or the folder it lies in.
      output: the zip to write.
      class_names: all classes of the data set's version, in the order of the label numbers.
      test_images: names of the test images without extension; None leaves names unchecked.
      train_images: names of the images, or their tiles, that were trained on; None where that is not known.
      iou_threshold: at which predictions for tiles are merged.

    Returns:
      True if the zip was written.

    Raises:
      ValueError: the predictions have none of these forms, or the zip cannot be written.
      OSError: a file cannot be read.
    """
    detections, problems = read_predictions(predictions, class_names)
    _report(problems, warnings=dota.WARNINGS | {"missing_file"})
    if any(problem.reason != "missing_file" for problem in problems):
        print(f"{output} was not written: the predictions cannot be read completely.", file=sys.stderr)
        return False

    if test_images is None or not set(detections) <= set(test_images):
        detections, num_tiles = merge_if_tiles(detections, iou_threshold)
        if num_tiles:
            print(f"merged {num_tiles} tiles into {len(detections)} images at IoU {iou_threshold}")
    if test_images is None:
        print("warning: image names are not checked; give --images or --image-list", file=sys.stderr)
    tested = original_images(detections if test_images is None else test_images)
    trained = original_images(train_images or ())
    known = f"trained on {len(trained)} images" if train_images else "what was trained on is not named (--train-images)"
    print(f"protocol: {len(class_names)} classes, tested on {len(tested)} images, {known}")
    both = sorted(trained & tested)
    if both:
        print(
            f"warning: {len(both)} images are in training and test ({', '.join(both[:3])}"
            f"{', ...' if len(both) > 3 else ''}): the figures will not be comparable",
            file=sys.stderr,
        )

    detections, slivers = dota.leave_out_slivers(detections)
    if slivers:
        print(
            f"warning: {sum(slivers.values())} detections in {len(slivers)} images are left out: written with two "
            f"decimals they enclose no area ({', '.join(list(slivers)[:3])}{', ...' if len(slivers) > 3 else ''})",
            file=sys.stderr,
        )
    try:
        problems = dota.write_submission(output, detections, class_names, image_names=test_images)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from error
    _report(problems, warnings=dota.WARNINGS)
    if any(problem.reason not in dota.WARNINGS for problem in problems):
        print(f"{output} was not written.", file=sys.stderr)
        return False
    count = sum(len(one["scores"]) for one in detections.values())
    print(f"{output}: {count} detections in {len(detections)} images, {len(class_names)} class files, checked")
    return True


def _report(problems, *, warnings):
    for problem in problems[:_SHOWN]:
        print(f"{'warning: ' if problem.reason in warnings else ''}{problem}", file=sys.stderr)
    if len(problems) > _SHOWN:
        counts = collections.Counter(problem.reason for problem in problems)
        summary = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        print(f"... {len(problems)} in all: {summary}", file=sys.stderr)
