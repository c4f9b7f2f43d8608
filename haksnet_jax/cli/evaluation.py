"""Scores a detector, or predictions in files, against labels: what the command `evaluate` does."""

import json
import sys
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from etils import epath

from haksnet_jax import files, json_files, tasks
from haksnet_jax.errors import UserError
from haksnet_jax.images import files as image_files
from haksnet_jax.images import reader
from haksnet_jax.images import settings as image_settings
from haksnet_jax.images.headers import ImageError, read_header
from haksnet_jax.images.reader import ImageFile
from haksnet_jax.labels import problems as label_problems
from haksnet_jax.labels.classes import read_class_names
from haksnet_jax.labels.label_set import NEEDS_IMAGES, LabelSet
from haksnet_jax.labels.problems import Reason
from haksnet_jax.pipeline import sources
from haksnet_jax.results import detections_json, dota, mean_ap, predictions, visualize
from haksnet_jax.results.mean_ap import mean_average_precision
from haksnet_jax.wording import counted

_PICTURE_SIDE = 2048  # pixels: larger images are drawn reduced to this
_MANY_TIES = 0.1  # share of the detections that have the score of another one, from which on it is said
_SHOWN = 10  # images that could not be used and are named


class Evaluated(NamedTuple):
    """What was found beside what is labelled.

    Attributes:
      detections: dict by image.
      labels: dict by image.
      class_names: the classes, by label.
      picture: function from an image's name to its pixels, or to None.
      failed: {image: why it could not be read}; it is in neither dict.
      warnings: sentences to be read beside the result.
    """

    detections: dict[str, Any]
    labels: dict[str, Any]
    class_names: tuple[str, ...]
    picture: Any
    failed: dict[str, str]
    warnings: list[str]


# ------------------------------------------------------------------------------------------------ predictions in files


def read_label_folder(folder, class_names, *, labels_format="dota", images=None):
    """Reads the labels of many images.

    Args:
      folder: label files, one for each image; or one file, in formats that are so.
      class_names: the classes, in the order of their labels.
      labels_format: one of `label_set.FORMATS`.
      images: dict from an image's name to its file, which some formats need.

    Returns:
      (dict from image name to {"polygons", "labels", "difficulty"}, list of Problem).

    Raises:
      UserError: there are no labels.
    """
    label_set = _label_set(folder, labels_format)
    if label_set.format in NEEDS_IMAGES and not images:
        raise UserError(f"labels in the format {label_set.format} need the images: name their folder with --images")
    by_image, problems = {}, list(label_set.problems)
    for name in label_set.files:
        objects, found = label_set.read(name, tuple(class_names), (images or {}).get(name))
        problems += found
        fields = {"polygons": objects.polygons, "labels": objects.labels, "difficulty": objects.difficulty}
        by_image[name] = fields
    label_problems.require_read(problems)
    return by_image, problems


def _label_set(folder, labels_format):
    label_set = LabelSet(folder, labels_format)
    if not label_set.files:
        raise UserError(f"{folder} holds no label file; expected one text file for each image")
    return label_set


def evaluate_files(source, labels, class_names=None, *, labels_format="dota", images=None):
    """Predictions and labels in files, image by image.

    Args:
      source: folder of Task-1 files, a detections.json, or the folder it lies in. Predictions for tiles are merged
        where the labels are for whole images.
      labels: folder of label files.
      class_names: the classes, in the order of their labels; None takes the list that the predictions bring, and where
        they bring none, all that occur in predictions and labels.
      labels_format: as in `read_label_folder`.
      images: dict from an image's name to its file.

    Returns:
      (detections by image, labels by image, class names, list of Problem in the labels, warnings).

    Raises:
      UserError: something cannot be read completely, or there are predictions for images without a label file.
    """
    found = predictions.read(source, class_names)
    if not found.listed:
        found = _with_classes_of_labels(found, _label_set(labels, labels_format).found_class_names())
    detections, class_names, warnings = found.by_image, found.class_names, []
    labels_by_image, problems = read_label_folder(labels, class_names, labels_format=labels_format, images=images)
    missing = [problem for problem in found.problems if problem.reason == "missing_file"]
    wrong = [problem for problem in found.problems if problem.reason != "missing_file"]
    if wrong:
        raise UserError(f"{wrong[0]}; {counted(len(wrong), 'such problem')} in {source}")
    if missing:
        is_are = "class has" if len(missing) == 1 else "classes have"
        warnings.append(f"{len(missing)} {is_are} no Task-1 file: counted as without detections")
    if not set(detections) <= set(labels_by_image):
        detections, num_tiles, warning = predictions.merge_if_tiles(detections, 0.1)
        warnings += [warning] if warning else []
        if num_tiles:
            num_images = counted(len(detections), "image")
            print(f"merged the predictions for {counted(num_tiles, 'tile')} into {num_images}", file=sys.stderr)
    unknown = sorted(set(detections) - set(labels_by_image))
    if unknown:
        raise UserError(
            f"{counted(len(unknown), 'image')} with predictions and no label file in {labels}, {unknown[0]} first; an "
            "image without objects has an empty one, and unlabelled images are for `haksnet submit`"
        )
    without = len(labels_by_image) - len(detections)
    if without:
        warnings.append(f"no predictions for {without} of {counted(len(labels_by_image), 'labelled image')}")
    return detections, labels_by_image, class_names, problems, warnings


