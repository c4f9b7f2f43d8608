"""Which files of a folder are labels, and which image each belongs to: the same for every command."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from haksnet_jax.errors import UserError
from haksnet_jax.labels.problems import Problem, Reason

CLASS_LIST = "classes.txt"  # labelImg writes it among the labels, the tile splitter beside them
UNFINISHED = ".split_unfinished"  # in an output folder of the tile splitter, until all of its tiles are there


def files_of(folder: str | os.PathLike[str], extensions: Sequence[str]) -> list[pathlib.Path]:
    """Label files of a folder, sorted by name.

    Hidden files are left aside (macOS leaves `._NAME` beside each file, and what is being written begins with a
    dot), and so are lists of classes. The letters' case of the ending does not matter.

    Args:
      folder: path.
      extensions: of the files: (".txt",).

    Returns:
      List of pathlib.Path.
    """
    return sorted(
        path
        for path in pathlib.Path(folder).iterdir()
        if path.suffix.lower() in extensions and not path.name.startswith(".") and path.name.lower() != CLASS_LIST
    )


def label_files(
    folder: str | os.PathLike[str], extensions: Sequence[str] = (".txt",)
) -> tuple[dict[str, pathlib.Path], list[Problem]]:
    """Label files of a folder by the names of their images.

    Args:
      folder: path.
      extensions: of the files.

    Returns:
      (dict from name without ending to pathlib.Path, list of Problem: files whose name is there twice).
    """
    found: dict[str, pathlib.Path] = {}
    problems = []
    for path in files_of(folder, extensions):
        if path.stem in found:
            detail = f"left out: {found[path.stem].name} has the same name"
            problems.append(Problem(str(path), 0, Reason.SAME_NAME, detail))
            continue
        found[path.stem] = path
    return found, problems


def class_list_near(path: str | os.PathLike[str]) -> pathlib.Path | None:
    """The list of classes that belongs to labels: `classes.txt` among them, beside them or one folder above.

    Args:
      path: folder of label files, or a label file.

    Returns:
      pathlib.Path, or None.
    """
    path = pathlib.Path(path).absolute()
    places = [path, *path.parents] if path.is_dir() else list(path.parents)
    for place in places[:3]:
        if (place / CLASS_LIST).is_file():
            return place / CLASS_LIST
    return None


def pair(
    images: Mapping[str, str | os.PathLike[str]],
    labels: Mapping[str, str | os.PathLike[str]],
    labels_path: str | os.PathLike[str],
    images_dir: str | os.PathLike[str],
) -> list[Problem]:
    """Problems with images without labels and labels without image.

    Args:
      images: dict from name to path of the images.
      labels: dict from name to path of the labels.
      labels_path: where labels were looked for.
      images_dir: where images were looked for.

    Returns:
      List of Problem, in the order of the names.
    """
    problems = []
    for stem in sorted(images.keys() - labels.keys()):
        detail = f"there are no labels of this name in {labels_path}"
        problems.append(Problem(str(images[stem]), 0, Reason.IMAGE_WITHOUT_LABELS, detail))
    for stem in sorted(labels.keys() - images.keys()):
        detail = f"there is no image named {stem} in {images_dir}"
        problems.append(Problem(str(labels[stem]), 0, Reason.LABELS_WITHOUT_IMAGE, detail))
    return problems


def require_finished(images_dir: str | os.PathLike[str]) -> None:
    """Refuses the tiles of a splitter that runs or was stopped: what is there is a part of the data.

    Args:
      images_dir: folder of images, which the splitter writes beside its mark.

    Raises:
      UserError: the tiles are not complete.
    """
    if (pathlib.Path(os.path.abspath(images_dir)).parent / UNFINISHED).exists():
        raise UserError(
            f"{images_dir}: these tiles are not complete, `haksnet split` is running or was stopped: give the same "
            "command again, it goes on where it ended"
        )
