"""A detector's detections on a labelled split, as `evaluate --checkpoint` scores them."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from haksnet_jax import files, json_files, tasks
from haksnet_jax.cli.evaluated import Evaluated, has_objects, num_objects
from haksnet_jax.errors import UserError
from haksnet_jax.images import files as image_files
from haksnet_jax.images import reader
from haksnet_jax.images import settings as image_settings
from haksnet_jax.images.headers import ImageError, read_header
from haksnet_jax.inference import view_settings
from haksnet_jax.labels import problems as label_problems
from haksnet_jax.labels.problems import Reason
from haksnet_jax.pipeline import sources
from haksnet_jax.results import dota
from haksnet_jax.wording import counted


def run_settings(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The configuration of the run that a checkpoint belongs to, a dict, or None for a converted model.

    Raises:
      UserError: the file of the configuration is damaged.
    """
    folder = files.absolute(directory)
    for place in (folder, folder.parent, folder.parent.parent):
        if (place / "config.json").exists() and (place / "model.json").exists():
            from haksnet_jax.training.resume import config_history

            path = config_history(place)[-1]  # the newest: data may have moved since the run began
            settings = json_files.load(path)
            json_files.check(settings, _RUN_CONFIG, where=path)
            return settings
    return None


def _count(high):
    return {"type": "integer", "minimum": 1, "maximum": high, "description": f"a whole number from 1 to {high}"}


_SHARE = {"type": "number", "minimum": 0, "maximum": 1, "description": "a number from 0 to 1"}
# What evaluating takes from a run's configuration; the rest is looked at by those who use it.
_RUN_CONFIG = {
    "type": "object",
    "description": "the configuration of a run",
    "properties": {
        "name": {"type": "string", "maxLength": 1000, "description": "a name"},
        "task": {"type": "string", "maxLength": 100, "description": "the name of a task"},
        "data": {"type": "object", "description": "an object of settings"},
        "model": {"type": "object", "description": "an object of settings"},
        "detection": {
            "type": "object",
            "description": "settings of detection",
            "required": ["score_threshold", "iou_threshold", "max_detections"],
            "properties": {
                "score_threshold": _SHARE,
                "iou_threshold": _SHARE,
                "max_detections": _count(1_000_000),
            },
        },
        "rpn": {
            "type": "object",
            "description": "settings of the RPN",
            "required": ["candidates_per_level", "max_proposals", "iou_threshold"],
            "properties": {
                "candidates_per_level": _count(1_000_000),
                "max_proposals": _count(1_000_000),
                "iou_threshold": _SHARE,
            },
        },
    },
}


def run_caps(settings: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], float]:
    """What a run evaluates itself with. Args: settings, its configuration. Returns: ({caps of `Session`}, score)."""
    detection = dict(settings["detection"])
    score = detection.pop("score_threshold")
    proposal = {name: settings["rpn"][name] for name in ("candidates_per_level", "max_proposals", "iou_threshold")}
    return {"proposal_caps": proposal, "detection_caps": detection}, score


def open_split(
    class_names: Sequence[str],
    settings: Mapping[str, Any] | None,
    *,
    images: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    dataset: str | os.PathLike[str] | None = None,
    split: str = "val",
    labels_format: str = "dota",
    allow_unknown_classes: bool = False,
    read_by: image_settings.ImageSettings = image_settings.DEFAULT,
) -> Any:
    """The labelled examples that are meant.

    Args:
      class_names: of the model.
      settings: configuration of the run, or None.
      images, labels: folders.
      dataset: folder of a prepared data set.
      split: of the data set, or of the run's own data.
      labels_format, allow_unknown_classes: of `sources.FolderSource`, for `images` and `labels`.
      read_by: ImageSettings by which they are read.

    Raises:
      UserError: no data is named.
      FileNotFoundError, ValueError: of the source.
    """
    if images or labels:
        if not (images and labels):
            raise UserError(
                "expected both --images and --labels; images without labels are for `haksnet predict` "
                "and `haksnet submit`"
            )
        return sources.FolderSource(
            images,
            labels,
            class_names,
            format=labels_format,
            allow_unknown_classes=allow_unknown_classes,
            image_settings=read_by,
        )
    if dataset:
        return sources.TfdsSource(dataset, split, class_names)
    if settings is None:
        raise UserError(
            "this checkpoint does not say what it was validated on: give --images and --labels, or --dataset"
        )
    if split not in ("train", "val"):
        raise UserError(f"--split: a run has the splits train and val, got {split!r}")
    config = ml_collections.ConfigDict(settings)
    with config.unlocked():
        config.data.class_names = tuple(class_names)
        for name, value in image_settings.to_json(read_by).items():
            config.data[name] = value
    return tasks.of(config).open_source(config, split)  # as the run opens it: the same labels, read in the same way


class _Readable:
    """A source in which an image that cannot be read is a single black pixel, so that the others are evaluated."""

    def __init__(self, source, num_channels):
        self._source, self._num_channels = source, num_channels

    def __len__(self):
        return len(self._source)

    def __getattr__(self, name):
        if name.startswith("__"):  # (asked for by pickle before there is a source)
            raise AttributeError(name)
        return getattr(self._source, name)

    def __getitem__(self, index):
        try:
            return self._source[index]
        except (OSError, ValueError):
            image = np.zeros((1, 1, self._num_channels), np.uint8)
            return {"image": image, "image_id": self._source.image_ids[index], **self._source.labels(index)}