def _with_classes_of_labels(found, names):
    """Predictions that bring no list of classes, with that of the labels and what occurs in them alone."""
    spelled = {dota.task1_file_name(name): name for name in names}  # a file's name does not tell blanks from hyphens
    own = tuple(name if name in names else spelled.get(dota.task1_file_name(name), name) for name in found.class_names)
    problems = [problem for problem in found.problems if problem.reason != "missing_file"]
    found = found._replace(class_names=own, problems=problems)
    return predictions.with_classes(found, tuple(dict.fromkeys((*names, *own))), "the predictions")


# --------------------------------------------------------------------------------------------------------- checkpoints


def run_settings(directory):
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


def run_caps(settings):
    """(proposal_caps, detection_caps, score) with which a run evaluates itself. Args: settings, its configuration."""
    detection = dict(settings["detection"])
    score = detection.pop("score_threshold")
    names = ("candidates_per_level", "max_proposals", "iou_threshold")
    return {name: settings["rpn"][name] for name in names}, detection, score


def open_split(
    class_names,
    settings,
    *,
    images=None,
    labels=None,
    dataset=None,
    split="val",
    labels_format="dota",
    allow_unknown_classes=False,
    read_by=image_settings.DEFAULT,
):
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
    checkpoint,
    *,
    images=None,
    labels=None,
    dataset=None,
    split="val",
    resize="auto",
    pad="full",
    overlap=None,
    precision="float32",
    batch_size=None,
    num_workers=0,
    labels_format="dota",
    allow_unknown_classes=False,
    given_settings=image_settings.DEFAULT,
    without_labels=False,
):
    """Detections of a checkpoint on a split, beside its labels.

    A run's checkpoint is evaluated with the thresholds and caps of the run, whatever way its images are looked at.

    Args:
      checkpoint: a converted model, a run's folder, or one of its checkpoints.
      images, labels, dataset, split, labels_format, allow_unknown_classes: as in `open_split`.
      resize, pad, overlap: of `views.Settings`.
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
    from haksnet_jax.inference import predictor, views

    devices.enable_compilation_cache()
    settings = run_settings(checkpoint)
    caps, score = {}, views.Settings().score
    if settings is not None:
        caps["proposal_caps"], caps["detection_caps"], score = run_caps(settings)
    detector = predictor.load(checkpoint, precision=precision, batch_size=batch_size, **caps)
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
    if not _has_objects(labels_by_image) and not without_labels:  # before any work is done
        raise UserError(
            "no object is labelled, so there is nothing to score: add --output=DIR for the predictions, which "
            "`haksnet submit` packs"
        )
    readable = _Readable(source, detector.image_settings.num_channels)
    if resize == "auto":
        resize = "auto" if images and not _all_fit(images, detector.input_size) else "fit"
    is_square = len(set(detector.input_size)) == 1  # else it lies as the image does, which the batches cannot
    if resize == "fit" and pad == "full" and (is_square or settings is not None):
        found, num_cut = _as_in_training(detector, readable, score, batch_size or 1, num_workers)
    else:
        options = views.Settings(resize=resize, overlap=overlap, pad=pad, score=score)
        found, num_cut = _as_in_prediction(detector, readable, options)
    warnings = [f"{counted(num_cut, 'detection')} beyond the model's caps left out"] if num_cut else []
    unknown = label_problems.unknown_classes(getattr(source, "problems", []), _num_objects(labels_by_image), allow=True)
    warnings += [unknown] if unknown else []
    detections = dict(zip(names, found, strict=True))
    unreadable = [one for one in getattr(source, "problems", ()) if one.reason == Reason.UNREADABLE_IMAGE]
    failed = {dota.image_stem(one.path): str(one) for one in unreadable}  # known by their headers, and left out
    for index, name in enumerate(names):
        if detections[name]["size"] == (1, 1):
            try:
                source[index]
            except (OSError, ValueError) as error:
                failed[name] = str(error)
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


def _as_in_training(detector, source, score, batch_size, num_workers):
    """(detections by image, number cut): images fitted into one canvas, by the function that evaluates a run."""
    import jax

    from haksnet_jax.distributed import mesh as devices
    from haksnet_jax.inference import evaluator
    from haksnet_jax.inference import session as sessions

    session, mesh = detector.session, devices.data_mesh()
    with jax.set_mesh(mesh), session.arithmetic():
        return evaluator.detect_split(
            sessions.make_step(
                session.graph, mesh, proposal_caps=session.proposal_caps, detection_caps=session.detection_caps
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
    from haksnet_jax.inference.predictor import merge

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


def _images_of(folder):
    """Dict from an image's name to its file."""
    return {dota.image_stem(path.name): path for path in image_files.list_images(folder)} if folder else {}


