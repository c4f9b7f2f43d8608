"""Detections as text: DOTA's Task-1 files (one a class), and the zip that its server takes.

A line of `Task1_<class>.txt` is `image score x1 y1 x2 y2 x3 y3 x4 y4`: the image's name without extension, a score in
0..1, and the corners in pixels of the whole image.
"""

import os
import pathlib
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.geometry import polygon_iou
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.labels.objects import MAX_COORDINATE
from haksnet_jax.labels.problems import Problem, shortened
from haksnet_jax.results.tiles import is_tile_name

# Reasons that leave a submission valid, but that somebody will want to know of.
WARNINGS = frozenset({"no_detections"})
_LONGEST_NAME = 200  # bytes of a file's name: disks take 255, and a temporary name is longer
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def task1_file_name(class_name: str) -> str:
    """The file of a class: Task1_<class>.txt, blanks in the class as hyphens, a slash as %2F."""
    return f"Task1_{class_name.strip().replace(' ', '-').replace('/', '%2F')}.txt"


def task1_class_name(file_name: str) -> str:
    """The class of a Task-1 file, as far as its name tells: blanks and hyphens in it look alike."""
    return file_name.removeprefix("Task1_").removesuffix(".txt").replace("%2F", "/")


def check_file_names(class_names: Iterable[str]) -> None:
    """Finds out before any work whether each class can have its Task-1 file.

    Raises:
      UserError: a name is empty, too long for a file, or has control characters; or two classes would share a file.
    """
    owner: dict[str, str] = {}
    for name in class_names:
        file = task1_file_name(name)
        if not name.strip() or not name.isprintable() or len(file.encode()) > _LONGEST_NAME:
            raise UserError(
                f"class {shortened(name)!r} cannot be the name of a file: expected 1 to {_LONGEST_NAME - 10} bytes "
                "without control characters; rename it in model.json or classes.txt, or leave out Task-1 files"
            )
        other = owner.setdefault(file, name)
        if other != name:
            raise UserError(
                f"classes {shortened(other)!r} and {shortened(name)!r} would share the file {file}: rename one of "
                "them, or leave out Task-1 files"
            )


def format_task1(detections_by_image: Mapping[str, Mapping[str, Any]], class_names: Sequence[str]) -> dict[str, str]:
    """The texts of all Task-1 files.

    Args:
      detections_by_image: a dict from image name to {"boxes": [n, 5] or "polygons": [n, 4, 2], "scores", "labels"}.
      class_names: the classes, in the order of the label numbers.

    Returns:
      A dict from file name to text, one for every class, empty ones too. Lines are in the order of the images, then by
      descending score; coordinates have two decimals, scores nine (more than float32 tells apart above 0.01).
    """
    lines: dict[int, list[str]] = {label: [] for label in range(len(class_names))}
    for image, detections in detections_by_image.items():
        scores, labels = np.asarray(detections["scores"], np.float64), np.asarray(detections["labels"], np.int64)
        if not len(scores):
            continue
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise UserError(
                f"Image {image!r} has labels {labels.min()} to {labels.max()}; there are {len(class_names)} classes."
            )
        polygons = _polygons(detections)
        if not (np.isfinite(polygons).all() and np.isfinite(scores).all()):
            raise UserError(f"Image {image!r} has boxes or scores that are not finite.")
        polygons = _from_top_left(polygons).reshape(-1, 8)
        order = np.argsort(-scores, kind="stable")
        rows = zip(labels[order].tolist(), scores[order].tolist(), polygons[order].tolist(), strict=True)
        for label, score, corners in rows:
            lines[label].append(f"{image} {score:.9f} {' '.join(f'{value:.2f}' for value in corners)}\n")
    return {task1_file_name(name): "".join(lines[label]) for label, name in enumerate(class_names)}


def _polygons(detections):
    if "polygons" in detections:
        return np.asarray(detections["polygons"], np.float64).reshape(-1, 4, 2)
    return boxes_to_corners(np.asarray(detections["boxes"], np.float64).reshape(-1, 5))


def _without_area(polygons):
    """[n] bool, quadrilaterals that enclose nothing when their corners are written with two decimals."""
    # Half of the smallest area that such corners can enclose.
    return np.abs(polygon_iou.polygon_area(polygon_iou.uncross(np.round(polygons, 2)))) < 0.25e-4


def leave_out_slivers(
    detections_by_image: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Mapping[str, Any]], dict[str, int]]:
    """Leaves out detections that enclose no area once they are written with two decimals, which the server refuses.

    Args:
      detections_by_image: as in `format_task1`.

    Returns:
      (the others, dict from image name to the number left out, without those of which none was).
    """
    kept, counts = {}, {}
    for image, detections in detections_by_image.items():
        keep = ~_without_area(_polygons(detections))
        if not keep.all():
            counts[image] = int((~keep).sum())
            rows = {name: np.asarray(values)[keep] for name, values in detections.items() if name != "size"}
            detections = {**detections, **rows}
        kept[image] = detections
    return kept, counts


