"""Names of classes: the published lists, files with one class a line, and how a name in a label file is understood."""

import collections
import functools
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from haksnet_jax.errors import UserError
from haksnet_jax.labels import name_lists

_DOTA10 = (
    "plane",
    "baseball-diamond",
    "bridge",
    "ground-track-field",
    "small-vehicle",
    "large-vehicle",
    "ship",
    "tennis-court",
    "basketball-court",
    "storage-tank",
    "soccer-ball-field",
    "roundabout",
    "harbor",
    "swimming-pool",
    "helicopter",
)

CLASSES: dict[str, tuple[str, ...]] = {
    "dota10": _DOTA10,
    "dota15": (*_DOTA10, "container-crane"),
    "dota20": (*_DOTA10, "container-crane", "airport", "helipad"),
    "hrsc2016": ("ship",),
    "dior_r": (  # two orders are in use, this one and one with dam before the expressways; spelled as in the release
        "airplane",
        "airport",
        "baseballfield",
        "basketballcourt",
        "bridge",
        "chimney",
        "Expressway-Service-area",
        "Expressway-toll-station",
        "dam",
        "golffield",
        "groundtrackfield",
        "harbor",
        "overpass",
        "ship",
        "stadium",
        "storagetank",
        "tenniscourt",
        "trainstation",
        "vehicle",
        "windmill",
    ),
    "fair1m": (
        "Boeing737",
        "Boeing747",
        "Boeing777",
        "Boeing787",
        "C919",
        "A220",
        "A321",
        "A330",
        "A350",
        "ARJ21",
        "other-airplane",
        "Passenger Ship",
        "Motorboat",
        "Fishing Boat",
        "Tugboat",
        "Engineering Ship",
        "Liquid Cargo Ship",
        "Dry Cargo Ship",
        "Warship",
        "other-ship",
        "Small Car",
        "Bus",
        "Cargo Truck",
        "Dump Truck",
        "Van",
        "Trailer",
        "Tractor",
        "Excavator",
        "Truck Tractor",
        "other-vehicle",
        "Basketball Court",
        "Tennis Court",
        "Football Field",
        "Baseball Field",
        "Intersection",
        "Roundabout",
        "Bridge",
    ),
    "ssdd": ("ship",),
    "hrsid": ("ship",),
    "ucas_aod": ("car", "plane"),
}


def read_class_names(text: str) -> tuple[str, ...]:
    """Class names from a published list or a file with one class a line.

    Args:
      text: a key of CLASSES ("dota10", "hrsc2016", ...), or the path of a file: see `name_lists.read`.

    Returns:
      tuple of names, in the order of their labels.

    Raises:
      UserError: neither is the case, or the file cannot be used.
    """
    if text in CLASSES:
        return CLASSES[text]
    path = pathlib.Path(text)
    if not path.is_file():
        raise UserError(
            f"expected --classes to be one of {', '.join(CLASSES)}, or a file of names (one a line, "
            f"data.yaml or a JSON list); found no file {text}"
        )
    return name_lists.read(path)


_IGNORED = re.compile(r"[\s_-]+")


def plain(name: str) -> str:
    """A name without what people spell differently: case, blanks, underscores, hyphens; accents in one form (NFC)."""
    return _folded(_IGNORED.sub("", name))


def _folded(text):
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).lower()


def similar(class_names: Iterable[str]) -> list[list[str]]:
    """Lists of names that differ in plain spelling alone. Args: class_names. Returns: list of lists."""
    spellings = collections.defaultdict(list)
    for name in class_names:
        spellings[plain(name)].append(name)
    return [names for names in spellings.values() if len(names) > 1]


@functools.lru_cache(maxsize=64)
def written_names(class_names: tuple[str, ...]) -> dict[str, str]:
    """Each class as it stands in a label file: blanks as hyphens, since blanks separate the columns.

    Where that would be the name of another class too, the blanks stay; `Finder` reads both back.

    Args:
      class_names: tuple of names.

    Returns:
      dict from name to what is written.
    """
    hyphened = {name: "-".join(name.split()) for name in class_names}
    counts = collections.Counter(hyphened.values())
    return {name: text if counts[text] == 1 else " ".join(name.split()) for name, text in hyphened.items()}


class Found(NamedTuple):
    """What the columns behind the coordinates say.

    Attributes:
      label: of the class, 0-based.
      difficulty: the word behind the class, or None where there is none.
      respelled: how the class is written, where only another spelling of it was found; else None.
    """

    label: int
    difficulty: str | None
    respelled: str | None


MAX_DIFFICULTY = 100  # DOTA has 0 and 1, the tile splitter writes 2, and the reference's threshold is 100
_TRUTH = {"true": 1, "false": 0}


def read_difficulty(word: str) -> int | None:
    """A difficulty in any of its spellings: `1`, `1.0`, `True`. Returns: int from 0 to 100, or None if it is none."""
    if word.isdecimal() and len(word) < 4:
        value = int(word)
    elif word.lower() in _TRUTH:
        return _TRUTH[word.lower()]
    else:
        try:
            number = float(word)
        except ValueError:
            return None
        if "_" in word or not 0 <= number <= MAX_DIFFICULTY or not number.is_integer():
            return None
        value = int(number)
    return value if value <= MAX_DIFFICULTY else None