def evaluate_checkpoint(
    checkpoint: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    dataset: str | os.PathLike[str] | None = None,
    split: str = "val",
    resize: str = view_settings.EVALUATION.resize,
    pad: str = view_settings.EVALUATION.pad,
    overlap: int | None = None,
    precision: str = "float32",
    batch_size: int | None = None,
    num_workers: int = 0,
    labels_format: str = "dota",
    allow_unknown_classes: bool = False,
    given_settings: image_settings.ImageSettings = image_settings.DEFAULT,
    without_labels: bool = False,
) -> Evaluated:
    """Detections of a checkpoint on a split, beside its labels.

    A run's checkpoint is evaluated with the thresholds and caps of the run, whatever way its images are looked at.

    Args:
      checkpoint: a converted model, a run's folder, or one of its checkpoints.
      images, labels, dataset, split, labels_format, allow_unknown_classes: as in `open_split`.
      resize, pad, overlap: of `view_settings.Settings`.
      precision, batch_size: of `Detector`.
      num_workers: processes that read; 0 for threads of this one.
      given_settings: ImageSettings that replace those of the model.
      without_labels: whether a split in which no object is labelled is of use.

    Returns:
      Evaluated.

    Raises:
      UserError, OSError: with one sentence.
    """
    from haksnet_jax.distributed import mesh as devices
    from haksnet_jax.inference import detection_predictor

    devices.enable_compilation_cache()
    settings = run_settings(checkpoint)
    caps, score = ({}, view_settings.EVALUATION.score) if settings is None else run_caps(settings)
    detector = detection_predictor.load(checkpoint, precision=precision, batch_size=batch_size, **caps)
    detector.image_settings = image_settings.merged(given_settings, detector.image_settings)
    source = open_split(
        detector.class_names,
        settings,
        images=images,
        labels=labels,
        dataset=dataset,
        split=split,
        labels_format=labels_format,
        allow_unknown_classes=allow_unknown_classes,
        read_by=detector.image_settings,
    )
    print(source.summary(), file=sys.stderr)
    names = list(source.image_ids)
    labels_by_image = {name: source.labels(index) for index, name in enumerate(names)}
    if not has_objects(labels_by_image) and not without_labels:  # before any work is done
        raise UserError(
            "no object is labelled, so there is nothing to score: add --output=DIR for the predictions, which "
            "`haksnet submit` packs"
        )
    if resize == "auto":
        resize = "auto" if images and not _all_fit(images, detector.input_size) else "fit"
    readable = _Readable(source, detector.image_settings.num_channels)
    is_square = len(set(detector.input_size)) == 1  # else it lies as the image does, which the batches cannot
    if resize == "fit" and pad == "full" and (is_square or settings is not None):
        found, num_cut = _as_in_training(detector, readable, score, batch_size or 1, num_workers)
    else:
        options = view_settings.Settings(resize=resize, overlap=overlap, pad=pad, score=score)
        found, num_cut = _as_in_prediction(detector, readable, options)
    warnings = [f"{counted(num_cut, 'detection')} beyond the model's caps left out"] if num_cut else []
    unknown = label_problems.unknown_classes(getattr(source, "problems", []), num_objects(labels_by_image), allow=True)
    warnings += [unknown] if unknown else []
    detections = dict(zip(names, found, strict=True))
    failed = _unreadable(source, detections)
    for name in failed.keys() & detections.keys():
        del detections[name], labels_by_image[name]
    position = {name: index for index, name in enumerate(names)}
    return Evaluated(
        detections,
        labels_by_image,
        detector.class_names,
        lambda name: reader.picture(source[position[name]]["image"]),
        failed,
        warnings,
    )


def _unreadable(source, detections):
    """{image: why it could not be read}, of those that the source has left out too."""
    problems = [one for one in getattr(source, "problems", ()) if one.reason == Reason.UNREADABLE_IMAGE]
    failed = {dota.image_stem(one.path): str(one) for one in problems}  # known by their headers, and left out
    for index, name in enumerate(source.image_ids):
        if detections[name]["size"] == (1, 1):  # (as `_Readable` shows what it cannot read)
            try:
                source[index]
            except (OSError, ValueError) as error:
                failed[name] = str(error)
    return failed


def _as_in_training(detector, source, score, batch_size, num_workers):
    """(detections by image, number cut): images fitted into one canvas, by the function that evaluates a run."""
    import jax

    from haksnet_jax.distributed import mesh as devices
    from haksnet_jax.inference import detection_evaluator
    from haksnet_jax.inference import detection_session as sessions

    session, mesh = detector.session, devices.data_mesh()
    with jax.set_mesh(mesh), session.arithmetic():
        return detection_evaluator.detect_split(
            sessions.make_step(
                session.graph,
                mesh,
                proposal_settings=session.proposal_settings,
                detection_settings=session.detection_settings,
            ),
            jax.device_put(session.variables, devices.replicated(mesh)),
            source,
            mesh,
            image_size=[-(-side // 32) * 32 for side in detector.input_size],
            batch_size_per_device=batch_size,
            score=score,
            num_workers=num_workers,
        )


def _as_in_prediction(detector, source, options):
    """(detections by image, number cut): by the views of `predict`."""
    from haksnet_jax.inference.detection_predictor import merge

    found, num_cut = [], 0
    for one in detector.look((source[index]["image"] for index in range(len(source))), options):
        if one.error is not None:
            raise one.error
        found.append(merge(one, options) | {"size": (one.image.width, one.image.height)})
        one.image.close()
        num_cut += one.num_cut
    return found, num_cut


def _all_fit(folder, input_size):
    """Whether all images of a folder are no larger than the network's input."""
    from haksnet_jax.inference import views

    for path in image_files.list_images(folder):
        try:
            header = read_header(path)
        except (ImageError, OSError):  # it is named when it is its turn
            continue
        if not views.fits(header.height, header.width, input_size):
            return False
    return True
