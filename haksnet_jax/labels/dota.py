"""Label files in DOTA's text format.

A file holds one object a line, `x1 y1 x2 y2 x3 y3 x4 y4 class [difficulty] [more columns]`, in pixels, separated by
blanks. Header lines (`imagesource:...`, `gsd:...`), blank lines, a byte order mark and either kind of line end are no
problem. Every oddity becomes a `Problem`, whose reason knows whether the line is left out for it.
"""

import array
import functools
import os
import re
from collections.abc import Sequence

import numpy as np

from haksnet_jax import files
from haksnet_jax.labels import classes, encodings, objects, recognise
from haksnet_jax.labels.objects import MAX_COORDINATE, Objects
from haksnet_jax.labels.problems import Problem, Reason, shortened

Path = str | os.PathLike[str]

MAX_BYTES = 2**30  # of one label file
_REMEMBERED = 4096  # columns that are looked up once; where each line's differ (scores), memory must not grow with them
# Of texts that are not UTF-8: tried where the classes tell, in this order.
_ENCODINGS = ("gb18030", "cp1252", "big5", "cp932", "cp949", "cp1251", "cp1250", "cp1254")
_UNDERSCORED = re.compile(r"\d_\d")  # Python reads 1_0 as ten


def read_labels(
    path: Path, class_names: Sequence[str], *, class_aliases: dict[str, str] | None = None
) -> tuple[Objects, list[Problem]]:
    """Reads one label file.

    Args:
      path: the file.
      class_names: the classes, in the order of their labels.
      class_aliases: other spellings, as a dict from the spelling in the files to one of class_names.

    Returns:
      (Objects, list of Problem). The content never raises; the reasons say which lines are left out.

    Raises:
      OSError: the file cannot be read.
      UserError: an alias stands for a class that does not exist.
    """
    finder = classes.finder(tuple(class_names), tuple((class_aliases or {}).items()))
    lines, problem = read_lines(path, finder)
    if problem is not None:
        return objects.none(), [problem]
    return _parse(str(path), lines, finder)


