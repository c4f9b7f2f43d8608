"""What a label file is that is not in DOTA's text format: recognised by its first lines and named."""

import re
from collections.abc import Sequence

HEADER = re.compile(r"^\s*(imagesource|gsd|acquisition[ _-]?dates?)\s*:", re.IGNORECASE)  # the last is DOTA-v2.0's
YOLO_OBB = "a class index and 8 coordinates between 0 and 1"
_MARGIN = 0.5  # normalised corners may reach a little beyond the image


def numbers(words: Sequence[str]) -> list[float] | None:
    """The words as floats, or None where one is no number."""
    try:
        return [float(word) for word in words]
    except ValueError:
        return None


def is_yolo_obb_line(words: Sequence[str]) -> bool:
    """Whether a line is `index x1 y1 ... x4 y4 [score]` with normalised coordinates. Args: its words."""
    values = numbers(words) if len(words) in (9, 10) else None
    return values is not None and words[0].isdecimal() and _normalised(values[1:])


def _normalised(values):
    return all(-_MARGIN <= value <= 1 + _MARGIN for value in values)


def other_text_format(lines: Sequence[str]) -> str | None:
    """What text is when it is not in DOTA's format.

    Args:
      lines: the file's lines.

    Returns:
      A sentence for the user that names the format and the option that reads it; None where nothing is recognised.
    """
    first = []
    for line in lines:
        if line.strip() and not HEADER.match(line):
            first.append(line.split())
            if len(first) == 1 and len(first[0]) >= 9 and numbers(first[0][:8]) and numbers(first[0][8:9]) is None:
                return None  # eight numbers and a name: no other format begins so
            if len(first) == 4:
                break
    if not first:
        return None
    start = first[0][0]
    if start.startswith("<"):
        return (
            "this is XML, not DOTA's text format: roLabelImg's is read by --format=rolabelimg, CVAT's by --format=cvat"
        )
    if start[0] in "{[" and (start[:2] in ("{", "[", "{}", "[]", "[{") or start[1] in "\"'"):
        return (
            "this is JSON, not DOTA's text format: it is read by --format=coco, labelme, label-studio or geojson, "
            "whichever wrote it"
        )
    if all(is_yolo_obb_line(words) for words in first):
        return (
            f"these look like YOLO-OBB lines ({YOLO_OBB}), not like pixels in DOTA's format: they are read by "
            "--format=yolo-obb (in training by data.format=yolo-obb)"
        )
    values = [numbers(words) for words in first]
    if all(
        words[0].isdecimal() and found and _normalised(found[1:]) for words, found in zip(first, values, strict=True)
    ):
        if all(len(words) in (5, 6) for words in first):
            return (
                "these look like YOLO lines (a class index, centre, width and height between 0 and 1): they hold "
                "axis-parallel boxes, and oriented ones are needed, such as --format=yolo-obb"
            )
        if all(len(words) >= 7 and len(words) % 2 for words in first):
            return (
                "these look like YOLO segmentation lines (a class index and outlines between 0 and 1): they are read "
                "by --format=yolo-obb as the smallest rectangles around the outlines"
            )
    if all(
        len(words) == 10 and numbers(words[:1]) is None and found and 0 <= found[0] <= 1
        for words, found in ((words, numbers(words[1:])) for words in first)
    ):
        return (
            "these look like detections (an image's name, a score and 8 coordinates), not like labels: they are scored "
            "by `haksnet evaluate --predictions`"
        )
    if all(len(words) < 9 and ",".join(words).count(",") >= 8 for words in first):
        return "the columns are separated by commas: DOTA's text format separates them by blanks"
    return None
