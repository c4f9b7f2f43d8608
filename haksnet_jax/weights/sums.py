"""Sizes and checksums of a checkpoint's files, written with it and compared when it is read.

A checkpoint library notices a file that is missing or cut off; a changed byte in an array it may hand on as a number.
"""

import json
import zlib
from collections.abc import Iterator, Sequence

from etils import epath

from haksnet_jax import files, json_files
from haksnet_jax.weights.errors import CheckpointError

MANIFEST_FILE = "manifest.json"  # in the checkpoint's folder, written when everything else there is
_SCHEMA = {
    "type": "object",
    "maxProperties": 1_000_000,
    "description": "sizes and checksums by file name",
    "additionalProperties": {
        "type": "array",
        "minItems": 2,
        "maxItems": 2,
        "items": {"type": "integer", "minimum": 0, "description": "a whole number"},
        "description": "the size and the CRC-32 of a file",
    },
}


def files_in(folder: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """Yields (path relative to the folder, epath.Path) of every file below it."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.is_dir():
            yield from files_in(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name, path


def size_and_sum(path: epath.Path) -> list[int]:
    """[bytes, CRC-32] of a file."""
    size, total = 0, 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            size, total = size + len(block), zlib.crc32(block, total)
    return [size, total]


def write(folder: epath.Path) -> None:
    """Writes down size and CRC-32 of every file in a checkpoint that is saved whole. Args: folder, epath.Path."""
    found = {name: size_and_sum(path) for name, path in files_in(folder) if name != MANIFEST_FILE}
    files.write_text(folder / MANIFEST_FILE, json.dumps(found, indent=1) + "\n")


def difference(folder: epath.Path, *, but: Sequence[str] = (), only: Sequence[str] | None = None) -> str:
    """What is not as it was when the checkpoint was saved.

    Args:
      folder: epath.Path.
      but: names of files that are not compared.
      only: names of files that are, where given.

    Returns:
      Words that begin with the file's name; "" where nothing differs, or where no sums were written (made before there
      were any, or stopped before).
    """
    if not (folder / MANIFEST_FILE).exists():
        return ""
    try:
        expected = json_files.load(folder / MANIFEST_FILE, error=CheckpointError)
        json_files.check(expected, _SCHEMA, where=folder / MANIFEST_FILE, error=CheckpointError)
        for name, (size, total) in expected.items():
            if name in but or (only is not None and name not in only):
                continue
            if name.startswith("/") or ".." in name.split("/"):
                return f"{MANIFEST_FILE} names {json_files.quoted(name)}, which is no file of this checkpoint"
            shown = json_files.printable(name)
            if not (folder / name).exists():
                return f"{shown} is missing"
            found = size_and_sum(folder / name)
            if found[0] != size:
                return f"{shown} has {found[0]} bytes, expected {size}"
            if found[1] != total:
                return f"{shown} is not as it was written: its CRC-32 differs"
    except (OSError, CheckpointError) as error:
        return f"{MANIFEST_FILE} or a file that it names cannot be read: {error}"
    return ""
