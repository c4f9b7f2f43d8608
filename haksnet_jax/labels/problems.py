"""What can be odd about a data set: one list of reasons, each of which knows whether something is lost by it."""

import enum
import os
from typing import NamedTuple, Self

from haksnet_jax.errors import UserError

MAX_UNKNOWN_SHARE = 0.5  # of all labels, of classes that are not in the list: above it the list is the wrong one


class Reason(enum.StrEnum):
    """Why a line, a file, an object or an image is named; `loses` says whether something is left out for it.

    Readers of images have further keys of their own (`truncated_image`, ...): each of them loses the image.
    """

    loses: bool
    meaning: str

    def __new__(cls, key: str, loses: bool, meaning: str) -> Self:
        """A member: its key as text, with what it says of losses and a line for the documentation."""
        member = str.__new__(cls, key)
        member._value_ = key
        member.loses = loses
        member.meaning = meaning
        return member

    # Lines of a label file, objects of an annotation file.
    TOO_FEW_NUMBERS = "too_few_numbers", True, "fewer coordinates than four points have, or no class"
    TOO_MANY_NUMBERS = "too_many_numbers", True, "more than four points"
    BAD_NUMBER = "bad_number", True, "a coordinate that is no number, not finite, or beyond 1e7 pixels"
    UNKNOWN_CLASS = "unknown_class", True, "a class that is not among the given ones"
    ZERO_AREA = "zero_area", True, "four points on one line, or in one place"
    MISSING_TAG = "missing_tag", True, "an annotation without something that every object has"
    NO_OUTLINE = "no_outline", True, "an annotation without an outline or a box that can be used"
    BAD_OBJECT = "bad_object", True, "an object in JSON that is not of the form that is expected"
    WHOLLY_OUTSIDE = "wholly_outside", True, "the object lies outside its image"
    TOO_SMALL = "too_small", True, "a side of the object is shorter than asked for"
    CLASS_RESPELLED = "class_respelled", False, "the class was found by ignoring case, blanks, underscores and hyphens"
    NO_DIFFICULTY = "no_difficulty", False, "no difficulty is given: read as 0, named once a file"
    BAD_DIFFICULTY = "bad_difficulty", False, "a difficulty that is no whole number from 0 to 100: read as 0"
    CROSSED = "crossed", False, "edges cross: the points are in no order around the object; its box encloses all four"
    DUPLICATE = "duplicate", False, "same points and class as an earlier object"
    PARTLY_OUTSIDE = "partly_outside", False, "the object reaches beyond its image"
    IN_NO_TILE = "in_no_tile", False, "no tile holds enough of the object"

    # Files of labels.
    OTHER_FORMAT = "other_format", True, "a label file in another format than the one that is read"
    BAD_ENCODING = "bad_encoding", True, "a label file whose text is not UTF-8"
    BAD_XML = "bad_xml", True, "an annotation file that is no well-formed XML, or nests too deeply"
    BAD_JSON = "bad_json", True, "an annotation file that is no JSON, or not of the form that is expected"
    TOO_LARGE = "too_large", True, "an annotation file of more bytes or objects than is read"
    UNREADABLE_LABELS = "unreadable_labels", True, "a label file that cannot be opened"
    IMAGE_WITHOUT_LABELS = "image_without_labels", True, "no label file has the image's name"
    LABELS_WITHOUT_IMAGE = "labels_without_image", True, "no image has the label file's name"
    MISSING_FILE = "missing_file", True, "a file that a list names is not there"
    SIMILAR_CLASSES = "similar_classes", False, "two classes differ only in case, blanks, hyphens or underscores"

    # Masks of pixels' classes, and pairs of images of two dates.
    NO_PARTNER = "no_partner", True, "an image without a mask, a mask without an image, or a date without the other"
    UNREADABLE_MASK = "unreadable_mask", True, "a mask that cannot be read, or is a JPEG"
    SIZE_DIFFERS = "size_differs", True, "a mask, or the other date, of another size than its image"
    UNKNOWN_VALUE = "unknown_value", True, "pixels of a mask whose value or colour is no class: they have no label"
    NO_LABELLED_PIXEL = "no_labelled_pixel", False, "a mask without any pixel of a class"
    EMPTY_CLASS = "empty_class", False, "a class that no mask has"
    ONE_CLASS = "one_class", False, "all masks together have one class only"

    # Folders of whole images' classes.
    CLASS_WITHOUT_IMAGES = "class_without_images", True, "the folder of a class holds no image"
    CLASS_MISSING = "class_missing", True, "a split lacks the folder of a class that another one has"
    NO_IMAGE = "no_image", False, "a file or folder beside the images of a class that is no image"
    NO_CLASS = "no_class", True, "an image beside the folders of the classes, or in a folder inside of one"
    FEW_IMAGES = "few_images", False, "a class of fewer than ten images"
    TWO_CLASSES = "two_classes", False, "the same image in the folders of two classes"
    TWO_SPLITS = "two_splits", False, "the same image in two splits"
    TWICE = "twice", False, "the same image a second time"

    # Images.
    SAME_NAME = "same_name", True, "two images differ in their endings alone"
    UNREADABLE_IMAGE = "unreadable_image", True, "an image that cannot be opened"
    UNENCODABLE_TILE = "unencodable_tile", True, "pixels that the format of the tiles cannot hold"
    WRONG_EXTENSION = "wrong_extension", False, "the content is of another format than the name says"
    BLANK_IMAGE = "blank_image", False, "all pixels are equal"
    TURNED_IMAGE = "turned_image", False, "the file says that it is to be turned (EXIF)"
    SEVERAL_PAGES = "several_pages", False, "the file holds several images, of which the first is read"
    FIRST_BANDS = "first_bands", False, "bands without declared colours: the first three are read, or the first as grey"


