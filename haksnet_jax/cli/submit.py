"""Writes the Task-1 zip for DOTA's evaluation server, and checks it.

    python -m haksnet_jax submit --predictions=DIR_OR_DETECTIONS_JSON --output=FILE.zip --classes=dota10 --images=DIR

Predictions are a folder of Task1_<class>.txt files, a `detections.json`, or a folder that holds one. Predictions for
tiles (P0706__1024__0___824, resized or not) are merged into predictions for images first. Detections without area are
left out and counted. The exit status is 1, and no file is written, if the server would refuse the zip.
"""

import collections
import pathlib
import sys

from absl import app, flags

from haksnet_jax.labels.dota import CLASSES, polygons_to_boxes, read_class_names
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
        raise ValueError(f"{source} is neither a folder of images nor a list of their names.")
    if not names:
        raise ValueError(f"{source} names no image.")
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
        raise ValueError(
            f"{source} is neither a detections.json nor a folder with one or with Task1_<class>.txt files."
        )
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
        raise ValueError(f"cannot write {output}: {error.strerror or error}") from error
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


def run():
    """Entry point of the command."""
    # Defined here and not on import: other commands have flags of the same names, and tests import several of them.
    predictions = flags.DEFINE_string(
        "predictions", None, "Folder of Task1_<class>.txt files, or a detections.json, or the folder it lies in."
    )
    output = flags.DEFINE_string("output", None, "The zip to write.")
    classes = flags.DEFINE_string(
        "classes", "dota10", f"A published list ({', '.join(CLASSES)}), or a text file with one class a line, in order."
    )
    images = flags.DEFINE_string("images", None, "Folder of the test images: every name is checked against it.")
    image_list = flags.DEFINE_string("image-list", None, "Text file with the test images' names, one a line.")
    train_images = flags.DEFINE_string(
        "train-images", None, "Folder or list of the images (or their tiles) trained on: those in both are warned of."
    )
    iou = flags.DEFINE_float(
        "iou", 0.1, "Where predictions are for tiles: IoU above which merging drops the lower score."
    )
    flags.mark_flags_as_required(["predictions", "output"])

    def main(argv):
        if len(argv) > 1:
            raise app.UsageError(f"Unexpected argument: {argv[1]}")
        if images.value and image_list.value:
            raise app.UsageError("Give --images or --image-list, not both.")
        written = False
        try:
            test_source = images.value or image_list.value
            written = submit(
                predictions.value,
                output.value,
                read_class_names(classes.value),
                test_images=image_names(test_source) if test_source else None,
                train_images=image_names(train_images.value) if train_images.value else None,
                iou_threshold=iou.value,
            )
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.strerror:
                error = f"{error.filename}: {error.strerror}"
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("\nStopped; nothing was written.", file=sys.stderr)
            sys.exit(130)
        sys.exit(0 if written else 1)

    app.run(main)


if __name__ == "__main__":
    run()