def _pictures_of(paths):
    """Function from an image's name to its pixels, or to None where there is no file of it."""

    def read(name):
        if name not in paths:
            return None
        with ImageFile(paths[name]) as image:
            return image.read(0, 0, image.width, image.height)

    return read


# ------------------------------------------------------------------------------------------------------------- results


def evaluate(
    *,
    checkpoint=None,
    predicted=None,
    labels=None,
    images=None,
    classes=None,
    labels_format="dota",
    allow_unknown_classes=False,
    ignore_truncated=False,
    json_file=None,
    output=None,
    worst=8,
    score=0.3,
    **options,
):
    """Scores a checkpoint or predictions, says the result on the terminal and writes what is asked for.

    Args:
      checkpoint: see `evaluate_checkpoint`; or
      predicted: see `evaluate_files`.
      labels, images: folders; see the two.
      classes: of `predicted`: a published list's name, or a file of names; None for those that it brings.
      labels_format: of `labels`.
      allow_unknown_classes: scores although most labels are of classes that are not in the list.
      ignore_truncated: ignores objects of difficulty 2.
      json_file: file for the metrics, or None.
      output: folder for curves, confusion matrix, worst images and a checkpoint's detections, or None.
      worst: images with most errors that are drawn.
      score: lowest score in drawings and error counts.
      **options: of `evaluate_checkpoint`.

    Returns:
      Exit status: 0; 1 where images could not be read, which are named and not scored.

    Raises:
      UserError, OSError: with one sentence.
    """
    for target in (json_file, output):
        if target:  # before any work is done
            try:
                files.absolute(target).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot write {target}: {error.strerror}") from error
    if predicted:
        found = evaluated_files(predicted, labels, images, classes, labels_format, allow_unknown_classes)
    else:
        found = evaluate_checkpoint(
            checkpoint,
            images=images,
            labels=labels,
            labels_format=labels_format,
            allow_unknown_classes=allow_unknown_classes,
            without_labels=bool(output),
            **options,
        )
    if not _has_objects(found.labels):
        if predicted:
            raise UserError(
                "no object is labelled, so there is nothing to score; predictions on unlabelled images are for "
                "`haksnet submit`"
            )
        write_predictions(output, found.detections, found.class_names)
        print(
            f"No object is labelled, so there is no score. The predictions are in {output}:\n"
            f"  haksnet submit --predictions={output} --classes={output}/classes.txt --output=submission.zip"
        )
        return say_failed(found.failed)
    result = mean_average_precision(
        found.detections, found.labels, found.class_names, ignore_truncated=ignore_truncated
    )
    print(result.table())
    if json_file:
        files.write_text(json_file, json.dumps(result.to_json(), indent=2) + "\n")
        print(json_file)
    warnings = list(found.warnings)
    if output:
        warnings += _write_output(output, found, result, ignore_truncated, score, worst, with_detections=not predicted)
    num_tied, total = result.num_tied(), int(result.num_detections.sum())
    if total and num_tied > _MANY_TIES * total:
        warnings.append(
            f"{num_tied} of {counted(total, 'detection')} share their score with another one of their class: equal "
            "scores count together, which scores with more digits would not"
        )
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return say_failed(found.failed)


