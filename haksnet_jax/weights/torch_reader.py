"""Reads the files of `torch.save` and safetensors without PyTorch and without running anything that a file names.

A file's content says which of three containers it is: the zip form of `torch.save` (`torch_zip`), its older form
(`torch_legacy`) or safetensors (`safetensors_reader`). The first two hold pickles, which `torch_pickle` interprets;
what they describe is in `stored_tensors`, and what reading may cost in `budget`.
"""

import dataclasses
import mmap
import pathlib
from typing import Any

from haksnet_jax import json_files
from haksnet_jax.weights import safetensors_reader, torch_legacy, torch_zip
from haksnet_jax.weights.budget import MAX_BYTES, Budget
from haksnet_jax.weights.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
      kind: "zip", "legacy" or "safetensors".
      tree: dictionaries, lists, tuples, sets, numbers, strings, bytes, `StoredTensor` and `Inert` objects.
      metadata: strings by name that a safetensors file carries; empty otherwise.
      placeholders: names of the classes and functions that became `Inert` objects, sorted.
    """

    kind: str
    tree: Any
    metadata: dict[str, str]
    placeholders: tuple[str, ...]


def read_checkpoint(path: str | pathlib.Path, *, max_bytes: int = MAX_BYTES) -> Checkpoint:
    """Reads a `.pth`, `.pth.tar` or `.pt` (zip or older form) or a `.safetensors` file; its content says which.

    Args:
      path: the file.
      max_bytes: the most bytes that all tensors of the file together may claim.

    Returns:
      Checkpoint.

    Raises:
      CheckpointError: the file is no checkpoint, is damaged, or claims or names what no checkpoint needs.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder, expected a file of torch.save or safetensors; the folder of a checkpoint is used as "
            "it is, or written for other programs with --to=FILE"
        )
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise CheckpointError(f"{path} is not a regular file")
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise CheckpointError(f"{path} is empty")
            contents = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        return _read(contents, max_bytes)
    except CheckpointError as error:
        reason = json_files.printable(str(error).replace("\n", " "))  # names in the file may hold anything
        raise CheckpointError(f"{path} cannot be used as a checkpoint: {reason}") from error


def _read(contents, max_bytes):
    start = contents[:512]
    budget = Budget(max_bytes, len(contents))
    if start.startswith(b"PK\x03\x04"):
        return Checkpoint("zip", *_with_metadata(torch_zip.read(contents, budget)))
    if torch_legacy.begins(start):
        return Checkpoint("legacy", *_with_metadata(torch_legacy.read(contents, budget)))
    header_bytes = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and header_bytes > 1:
        return Checkpoint("safetensors", *safetensors_reader.read(contents, header_bytes, budget))
    text = start.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError("it is a Git LFS pointer, not the file it points to; fetch the file with `git lfs pull`")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError("it is a web page, not the file; download the file itself")
    if start[257:262] == b"ustar":
        raise CheckpointError("it is a tar archive; unpack it, or save it again with a PyTorch later than 0.1.10")
    if start[:1] == b"\x80":
        raise CheckpointError("it is a pickle, but not one that torch.save wrote")
    raise CheckpointError(f"it is neither a file of torch.save nor safetensors (it starts with {bytes(start[:8])!r})")


def _with_metadata(found):
    tree, placeholders = found
    return tree, {}, placeholders
