"""Where images and labels come from: folders in DOTA's layout, prepared TFDS data sets, generated scenes.

A source has a length and gives examples by index, the same ones each time; it can be pickled for worker processes. An
example is a dict:
  image       [H, W, C] uint8; RGB, or the bands that the image settings choose
  polygons    [N, 4, 2] float32 corner points in pixels
  labels      [N] int32 classes, 0-based
  difficulty  [N] int32
  image_id    str
"""

import inspect
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import cv2

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.labels.dota import format_label_line
from haksnet_jax.pipeline.folder_source import FolderSource
from haksnet_jax.pipeline.record_source import TfdsSource
from haksnet_jax.pipeline.scene_source import SceneSource


def open_source(kind: str, class_names: Sequence[str], *, filter_empty: bool = False, **settings: Any) -> Any:
    """Opens the source that a configuration names.

    Args:
      kind: "folder" (FolderSource: images_dir, labels_dir), "tfds" (TfdsSource: directory, split) or
        "scenes" (SceneSource: num_scenes, size, seed).
      class_names: the classes, in the order of their labels.
      filter_empty: leaves out images without an object. Scenes are all kept: where the ground for a scene's
        objects is taken it may have none.
      **settings: what the source of this kind takes.

    Raises:
      ValueError: an unknown kind, a setting that this kind does not have, or a path in a bucket; and what the source
        itself raises.
    """
    kinds = {"folder": FolderSource, "tfds": TfdsSource, "scenes": SceneSource}
    if kind not in kinds:
        raise UserError(f"expected a kind of source among {', '.join(kinds)}, found '{kind}'")
    if kind != "scenes":
        settings["filter_empty"] = filter_empty
    try:
        inspect.signature(kinds[kind]).bind(class_names=class_names, **settings)
    except TypeError as error:
        raise UserError(f"settings of a source of kind '{kind}' do not fit: {error}") from error
    for name in ("directory", "images_dir", "labels_dir"):
        if files.is_bucket(settings.get(name) or ""):
            raise UserError(
                f"{name}: {settings[name]} is in a bucket, and images and records are read from disks: mount the "
                "bucket or copy the folder to a disk of each host, and name that"
            )
    return kinds[kind](class_names=class_names, **settings)


def write_dota_folder(
    source: Any, folder: str | os.PathLike[str], *, extension: str = "png"
) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes a source's examples as `images/<image_id>.<extension>` and `labelTxt/<image_id>.txt`.

    Args:
      source: any source of this module.
      folder: where to; made if missing. Existing files of the same names are replaced.
      extension: "png", or "jpg" (quality 95).

    Returns:
      (folder of images, folder of labels).
    """
    images_dir, labels_dir = pathlib.Path(folder) / "images", pathlib.Path(folder) / "labelTxt"
    for made in (images_dir, labels_dir):
        made.mkdir(parents=True, exist_ok=True)
    for index in range(len(source)):
        example = source[index]
        encoded, data = cv2.imencode(f".{extension}", cv2.cvtColor(example["image"], cv2.COLOR_RGB2BGR))
        if not encoded:
            raise UserError(f"cannot write images as '.{extension}'; use png or jpg")
        lines = [
            format_label_line(polygon, source.class_names[label], difficulty)
            for polygon, label, difficulty in zip(
                example["polygons"], example["labels"], example["difficulty"], strict=True
            )
        ]
        files.write_text(labels_dir / f"{example['image_id']}.txt", "".join(line + "\n" for line in lines), sync=False)
        files.write_bytes(images_dir / f"{example['image_id']}.{extension}", data.tobytes(), sync=False)
    return images_dir, labels_dir
