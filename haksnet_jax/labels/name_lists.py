"""Lists of class names in files: one name a line, or the `names` of YOLO's data.yaml."""

import collections
import errno
import json
import os
import pathlib
import re
from collections.abc import Sequence

import yaml

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.labels import encodings
from haksnet_jax.labels.problems import shortened

_MAX_YAML = 2**18  # bytes; a list of a thousand classes has 2**15
MAX_LETTERS = 1000  # of a name
_YAML = (".yaml", ".yml")
# Every scalar stays text: a class called `no` is not False, and no number of a million digits is computed.
_Loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
# A key `names` at the beginning of a line, behind a byte order mark or in braces: `{nc: 1, names: [ship]}`.
_HAS_NAMES = re.compile(rb"""(?:^|\xef\xbb\xbf|[\r{,])\s*["']?names["']?\s*:""", re.MULTILINE)


def read(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The class names of a file, in the order of their labels.

    Args:
      path: a text file with one name a line, a .yaml file with `names`, or a .json file with a list of names.

    Raises:
      UserError: the file cannot be read, is in another form or encoding, or names a class twice or none at all.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() in _YAML:
        names = names_of_yaml(path)
        if names is None:
            raise UserError(
                f"{path}: expected `names: [ship, plane]` or `names: {{0: ship, 1: plane}}`, found no `names`"
            )
        return names
    lines = [line for line in encodings.read_lines(path) if line]
    other = _other_form(lines)
    if path.suffix.lower() == ".json" or (lines and lines[0][0] == "["):
        listed = _listed_in_json(path, lines)
        lines, other = (lines, other) if listed is None else (listed, None)
    if other is not None:
        raise UserError(f"{path}: expected one class a line, {other}")
    return _checked(path, lines)


def usable(name: str) -> bool:
    """Whether a list of classes may hold a name: so a list of what was found in labels can be read again."""
    return name.isprintable() and bool(name.strip()) and len(name) <= MAX_LETTERS


def as_text(names: Sequence[str]) -> str:
    """The content of a file of names, which `read` reads back the same.

    Args:
      names: in order.

    Returns:
      One a line; as a JSON list where the lines would be taken for another form, as `1 storey` and `2 storeys` are for
      numbered ones.
    """
    lines = [name.strip() for name in names]
    if _other_form(lines) is None and lines == list(names):
        return "".join(f"{name}\n" for name in names)
    return json.dumps(list(names), ensure_ascii=False) + "\n"


def _checked(path, names):
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if not names or twice:
        found = f"{shortened(twice[0])} is there twice" if twice else "it names none"
        raise UserError(f"{path}: expected each class once, one a line; {found}")
    for name in names:
        if len(name) > MAX_LETTERS:
            raise UserError(
                f"{path}: a class has {len(name):,} letters ({shortened(name)}), at most {MAX_LETTERS} are read"
            )
        if not usable(name):
            raise UserError(f"{path}: the class '{shortened(name)}' holds a character that cannot be printed")
    return tuple(names)


def _listed_in_json(path, lines):
    """The names of a JSON list of texts, or None where it is something else."""
    try:
        content = json.loads("\n".join(lines))
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, list) or not all(isinstance(name, str) and name.strip() for name in content):
        return None
    return [name.strip() for name in content]


def _other_form(lines):
    """What lines are that are no names, as words for a sentence; None where nothing is recognised."""
    if not lines:
        return None
    first = lines[0]
    if first.startswith("<"):
        return "found XML or HTML"
    if first[0] in "{[":
        return "found JSON: write the names without brackets and quotes (COCO's categories are found in its own file)"
    if first.startswith("item") and "{" in first:
        return "found a label map of TensorFlow: write its names alone"
    if any(re.match(r"""["']?(names|nc|path|train|val)["']?\s*:(\s|$)""", line) for line in lines) or first == "---":
        return "found YAML: name the file something.yaml, and its `names` are read"
    if all(line.startswith("- ") for line in lines):
        return "found a list of YAML: write the names without the dashes"
    comment = next((line for line in lines if re.match(r"#\s", line)), None)
    if comment is not None:
        return f"found a comment, '{shortened(comment)}': take it out"
    if first.endswith(",") and all(line[0] in "\"'" and line.rstrip(",")[-1] == line[0] for line in lines):
        return f"found names in quotes, {shortened(first)}: write them without"
    if _numbered(lines):
        return f"found numbered lines, '{shortened(first)}': write the names alone, in the order of their numbers"
    if all("," in line for line in lines):
        return f"found commas, '{shortened(first)}': write each name in a line of its own, and nothing else"
    return None


def _numbered(lines):
    """Whether lines count upwards from 0 or 1: `0: ship`, `0 ship`, `0,ship`."""
    numbers = [re.match(r"(\d{1,6})\s*[:,;\t ]\s*\S", line) for line in lines]
    values = [int(number[1]) for number in numbers if number]
    start = values[0] if values else -1
    return (
        len(values) == len(lines)
        and start in (0, 1)
        and values == list(range(start, start + len(lines)))
        and (len(lines) > 1 or lines[0][numbers[0].end(1)] == ":")
    )


def names_of_yaml(path: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """The `names` of a .yaml file by their indices, or None where it has none. Nothing of it is executed.

    Raises:
      UserError: the file cannot be read, is too long, or its `names` are no list of classes.
    """
    try:
        data = files.read_regular(path, _MAX_YAML)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise UserError(f"{path}: {error.strerror}, of a list of classes") from None
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return _listed_in_yaml(path, _names_key(path, data))


def names_of_any_yaml(path: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """As `names_of_yaml`, of a file that nobody named and that may belong to another program.

    Returns:
      Tuple of names, or None where the file lists no classes: where it has no `names`, is too long for a list of
      classes, cannot be opened, or has `names` that are one text, or mappings, or values of keys that are no numbers.

    Raises:
      UserError: the file lists classes with gaps between the indices, twice, or in YAML with mistakes; or it is called
        data.yaml and cannot be opened.
    """
    try:
        data = files.read_regular(path, _MAX_YAML)
    except OSError as error:
        if error.errno != errno.EFBIG and pathlib.Path(path).stem == "data":
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
        return None
    if not encodings.is_wide(data) and not _HAS_NAMES.search(data):
        return None
    names = _names_key(path, data)
    if isinstance(names, dict):
        lists_classes = any(isinstance(key, str) and key.isdecimal() for key in names)
    else:
        lists_classes = isinstance(names, list) and any(isinstance(name, str) for name in names)
    return _listed_in_yaml(path, names) if lists_classes else None


def _names_key(path, data):
    """What stands under the key `names` of YAML; None where there is no such key."""
    try:
        content = yaml.load(encodings.decode(data), _Loader)
    except (yaml.YAMLError, encodings.EncodingError, RecursionError, ValueError) as error:
        raise UserError(f"{path} cannot be read as YAML: {shortened(str(error), 120)}") from None
    return content.get("names") if isinstance(content, dict) else None


def _listed_in_yaml(path, names):
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(map(str, range(len(names)))):
            raise UserError(f"{path}: expected `names` with the indices 0 to {len(names) - 1}")
        names = [names[str(index)] for index in range(len(names))]
    if not names:
        return None
    # Lists that name each other would grow without end as text.
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f"{path}: expected `names` to be names of classes")
    return _checked(path, [name.strip() for name in names])
