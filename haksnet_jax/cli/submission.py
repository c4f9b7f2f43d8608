"""Packs predictions for DOTA's evaluation server and checks the zip: what the command `submit` does."""

import collections
import os
import pathlib
import sys
from collections.abc import Sequence

from haksnet_jax.errors import UserError
from haksnet_jax.labels import encodings
from haksnet_jax.results import dota, predictions
from haksnet_jax.results.thresholds import MERGE_IOU
from haksnet_jax.wording import counted

_SHOWN = 20


def image_names(source: str | os.PathLike[str]) -> list[str]:
    """Image names without extension: of the files in a folder and below, or of the lines of a text file.

    Raises:
      ValueError: there is no such folder or file, or it names no image.
    """
    path = pathlib.Path(source)
    if path.is_dir():
        names = [file.name for file in sorted(path.rglob("*")) if dota.is_image_file(file)]
    elif path.is_file():
        names = [name for name in encodings.read_lines(path) if name]
    else:
        raise UserError(f"{source} is neither a folder of images nor a list of their names.")
    if not names:
        raise UserError(f"{source} names no image.")
    return list(dict.fromkeys(dota.image_stem(name) for name in names))


def submit(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    class_names: Sequence[str],
    *,
    test_images: Sequence[str] | None = None,
    train_images: Sequence[str] | None = None,
    iou_threshold: float = MERGE_IOU,
) -> bool:
    """Reads predictions, merges tiles, writes the zip and says on the terminal what it did and found.

    Args:
      source: folder of Task-1 files, or a detections.json, or the folder it lies in.
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
    found = predictions.read(source, class_names)
    detections, problems = found.by_image, found.problems
    _report(problems, warnings=dota.WARNINGS | {"missing_file"})
    if any(problem.reason != "missing_file" for problem in problems):
        print(f"{output} was not written: the predictions cannot be read completely.", file=sys.stderr)
        return False

    if test_images is None or not set(detections) <= set(test_images):
        detections, num_tiles, warning = predictions.merge_if_tiles(detections, iou_threshold)
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
        if num_tiles:
            tiles = counted(num_tiles, "tile")
            print(f"merged {tiles} into {counted(len(detections), 'image')} at IoU {iou_threshold:g}")
    if test_images is None:
        print("warning: image names are not checked; give --images or --image-list", file=sys.stderr)
    tested = predictions.original_images(detections if test_images is None else test_images)
    trained = predictions.original_images(train_images or ())
    known = "what was trained on is not named (--train-images)"
    if train_images:
        known = f"trained on {counted(len(trained), 'image')}"
    classes = counted(len(class_names), "class", "classes")
    print(f"protocol: {classes}, tested on {counted(len(tested), 'image')}, {known}")
    both = sorted(trained & tested)
    if both:
        print(
            f"warning: {counted(len(both), 'image')} in both training and test ({', '.join(both[:3])}"
            f"{', ...' if len(both) > 3 else ''}): the result will not be comparable",
            file=sys.stderr,
        )

    detections, slivers = dota.leave_out_slivers(detections)
    if slivers:
        print(
            f"warning: {counted(sum(slivers.values()), 'detection')} in {counted(len(slivers), 'image')} left out: "
            "written with two decimals they enclose no area "
            f"({', '.join(list(slivers)[:3])}{', ...' if len(slivers) > 3 else ''})",
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
    what = f"{counted(count, 'detection')} in {counted(len(detections), 'image')}"
    print(f"{output}: {what}, {counted(len(class_names), 'class file')}, checked")
    return True


def _report(problems, *, warnings):
    for problem in problems[:_SHOWN]:
        print(f"{'warning: ' if problem.reason in warnings else ''}{problem}", file=sys.stderr)
    if len(problems) > _SHOWN:
        counts = collections.Counter(problem.reason for problem in problems)
        summary = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        print(f"... {len(problems)} in all: {summary}", file=sys.stderr)
