"""Which files are images, and the one scan of folders and patterns that every command uses.

A file is an image by its ending, in upper or lower case. Hidden files are none: what a program is still writing begins
with a dot, and so do the `._name` files that macOS leaves beside each file on foreign disks.
"""

import fnmatch
import os
import pathlib

from haksnet_jax.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def is_image(name: str | os.PathLike[str]) -> bool:
    """Whether a file of this name (or path) is taken for an image."""
    name = os.path.basename(os.fspath(name))
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def list_images(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The images of one folder.

    Args:
      folder: path; folders in it are not searched.

    Returns:
      List of pathlib.Path, sorted by name. Two of them may have one name and different endings.

    Raises:
      UserError: there is no such folder, or it holds no image.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"Expected a folder of images at {folder}, found {'a file' if folder.exists() else 'none'}.")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if is_image(entry.name) and not entry.is_dir())
    if not names:
        below = sorted(path.parent.name for path in folder.glob("[!.]*/*") if is_image(path.name))
        raise UserError(
            f"Found no images in {folder}: expected files ending in {', '.join(EXTENSIONS)}."
            + (f" There are some in {folder / below[0]}: name that folder." if below else "")
        )
    return [folder / name for name in names]


def images_in(folder: str | os.PathLike[str]) -> dict[str, pathlib.Path]:
    """The images of one folder by their names, as partners in another folder (labels, masks, later dates) are found.

    Args:
      folder: path; folders in it are not searched.

    Returns:
      Dict from the name without its ending to pathlib.Path, sorted.

    Raises:
      UserError: as `list_images`, and for two images of one name.
    """
    found: dict[str, pathlib.Path] = {}
    for path in list_images(folder):
        if path.stem in found:
            raise UserError(f"{found[path.stem]} and {path} have the same name: rename one of them.")
        found[path.stem] = path
    return found


def matching(pattern: str) -> list[pathlib.Path]:
    """Files that a pattern names; `*`, `?` and `[...]` stand for parts of a name, `**` for folders of any depth.

    Every folder is visited once, so that links which lead in a circle have an end, and a file that several ways lead
    to is found by the shortest.

    Args:
      pattern: relative or absolute.

    Returns:
      Sorted list of pathlib.Path of files, hidden ones left out unless the pattern spells the dot.
    """
    path = pathlib.Path(pattern)
    found: dict[str, pathlib.Path] = {}
    for file in _expand(pathlib.Path(path.anchor or "."), path.parts[1 if path.anchor else 0 :]):
        found.setdefault(os.path.realpath(file), file)
    return sorted(found.values())


def _expand(folder, parts):
    if not parts:
        if folder.is_file():
            yield folder
        return
    first, *rest = parts
    if first == "**":
        for inner in _folders_below(folder):
            yield from _expand(inner, rest or ["*"])
    elif any(letter in first for letter in "*?["):
        for name in _names(folder):
            if fnmatch.fnmatchcase(name, first) and (first.startswith(".") or not name.startswith(".")):
                yield from _expand(folder / name, rest)
    else:
        yield from _expand(folder / first, rest)


def _names(folder):
    try:
        return sorted(os.listdir(folder))
    except OSError:  # no folder, or one that may not be read
        return []


def _folders_below(folder):
    """The folder and all in it, nearest first, each once however many links lead to it."""
    seen, level = set(), [folder]
    while level:
        following = []
        for one in level:
            try:
                status = os.stat(one)
            except OSError:
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            yield one
            following += [one / name for name in _names(one) if not name.startswith(".") and (one / name).is_dir()]
        level = following