def _from_top_left(polygons):
    """Begins each polygon at the corner that makes it match its enclosing box best, corner by corner."""
    low, high = polygons.min(axis=1), polygons.max(axis=1)
    frame = np.stack([low, np.stack([high[:, 0], low[:, 1]], -1), high, np.stack([low[:, 0], high[:, 1]], -1)], axis=1)
    turned = np.stack([np.roll(polygons, -first, axis=1) for first in range(4)], axis=1)  # [n, 4 beginnings, 4, 2]
    distance = np.linalg.norm(turned - frame[:, None], axis=-1).sum(axis=-1)
    return turned[np.arange(len(polygons)), distance.argmin(axis=1)]


def write_task1(
    folder: str | os.PathLike[str], detections_by_image: Mapping[str, Mapping[str, Any]], class_names: Sequence[str]
) -> list[epath.Path]:
    """Writes one Task-1 file for every class; either all of them appear or, if one cannot be written, none.

    (In a bucket, where nothing can be renamed, each of them appears whole.)

    Args:
      folder: where; made if it does not exist.
      detections_by_image: as in `format_task1`.
      class_names: the classes, in the order of the label numbers.

    Returns:
      The paths.

    Raises:
      ValueError: the folder holds a Task-1 file of another class, which would be taken for one of these.
      OSError: a file cannot be written.
    """
    folder = epath.Path(folder)
    check_file_names(class_names)
    texts = format_task1(detections_by_image, class_names)
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(path.name for path in folder.glob("Task1_*.txt") if path.name not in texts)
    if others:
        raise UserError(f"{folder} holds files of other classes ({', '.join(others[:3])}): choose an empty folder.")
    if files.is_bucket(folder):
        for name, text in texts.items():
            files.write_text(folder / name, text)
        return [folder / name for name in texts]
    with tempfile.TemporaryDirectory(prefix=".task1-", dir=folder) as temporary:
        for name, text in texts.items():
            (pathlib.Path(temporary) / name).write_text(text, encoding="utf-8")
        for name in texts:
            os.replace(pathlib.Path(temporary) / name, folder / name)
    return [folder / name for name in texts]


def read_task1(
    folder: str | os.PathLike[str], class_names: Sequence[str]
) -> tuple[dict[str, dict[str, np.ndarray]], list[Problem]]:
    """Reads the Task-1 files of a folder.

    Args:
      folder: holds `Task1_<class>.txt`.
      class_names: the classes, in the order of the label numbers to give.

    Returns:
      (detections_by_image, problems): a dict from image name to {"polygons": [n, 4, 2] float64, "scores": [n] float64,
      "labels": [n] int32}, and a list of Problem. Lines that cannot be read are left out and named there, as are
      missing files and files of other classes.

    Raises:
      UserError: there is no Task-1 file in the folder.
    """
    folder = pathlib.Path(folder)
    if not any(folder.glob("Task1_*.txt")):
        raise UserError(f"{folder} holds no Task1_<class>.txt.")
    problems = []
    names = [task1_file_name(name) for name in class_names]
    detail = f"not one of the {len(names)} classes; not read"
    problems += [
        Problem(str(path), 0, "unexpected_file", detail)
        for path in sorted(folder.glob("Task1_*.txt"))
        if path.name not in names
    ]
    found: dict[str, list[tuple[int, list[float]]]] = {}
    for label, name in enumerate(names):
        path = folder / name
        if not path.exists():
            problems.append(Problem(str(path), 0, "missing_file", "a class without detections needs an empty file"))
            continue
        for _, image, numbers in _read_lines(str(path), files.read_regular(path), problems):
            found.setdefault(image, []).append((label, numbers))
    detections_by_image: dict[str, dict[str, np.ndarray]] = {}
    for image, rows in found.items():
        table = np.array([row for _, row in rows], np.float64)
        detections_by_image[image] = {
            "polygons": table[:, 1:].reshape(-1, 4, 2),
            "scores": table[:, 0],
            "labels": np.array([label for label, _ in rows], np.int32),
        }
    return detections_by_image, problems


def _read_lines(path, content, problems):
    """[(line, image, [score, 8 coordinates])] of one file; what is wrong with a line goes to `problems`."""
    rows = []
    for number, line in enumerate(content.decode("utf-8-sig", errors="replace").splitlines(), start=1):
        # From the right: the name of an image of one's own may hold spaces.
        words = line.rsplit(None, 9)
        if not words:
            continue
        if len(words) != 10:
            detail = f"expected an image's name, a score and 8 coordinates, found {len(words)} words: {line[:60]!r}"
            problems.append(Problem(path, number, "bad_line", detail))
            continue
        try:
            numbers = [float(word) for word in words[1:]]
        except ValueError:
            problems.append(Problem(path, number, "bad_number", f"expected 9 numbers after the name: {line[:60]!r}"))
            continue
        if not all(abs(value) <= MAX_COORDINATE for value in numbers):  # catches NaN too
            problems.append(Problem(path, number, "bad_number", f"a number is not finite or too large: {line[:60]!r}"))
            continue
        if not 0 <= numbers[0] <= 1:
            problems.append(Problem(path, number, "bad_score", f"expected a score in 0..1, found {numbers[0]:g}"))
            continue
        rows.append((number, words[0].strip(), numbers))
    return rows