def read_lines(path: Path, finder: classes.Finder | None = None) -> tuple[list[str], Problem | None]:
    """The lines of a label file, or the problem for which it cannot be read.

    Text that is not UTF-8 is read where the classes tell its encoding: where one of _ENCODINGS gives a
    class in each line that has letters beyond ASCII.

    Args:
      path: the file.
      finder: classes.Finder of the classes, or None where they are not known.

    Returns:
      (list of str, None), or ([], Problem of the file as a whole).

    Raises:
      OSError: the file cannot be read.
    """
    data = files.read_regular(path, MAX_BYTES)
    if encodings.is_wide(data):
        # Other tools that read this format take it for damage, so it is mended rather than read.
        detail = "the file is in UTF-16 or UTF-32 ('Unicode' in Notepad): save it as UTF-8"
        return [], Problem(str(path), 0, Reason.BAD_ENCODING, detail)
    try:
        lines = _lines(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        lines = _lines(data.decode("utf-8-sig", errors="replace"))  # a stray byte must not hide the other lines
        for encoding in _ENCODINGS:
            told = _lines(data.decode(encoding, errors="replace"))
            if finder and all(line.isascii() or finder.find(" ".join(line.split()[8:])) for line in told):
                lines = told
                break
    other = recognise.other_text_format(lines)
    return (lines, None) if other is None else ([], Problem(str(path), 0, Reason.OTHER_FORMAT, other))


def raw_lines(path: Path) -> list[str]:
    """The first lines of a text file, as far as they can be read at all, to recognise it by."""
    return _lines(encodings.beginning(path))


def _lines(text):
    # split on newlines alone: str.splitlines also breaks at characters that a class name may hold
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _parse(path, lines, finder):
    coordinates = array.array("d")
    labels, difficulties, numbers, problems, without_difficulty = [], [], [], [], []
    named = set()
    understood = {}  # what `_understand` says of the columns behind the coordinates
    for number, line in enumerate(lines, start=1):
        words = line.split(None, 8)
        if len(words) < 9:
            if words and not recognise.HEADER.match(line):
                problems.append(Problem(path, number, *_too_few(line, words)))
            continue
        try:
            coordinates.extend(map(float, words[:8]))
        except ValueError:
            del coordinates[8 * len(numbers) :]  # what came before the word that is no number
            if recognise.HEADER.match(line):
                if _holds_another_object(line.split()):
                    detail = "an object in the line of a header is left out: each stands in a line of its own"
                    problems.append(Problem(path, number, Reason.TOO_MANY_NUMBERS, detail))
            else:
                word = next(word for word in words if recognise.numbers([word]) is None)
                problems.append(Problem(path, number, *_bad_number(word, words)))
            continue
        found = understood.get(words[8])
        if found is None:
            found = _understand(words[8], finder)
            if len(understood) < _REMEMBERED:
                understood[words[8]] = found
        label, difficulty, oddities = found
        for oddity in oddities:
            if oddity[0] == Reason.NO_DIFFICULTY:
                without_difficulty.append(number)
            elif oddity not in named:
                problems.append(Problem(path, number, *oddity))
                if oddity[0] == Reason.CLASS_RESPELLED:  # each spelling once
                    named.add(oddity)
        if label is None:
            del coordinates[8 * len(numbers) :]
            continue
        labels.append(label)
        difficulties.append(difficulty)
        numbers.append(number)
    if without_difficulty:
        detail = f"no difficulty in {len(without_difficulty)} of {len(numbers)} objects, this is the first; read as 0"
        problems.append(Problem(path, without_difficulty[0], Reason.NO_DIFFICULTY, detail))
    found = objects.of_rows(np.frombuffer(coordinates, np.float64), labels, difficulties, numbers)
    return _finished(path, lines, found, problems)


def _finished(path, lines, found, problems):
    """(Objects, problems) with what is odd about the coordinates."""
    bad = np.flatnonzero(~np.all(np.abs(found.polygons) <= MAX_COORDINATE, axis=(1, 2)))  # catches NaN too
    if any("_" in line and _UNDERSCORED.search(line) for line in lines):
        words = [lines[number - 1].split(None, 8)[:8] for number in found.lines.tolist()]
        bad = np.union1d(bad, [row for row, parts in enumerate(words) if "_" in "".join(parts)]).astype(int)
    if len(bad):
        for number in found.lines[bad].tolist():
            words = lines[number - 1].split(None, 8)
            word = next(word for word in words if "_" in word or not abs(float(word)) <= MAX_COORDINATE)
            problems.append(Problem(path, number, *_bad_number(word, words)))
        found = objects.select(found, np.setdiff1d(np.arange(len(found.lines)), bad))
    found, odd = objects.checked(path, found)
    problems += odd
    problems.sort(key=lambda problem: problem.line)
    return found, problems


@functools.lru_cache(maxsize=_REMEMBERED)  # the same few words end nearly all lines
def _understand(columns, finder):
    """What the columns behind the coordinates say.

    Returns:
      (label, or None where no object is meant; difficulty; list of (reason, detail[, subject]) to be told).
    """
    words, class_names = columns.split(), finder.class_names
    found = finder.find(columns)
    if found is None:
        points = next((i for i, word in enumerate(words) if recognise.numbers([word]) is None), 0)
        if points >= 2:
            detail = f"expected 8 numbers (four points) before the class, found {8 + points}"
            if points % 2 == 0:
                detail += f" ({4 + points // 2} points; five points often repeat the first)"
            return None, 0, [(Reason.TOO_MANY_NUMBERS, detail)]
        subject = classes.name_and_difficulty(words)[0]
        name = shortened(subject)
        more = ", ..." if len(class_names) > 4 else ""
        detail = f"class '{name}' is not among the {len(class_names)} given ones ({', '.join(class_names[:4])}{more})"
        if "\ufffd" in name:
            detail += "; its letters are not UTF-8: save the file as UTF-8"
        return None, 0, [(Reason.UNKNOWN_CLASS, detail, subject)]
    oddities = []
    if found.respelled is not None:
        detail = f"class '{shortened(found.respelled)}' is read as '{class_names[found.label]}'"
        oddities.append((Reason.CLASS_RESPELLED, detail, found.respelled))
    if _holds_another_object(words):
        detail = "a second object in the same line is left out: each stands in a line of its own"
        oddities.append((Reason.TOO_MANY_NUMBERS, detail))
    difficulty = 0 if found.difficulty is None else classes.read_difficulty(found.difficulty)
    if found.difficulty is None:
        oddities.append((Reason.NO_DIFFICULTY, ""))
    elif difficulty is None:
        wanted = f"expected a whole number from 0 to {classes.MAX_DIFFICULTY}"
        oddities.append((Reason.BAD_DIFFICULTY, f"difficulty '{shortened(found.difficulty)}' is read as 0: {wanted}"))
    return found.label, difficulty or 0, oddities


def _holds_another_object(words):
    """Whether the columns behind the coordinates go on with eight numbers and a name, as where a line end was lost."""
    return any(
        recognise.numbers(words[place : place + 8]) and recognise.numbers(words[place + 8 : place + 9]) is None
        for place in range(1, len(words) - 8)
    )


def _too_few(line, words):
    detail = f"expected 8 coordinates, a class and a difficulty, found {len(words)} words: '{shortened(line)}'"
    return Reason.TOO_FEW_NUMBERS, detail


def _bad_number(word, words):
    detail = f"expected a coordinate in pixels, found '{shortened(word)}'"
    if word is words[0] and recognise.numbers(words[1:8]) is not None:
        comma = recognise.numbers([word.replace(",", ".")]) is not None
        detail += ": decimals are written with a point" if comma else ": the class stands behind the coordinates"
    return Reason.BAD_NUMBER, detail


def written_class_names(path: Path) -> tuple[str, ...]:
    """Class names of a label file as they are written, each once, in the order of the file.

    Raises:
      OSError: the file cannot be read.
    """
    names: dict[str, None] = {}
    seen: set[str] = set()  # columns behind the coordinates, which nearly all lines share with others
    for line in read_lines(path)[0]:
        words = line.split(None, 8)
        if len(words) < 9 or words[8] in seen:
            continue
        if recognise.HEADER.match(line) or recognise.numbers(words[:8]) is None:
            continue
        if len(seen) < _REMEMBERED:
            seen.add(words[8])
        columns = words[8].split()
        points = next((i for i, word in enumerate(columns) if recognise.numbers([word]) is None), 0)
        if points < 2:
            names.setdefault(classes.name_and_difficulty(columns)[0], None)
    return tuple(names)


def format_label_line(
    polygon: np.ndarray, class_name: str, difficulty: int = 0, class_names: Sequence[str] = ()
) -> str:
    """One line of a label file, without its line end.

    Blanks in a class become hyphens, since blanks separate the columns; `read_labels` finds the class all the same.

    Args:
      polygon: [4, 2] corner points in pixels; written with at most three decimals.
      class_name: the class.
      difficulty: a whole number.
      class_names: all classes, where two of them differ in blanks and hyphens alone: their blanks are kept.
    """
    numbers = " ".join(f"{value:.3f}".rstrip("0").rstrip(".") for value in np.asarray(polygon, np.float64).reshape(8))
    name = classes.written_names(tuple(class_names) or (class_name,))[class_name]
    return f"{numbers} {name} {int(difficulty)}"