# A file of labels that is not read, so that its image would seem to have no objects.
UNREAD = frozenset(
    {
        Reason.OTHER_FORMAT,
        Reason.BAD_ENCODING,
        Reason.BAD_XML,
        Reason.BAD_JSON,
        Reason.TOO_LARGE,
        Reason.UNREADABLE_LABELS,
    }
)

_BY_KEY = {reason.value: reason for reason in Reason}


class Problem(NamedTuple):
    """Something odd in the input.

    Attributes:
      path: the file.
      line: its line, from 1; 0 for the file as a whole.
      reason: a Reason, or the key of an image's fault: what is counted by.
      detail: a sentence for the reader.
      subject: what the sentence is about, to be counted by: the name of an unknown class; else "".
    """

    path: str
    line: int
    reason: str
    detail: str
    subject: str = ""

    @property
    def loses(self) -> bool:
        """Whether a line, an object, an image or a file is left out by it."""
        reason = _BY_KEY.get(self.reason)
        return reason is None or reason.loses

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        return printable(f"{where}: {self.detail} [{self.reason}]")


def of_image(path: str | os.PathLike[str], error: Exception) -> Problem:
    """The problem of an image that cannot be used. Args: path; error, an images' ImageError or an OSError."""
    reason = getattr(error, "reason", Reason.UNREADABLE_IMAGE)
    detail = getattr(error, "sentence", None) or getattr(error, "strerror", None) or str(error)
    return Problem(str(path), 0, reason, detail)


def require_read(problems: list[Problem]) -> None:
    """Refuses labels of which whole files are not read: their images would seem to have no objects.

    Args:
      problems: list of Problem.

    Raises:
      UserError: it names the first such file, and how many there are.
    """
    unread = [problem for problem in problems if problem.reason in UNREAD]
    if unread:
        more = f"; {len(unread)} such problems, `haksnet validate` lists them" if len(unread) > 1 else ""
        raise UserError(f"{unread[0]}{more}")


def losses(problems: list[Problem]) -> list[Problem]:
    """Those of some problems by which something is left out."""
    return [problem for problem in problems if problem.loses]


def printable(text: str) -> str:
    """The text with every character escaped that a terminal would obey or that cannot be encoded."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shortened(text: str, limit: int = 60) -> str:
    """A value from a file, to be quoted in a sentence: at most `limit` characters, none that a terminal obeys."""
    text = printable(text.strip())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def count_reasons(problems: list[Problem]) -> str:
    """`3 unknown_class, 1 zero_area`: the problems counted by reason, the most frequent first."""
    counts: dict[str, int] = {}
    for problem in problems:
        counts[problem.reason] = counts.get(problem.reason, 0) + 1
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items(), key=lambda item: -item[1]))


def listed(problems: list[Problem], per_reason: int = 5) -> str:
    """The problems one a line, at most so many of each reason; the rest only counted."""
    by_reason: dict[str, list[Problem]] = {}
    for problem in problems:
        by_reason.setdefault(problem.reason, []).append(problem)
    lines = []
    for reason, found in by_reason.items():
        lines += [f"  {problem}" for problem in found[:per_reason]]
        if len(found) > per_reason:
            lines.append(f"  ... and {len(found) - per_reason} more of {reason}")
    return "\n".join(lines)


def unknown_classes(
    problems: list[Problem],
    num_known: int,
    *,
    allow: bool = False,
    remedy: str = "name the classes of these labels",
) -> str | None:
    """What to say of labels that are left out for their class.

    Args:
      problems: list of Problem; those with the reason unknown_class are counted.
      num_known: number of labels whose class is in the list.
      allow: True never raises.
      remedy: what to do, for the error.

    Returns:
      "4 of 8 labels (50 %) are left out, their classes are not in the list: hangar (4)", or None without such labels.

    Raises:
      UserError: their share is above MAX_UNKNOWN_SHARE, and not allowed.
    """
    counts: dict[str, int] = {}
    for problem in problems:
        if problem.reason == Reason.UNKNOWN_CLASS:
            counts[problem.subject] = counts.get(problem.subject, 0) + 1
    num_unknown = sum(counts.values())
    if not num_unknown:
        return None
    share = num_unknown / (num_unknown + num_known)
    names = sorted(counts, key=lambda name: -counts[name])
    found = ", ".join(f"{printable(name)} ({counts[name]})" for name in names[:10])
    more = f" and {len(names) - 10} more classes" if len(names) > 10 else ""
    sentence = (
        f"{num_unknown} of {num_unknown + num_known} labels ({100 * share:.3g} %) are left out, their classes are not "
        f"in the list: {found}{more}"
    )
    if share > MAX_UNKNOWN_SHARE and not allow:
        raise UserError(f"{sentence}. That is more than {MAX_UNKNOWN_SHARE:.0%}: {remedy}")
    return sentence