def is_image_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path ends like an image."""
    return pathlib.PurePath(path).suffix.lower() in _IMAGE_SUFFIXES


def image_stem(name: str | os.PathLike[str]) -> str:
    """An image's name without folder and image extension; other dots stay."""
    name = pathlib.PurePath(name).name
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in _IMAGE_SUFFIXES else name


def write_submission(
    path: str | os.PathLike[str],
    detections_by_image: Mapping[str, Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    image_names: Iterable[str] | None = None,
) -> list[Problem]:
    """Writes the zip for DOTA's evaluation server, checked before it appears.

    Args:
      path: the zip. It is not touched if a check fails.
      detections_by_image: as in `format_task1`.
      class_names: all classes of the data set's version, in the order of the label numbers.
      image_names: names of the test images, without extension; None leaves them unchecked.

    Returns:
      The list of Problem that `check_submission` found. If one of them has a reason outside WARNINGS, nothing was
      written.

    Raises:
      ValueError: labels outside the classes, or numbers that are not finite.
      OSError: the file cannot be written.
    """
    path = pathlib.Path(path)
    check_file_names(class_names)
    texts = format_task1(detections_by_image, class_names)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in texts.items():
                # A fixed date: the same detections give the same file, byte for byte.
                archive.writestr(zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)
        problems = [
            problem._replace(path=problem.path.replace(str(temporary), str(path)))
            for problem in check_submission(temporary, class_names, image_names=image_names)
        ]
        if all(problem.reason in WARNINGS for problem in problems):
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return problems


def check_submission(
    path: str | os.PathLike[str], class_names: Sequence[str], *, image_names: Iterable[str] | None = None
) -> list[Problem]:
    """Checks a submission zip, whoever wrote it.

    Reasons: `not_a_zip`, `missing_file` (a class has no file), `unexpected_file` (also folders in the zip),
    `bad_line`, `bad_number`, `bad_score` (outside 0..1), `bad_image_name` (an extension, a space), `tile_name`
    (detections of tiles that were not merged), `unknown_image` (not among the test images), `zero_area`, and as
    warnings `no_detections` (test images without any).

    Args:
      path: the zip.
      class_names: all classes of the data set's version.
      image_names: names of the test images, without extension; None leaves them unchecked.

    Returns:
      A list of Problem, empty if the zip is ready to send; reasons in WARNINGS do not stand in the way.
    """
    path = pathlib.Path(path)
    if not zipfile.is_zipfile(path):
        return [Problem(str(path), 0, "not_a_zip", "the server takes one zip file")]
    problems = []
    expected = [task1_file_name(name) for name in class_names]
    known = None if image_names is None else set(image_names)
    seen: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        for name in sorted(set(members) - set(expected)):
            detail = f"expected only Task1_<class>.txt of the {len(expected)} classes, and no folders"
            problems.append(Problem(f"{path}/{name}", 0, "unexpected_file", detail))
        for name in expected:
            where = f"{path}/{name}"
            if name not in members:
                detail = "the file is missing; a class without detections needs an empty one"
                problems.append(Problem(where, 0, "missing_file", detail))
                continue
            rows = _read_lines(where, archive.read(name), problems)
            numbers = np.array([values for _, _, values in rows], np.float64).reshape(-1, 9)
            problems += [
                Problem(where, rows[row][0], "zero_area", "the four corners enclose no area")
                for row in np.flatnonzero(_without_area(numbers[:, 1:].reshape(-1, 4, 2)))
            ]
            first_lines: dict[str, int] = {}
            for line, image, _ in rows:
                first_lines.setdefault(image, line)
            for image, line in first_lines.items():  # one report for each image and file
                reason, detail = _image_name_problem(image, known)
                if reason:
                    problems.append(Problem(where, line, reason, detail))
            seen.update(first_lines)
    without = [] if known is None else sorted(known - seen)
    if known and without:
        detail = f"{len(without)} of {len(known)} test images have no detections, for example {', '.join(without[:3])}"
        problems.append(Problem(str(path), 0, "no_detections", detail))
    return problems


def _image_name_problem(image, known):
    """(reason, detail) of what is wrong with an image's name in a submission; (None, None) if nothing is."""
    if image_stem(image) != image or " " in image:
        return "bad_image_name", f"expected an image's name without extension and spaces, found {image!r}"
    if is_tile_name(image) and image not in (known or ()):
        return "tile_name", f"{image!r} is a tile: merge the tiles into images first"
    if known is not None and image not in known:
        return "unknown_image", f"{image!r} is not among the {len(known)} test images"
    return None, None
