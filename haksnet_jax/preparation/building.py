"""What `haksnet build` does: records or folders in DOTA's format, of a published data set or of one's own folders."""

import functools
import importlib
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from haksnet_jax import files
from haksnet_jax.images import settings as image_settings
from haksnet_jax.labels import classes, dota, folders, name_lists
from haksnet_jax.labels.label_set import LabelSet
from haksnet_jax.labels.problems import UNREAD
from haksnet_jax.preparation import records
from haksnet_jax.preparation.data_sets.dota import Dota, Folder, split_folders
from haksnet_jax.preparation.records import Folders
from haksnet_jax.preparation.whole_folder import whole_folder

DATA_SETS = {"dior_r": "DiorR", "fair1m": "Fair1m", "hrsc2016": "Hrsc2016", "hrsid": "Hrsid", "ssdd": "Ssdd"}
_DOTA_CONFIGS = {"dota10": "v1.0", "dota15": "v1.5", "dota20": "v2.0"}


def builder_class(name: str) -> type[records.OrientedBuilder]:
    """The builder of a published data set. Args: name, a key of DATA_SETS."""
    module = importlib.import_module(f"haksnet_jax.preparation.data_sets.{name}")
    return getattr(module, DATA_SETS[name])


def folder_builder(
    splits: Folders,
    class_list: str | None,
    *,
    format: str = "dota",
    lossy: bool = False,
    images: image_settings.ImageSettings = image_settings.DEFAULT,
) -> Callable[..., records.OrientedBuilder]:
    """A function of data_dir that makes the builder of some folders.

    Args:
      splits: dict from split to (folder of images, labels or None).
      class_list: a published list's name, a file with one class a line, or None: the list beside the labels, else
        DOTA's.
      format: of the labels.
      lossy: True builds although something has to be left out.
      images: ImageSettings that are given; what they leave open is what is kept beside the images.

    Raises:
      UserError: the list cannot be read, or there are neither labels nor a list.
    """
    for folder, _ in splits.values():  # (the bands, of which the records' description speaks; limits come later)
        images = images._replace(bands=images.bands or image_settings.read_folder(folder)[0].bands)
    common: dict[str, Any] = {"lossy": lossy, "images": images, "folders": splits, "format": format}
    names = listed_classes(splits, format) if class_list is None else None
    if class_list is None and all(labels is None for _, labels in splits.values()):
        raise records.DataError(
            f"{', '.join(str(folder) for folder, _ in splits.values())}: expected labels (--labels=DIR, or a folder "
            "labelTxt or labels beside images), or --classes to pack images without labels"
        )
    class_list = class_list or "dota10"
    if names is None and class_list in _DOTA_CONFIGS:
        return functools.partial(Dota, config=_DOTA_CONFIGS[class_list], **common)
    return functools.partial(Folder, class_names=names or classes.read_class_names(class_list), **common)


def listed_classes(splits: Folders, format: str) -> tuple[str, ...] | None:
    """The classes that the labels of some splits list themselves (data.yaml, categories, classes.txt), or None."""
    for _, labels in splits.values():
        if labels is not None:
            names = LabelSet(labels, format).class_names
            if names:
                return names
    return None


def splits_of(
    source: str | os.PathLike[str] | None, images: Sequence[str], labels: Sequence[str], names: Sequence[str]
) -> Folders:
    """The folders of each split.

    Args:
      source: folder with a folder for each split, or None.
      images, labels, names: instead of it: lists of folders of images, of their labels ([]: none) and of the splits'
        names.

    Returns:
      Dict from split to (pathlib.Path of images, pathlib.Path of labels or None).

    Raises:
      DataError: the lists are of different lengths, or the source has no such folders.
    """
    if source is not None:
        if not pathlib.Path(source).is_dir():
            raise records.DataError(f"Expected a folder with a folder for each split at {source}, found none.")
        return split_folders(pathlib.Path(source))
    names = names or ["train"]
    if len(names) != len(images) or (labels and len(labels) != len(images)):
        raise records.DataError(
            f"expected as many --split and --labels as --images, got {len(names)} splits, {len(labels)} folders of "
            f"labels and {len(images)} of images"
        )
    return {
        name: (pathlib.Path(folder), pathlib.Path(labels[index]) if labels else None)
        for index, (name, folder) in enumerate(zip(names, images, strict=True))
    }


def write_dota(
    builder: records.OrientedBuilder,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> dict[str, int]:
    """Writes a data set as folders in DOTA's format, whole or not at all.

    Args:
      builder: a records.OrientedBuilder.
      source: folder of the unpacked download.
      output: gets classes.txt, SPLIT/images (hard links where the file system can, else copies) and SPLIT/labelTxt.
      overwrite: True replaces what this function wrote there before.

    Returns:
      dict from split to its number of images.

    Raises:
      UserError: the source is not as expected, something would be lost, or the output is in use or no such folder.
      OSError: writing failed.
    """
    splits, problems = builder.records(pathlib.Path(source))
    builder.problems = list(problems)
    content = {
        split: [(record.image, record.read() if record.read else None) for record in found]
        for split, found in splits.items()
    }
    for images in content.values():
        for _, annotation in images:
            builder.problems += annotation[1] if annotation else []
    builder.refuse_losses("annotations")
    content = {
        split: [(path, annotation) for path, annotation in images if annotation is None or _is_read(annotation[1])]
        for split, images in content.items()
    }
    with whole_folder(output, overwrite=overwrite, known_by=folders.CLASS_LIST) as folder:
        for split, images in content.items():
            for path, annotation in images:
                _write_image(folder / split, path, annotation, builder.class_names)
        files.write_text(folder / folders.CLASS_LIST, name_lists.as_text(builder.class_names))
    return {split: len(images) for split, images in content.items()}


def _is_read(problems):
    """Whether the labels of an image are read: without them it would seem to have no objects."""
    return not any(problem.reason in UNREAD for problem in problems)


def _write_image(folder, path, annotation, class_names):
    """Puts one image and its labels into the folder of a split. Args: annotation, (Objects, problems) or None."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    if annotation is not None:
        (folder / "labelTxt").mkdir(exist_ok=True)
        lines = [
            dota.format_label_line(polygon, class_names[label], difficulty, class_names) + "\n"
            for polygon, label, difficulty, _ in zip(*annotation[0], strict=True)
        ]
        (folder / "labelTxt" / f"{path.stem}.txt").write_text("".join(lines), encoding="utf-8")
    try:
        os.link(path, folder / "images" / path.name)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(path, folder / "images" / path.name)