@functools.lru_cache(maxsize=64)
def finder(class_names: tuple[str, ...], class_aliases: tuple[tuple[str, str], ...] = ()) -> "Finder":
    """The Finder of some classes. Args: tuple of names; tuple of (spelling, name)."""
    return Finder(class_names, dict(class_aliases))


class Finder:
    """Finds the class in the columns behind the coordinates: `class [difficulty] [more columns]`.

    A class may have any number of words. Names are looked for in this order, and the first kind that fits decides:
      1. the given names and aliases, letter by letter;
      2. the names as `written_names` writes them;
      3. names that differ only in case, blanks, underscores and hyphens, where exactly one class has that spelling
         and no word is used up that can be the difficulty: `A1 0` is never A10, `ARJ 21 0` is ARJ21.
    Where several names of one kind fit (`ship` and `ship 1`), the one whose rest reads best is taken: a difficulty and
    nothing else, then a difficulty and more columns, then nothing, then something that is no difficulty; then the
    longest.

    Attributes:
      class_names: the classes, in the order of their labels.
    """

    def __init__(self, class_names: Sequence[str], class_aliases: Mapping[str, str]) -> None:
        """Args: class_names; class_aliases, dict from another spelling to one of class_names."""
        self.class_names = tuple(class_names)
        exact = {name: label for label, name in enumerate(class_names)}
        for alias, name in class_aliases.items():
            if name not in exact:
                raise UserError(
                    f"class_aliases maps '{alias}' to '{name}', which is not among the classes "
                    f"({', '.join(class_names)})"
                )
            exact.setdefault(alias, exact[name])
        labels_of = collections.defaultdict(set)
        for name, label in exact.items():
            labels_of[plain(name)].add(label)
        self._kinds = (
            {" ".join(name.split()): label for name, label in exact.items()},
            {text: exact[name] for name, text in written_names(tuple(class_names)).items()},
            # Two classes that differ in spelling alone can only be told apart exactly.
            {name: next(iter(labels)) for name, labels in labels_of.items() if len(labels) == 1},
        )
        # Each word has a letter of the name, but for a few that are hyphens alone.
        self._longest_spelling = max(map(len, labels_of), default=1) + 10
        self._longest = max((len(name.split()) for name in exact), default=1)

    def find(self, text: str) -> Found | None:
        """Found, or None. Args: text, all columns behind the coordinates."""
        words = text.split()
        for kind, names in enumerate(self._kinds):
            fits, spelling = [], ""
            # A name in another spelling may have more words than the class: "Boeing 737" for Boeing737.
            for count in range(1, min(len(words), self._longest if kind < 2 else len(words)) + 1):
                if kind == 2 and count > self._longest_spelling:
                    break
                if kind == 2 and count > 1 and _may_be_difficulty(words, count - 1):
                    break  # it would use up a column
                if kind < 2:
                    label = names.get(" ".join(words[:count]))
                else:
                    spelling += _IGNORED.sub("", words[count - 1])
                    label = names.get(_folded(spelling))
                if label is not None and not _goes_on(words[count:]):
                    fits.append((_rank(words[count:]), -count, label))
            if fits:
                _, minus_count, label = min(fits)
                spelled, rest = words[:-minus_count], words[-minus_count:]
                return Found(label, rest[0] if rest else None, " ".join(spelled) if kind == 2 else None)
        return None

    def find_name(self, name: str) -> tuple[int, bool] | None:
        """A class by its name alone. Args: name. Returns: (label, whether it is spelled exactly so), or None."""
        words = " ".join(name.split())
        for kind, names in enumerate(self._kinds):
            label = names.get(words if kind < 2 else plain(words))
            if label is not None:
                return label, kind < 2
        return None


def _goes_on(rest):
    """Whether the columns behind a name are the rest of a longer one: `757 0` behind Boeing, `boat 1` behind ship.

    A single word that is no difficulty may be a bad one, and a number with decimals a score.
    """
    if len(rest) < 2 or read_difficulty(rest[0]) is not None:
        return False
    try:
        is_score = float(rest[0]) % 1 != 0
    except ValueError:
        is_score = False
    return not is_score and any(read_difficulty(word) is not None for word in rest[1:])


def _rank(rest):
    """How well the columns behind a name read: the smaller, the better."""
    if not rest:
        return 2
    if read_difficulty(rest[0]) is None:
        return 3
    return 0 if len(rest) == 1 else 1


def name_and_difficulty(words: list[str]) -> tuple[str, str | None]:
    """Splits the columns behind the coordinates without a list of classes: the name ends before the first difficulty.

    Args:
      words: list of words, at least one.

    Returns:
      (name, the word of the difficulty or None): `Su 30 0` is ("Su 30", "0"), since difficulties are small.
    """
    for count in range(1, len(words)):
        if _may_be_difficulty(words, count):
            return " ".join(words[:count]), words[count]
    return " ".join(words), None


def _may_be_difficulty(words, place):
    """Whether a word behind a name can be the difficulty: 0, 1 or 2, or any other one at the end."""
    value = read_difficulty(words[place])
    return value is not None and (value <= 2 or place == len(words) - 1)