def evaluated_files(source, labels, images, classes, labels_format, allow_unknown):
    """Predictions and labels in files. Args: as `evaluate`. Returns: Evaluated."""
    paths = _images_of(images)
    names = read_class_names(classes) if classes else None
    detections, labels_by_image, names, problems, warnings = evaluate_files(
        source, labels, names, labels_format=labels_format, images=paths
    )
    if problems:
        print(f"labels: {label_problems.count_reasons(problems)}", file=sys.stderr)
    lost = label_problems.losses(problems)
    if lost:
        print(f"these do not count:\n{label_problems.listed(lost)}", file=sys.stderr)
    remedy = "name the predictions' classes with --classes, or allow it with --allow-unknown-classes"
    unknown = label_problems.unknown_classes(
        problems, _num_objects(labels_by_image), allow=allow_unknown, remedy=remedy
    )
    warnings += [unknown] if unknown else []
    return Evaluated(detections, labels_by_image, names, _pictures_of(paths), {}, warnings)


def say_failed(failed):
    """Names images that could not be read. Args: failed, see `Evaluated`. Returns: exit status."""
    if not failed:
        return 0
    for name, reason in list(failed.items())[:_SHOWN]:
        print(f"{name}: {reason}", file=sys.stderr)
    shown = ", ".join(list(failed)[:_SHOWN]) + (", ..." if len(failed) > _SHOWN else "")
    print(f"error: {counted(len(failed), 'image')} could not be read and not scored: {shown}", file=sys.stderr)
    return 1


def _write_output(output, found, result, ignore_truncated, score, worst, *, with_detections):
    """Writes the folder. Returns: warnings."""
    labels = found.labels
    if ignore_truncated:  # what is drawn knows one kind of ignored objects
        labels = {
            name: {**one, "difficulty": np.where(one["difficulty"] == 2, 1, one["difficulty"])}
            for name, one in labels.items()
        }
    missing = write_report(
        output, result, found.detections, labels, found.class_names, found.picture, score=score, num_worst=worst
    )
    if with_detections:
        write_predictions(output, found.detections, found.class_names)
    print(output)
    if not missing:
        return []
    return [f"{len(missing)} of the worst images are not drawn: give their folder with --images"]


def write_report(folder, result, detections, labels_by_image, class_names, picture, *, score, num_worst):
    """Draws where the errors are.

    Args:
      folder: gets `precision_recall.png`, `confusion_matrix.png`, `errors_by_size.png`, and `worst/`: the images with
        most errors, drawn.
      result: MeanAveragePrecision.
      detections, labels_by_image: dicts by image; difficulty 1 is ignored.
      class_names: the classes.
      picture: function from an image's name to its pixels, or None.
      score: lowest score of the detections that are looked at.
      num_worst: images drawn at most.

    Returns:
      Names of the worst images that were not drawn for want of their pixels.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    visualize.save_figure(visualize.precision_recall_figure(result), folder / "precision_recall.png")
    errors = mean_ap.analyse_errors(detections, labels_by_image, class_names, score_threshold=score)
    figure = visualize.confusion_matrix_figure(errors.confusion_matrix(), class_names)
    visualize.save_figure(figure, folder / "confusion_matrix.png")
    visualize.save_figure(visualize.errors_by_size_figure(errors.by_size()), folder / "errors_by_size.png")
    missing = []
    for rank, (name, count) in enumerate(errors.worst_images(num_worst), start=1):
        pixels = picture(name)
        if pixels is None:
            missing.append(name)
            continue
        (folder / "worst").mkdir(exist_ok=True)
        one = detections.get(name, {"boxes": np.zeros((0, 5)), "scores": np.zeros(0), "labels": np.zeros(0, int)})
        side = min(_PICTURE_SIDE, max(pixels.shape[:2]))
        truth = labels_by_image[name]
        drawing = visualize.draw_comparison(pixels, one, truth, class_names, score_threshold=score, side=side)
        visualize.write_image(folder / "worst" / f"{rank:02d}_{name.replace('/', '_')}_{count}_errors.jpg", drawing)
    return missing


def _num_objects(labels_by_image):
    return sum(len(one["labels"]) for one in labels_by_image.values())


def _has_objects(labels_by_image):
    return _num_objects(labels_by_image) > 0


def write_predictions(folder, detections, class_names):
    """Writes detections.json, classes.txt and task1/ as `predict` does. Args: folder; detections by image; classes."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "classes.txt", "".join(f"{name}\n" for name in class_names))
    dota.write_task1(folder / "task1", detections, class_names)
    entries = ((name, *one["size"], one) for name, one in detections.items())
    detections_json.write(folder / "detections.json", entries, class_names)
