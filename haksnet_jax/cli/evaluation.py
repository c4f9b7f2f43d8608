"""Scores a detector, or predictions in files, against labels: what the command `evaluate` does."""

import collections
import json
import os
import pathlib
import sys

import jax
import numpy as np
from etils import epath

from haksnet_jax import files
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.errors import UserError
from haksnet_jax.images import files as image_files
from haksnet_jax.images import settings as image_settings
from haksnet_jax.images.headers import ImageError, read_header
from haksnet_jax.inference import evaluator, views
from haksnet_jax.inference import session as sessions
from haksnet_jax.inference.predictor import load, merge
from haksnet_jax.inference.views import Settings
from haksnet_jax.labels.classes import CLASSES, read_class_names
from haksnet_jax.labels.label_set import NEEDS_IMAGES, LabelSet
from haksnet_jax.labels.problems import require_read, unknown_classes
from haksnet_jax.pipeline import sources
from haksnet_jax.results import dota, mean_ap, visualize
from haksnet_jax.results.mean_ap import mean_average_precision
from haksnet_jax.training import checkpoint

_SHOWN = 10  # problems of one kind that are named one by one
_PICTURE_SIDE = 2048  # pixels: larger images are drawn reduced to this


class EvaluationError(UserError):
    """An evaluation that is not possible, told in one sentence."""


def read_label_folder(folder, class_names, *, format="dota", images=None):
    """Reads all labels of a folder.

    Args:
      folder: holds one label file for each image, or is one file for all of them.
      class_names: the classes, in the order of their labels.
      format: of the labels, see labels.label_set.FORMATS.
      images: folder of the images, which some formats need for their sizes; or None.

    Returns:
      (dict from image name to {"polygons", "labels", "difficulty"}, list of Problem).

    Raises:
      EvaluationError: no such folder, or no label file in it.
    """
    label_set = LabelSet(folder, format)
    if not label_set.files:
        raise EvaluationError(f"{folder} holds no label file; expected one for each image")
    needed = label_set.format in NEEDS_IMAGES
    if needed and images is None:
        raise EvaluationError(
            f"labels in the format {label_set.format} need the images: name their folder with --images"
        )
    paths = {} if not needed else {path.stem: path for path in image_files.list_images(images)}
    by_image, problems = {}, list(label_set.problems)
    for stem in label_set.files:
        objects, found = label_set.read(stem, tuple(class_names), paths.get(stem))
        problems += found
        by_image[stem] = {
            "polygons": objects.polygons,
            "labels": objects.labels,
            "difficulty": objects.difficulty,
        }
    require_read(problems)
    return by_image, problems


def class_names_of(predictions):
    """The classes that predictions were made with.

    Those of a `classes.txt` beside them, as `predict` writes it; else the first published list with these Task-1
    files, or with all classes of a detections.json.

    Args:
      predictions: folder of Task-1 files, a detections.json, or the folder it lies in.

    Raises:
      EvaluationError: neither is there.
    """

    path = pathlib.Path(predictions)
    folder = path if path.is_dir() else path.parent
    for beside in (folder / "classes.txt", folder.parent / "classes.txt"):
        if beside.is_file():
            return read_class_names(str(beside))
    names = {file.name for file in folder.glob("Task1_*.txt")} if path.is_dir() else set()
    if names:
        for published in CLASSES.values():
            if {dota.task1_file_name(name) for name in published} == names:
                return published
    else:
        path = path / "detections.json" if path.is_dir() else path
        try:
            images = json.loads(path.read_text(encoding="utf-8"))["images"]
            names = {one["label"] for image in images for one in image["detections"]}
        except OSError as error:
            raise EvaluationError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{path} is not a detections.json as `predict` writes it: {error!r}") from error
        for published in CLASSES.values():
            if names <= set(published):
                return published
    raise EvaluationError(
        f"the classes of {predictions} are those of no published list: name them with --classes=FILE, one class a line "
        "in the order of the labels"
    )


def evaluate_files(predictions, labels_folder, class_names, *, format="dota", images=None):
    """Predictions and labels in files, image by image.

    Args:
      predictions: folder of Task-1 files, a detections.json, or the folder it lies in. Predictions for tiles are merged
        where the labels are for whole images.
      labels_folder: folder of label files, or a file of labels.
      class_names: the classes, in the order of their labels.
      format: of the labels, see labels.label_set.FORMATS.
      images: folder of the images, which some formats need for their sizes; or None.

    Returns:
      (detections by image, labels by image, list of Problem in the labels).

    Raises:
      ValueError: something cannot be read completely, or there are predictions for images without a label file.
    """
    from haksnet_jax.cli import submission

    labels_by_image, problems = read_label_folder(labels_folder, class_names, format=format, images=images)
    detections, wrong = submission.read_predictions(predictions, class_names)
    for problem in wrong:
        if problem.reason != "missing_file":
            raise EvaluationError(f"{problem}; {len(wrong)} such problems in {predictions}")
    if wrong:
        print(f"{len(wrong)} classes have no Task-1 file: they count as without detections", file=sys.stderr)
    if not set(detections) <= set(labels_by_image):
        detections, num_tiles = submission.merge_if_tiles(detections, 0.1)
        if num_tiles:
            print(f"merged the predictions for {num_tiles} tiles into {len(detections)} images", file=sys.stderr)
    unknown = sorted(set(detections) - set(labels_by_image))
    if unknown:
        raise EvaluationError(
            f"{len(unknown)} images with predictions have no label file in {labels_folder}, {unknown[0]} first; an "
            "image without objects has an empty one, and unlabelled images are for `haksnet submit`"
        )
    without = len(labels_by_image) - len(detections)
    if without:
        print(f"{without} of {len(labels_by_image)} labelled images have no predictions", file=sys.stderr)
    return detections, labels_by_image, problems


def run_settings(directory):
    """The configuration of the run that a checkpoint belongs to, a dict, or None for a converted model."""
    folder = files.absolute(directory)
    for place in (folder, folder.parent, folder.parent.parent):
        if (place / "config.json").exists() and (place / checkpoint.MODEL_FILE).exists():
            return json.loads((place / "config.json").read_text())
    return None


def run_caps(settings):
    """(proposal_caps, detection_caps, score) with which a run evaluates itself. Args: settings, its configuration."""
    detection = dict(settings["detection"])
    score = detection.pop("score_threshold")
    names = ("candidates_per_level", "max_proposals", "iou_threshold")
    return {name: settings["rpn"][name] for name in names}, detection, score


def open_split(arguments, class_names, settings, read_by):
    """The source that the command's arguments name.

    Args:
      arguments: of the command.
      class_names: of the model.
      settings: configuration of the run, or None.
      read_by: ImageSettings of the model.

    Raises:
      EvaluationError: no data is named.
      FileNotFoundError, ValueError: of the source.
    """
    if arguments.images or arguments.labels:
        if not (arguments.images and arguments.labels):
            raise EvaluationError(
                "expected both --images and --labels; images without labels are for `haksnet predict` "
                "and `haksnet submit`"
            )
        return sources.FolderSource(
            arguments.images,
            arguments.labels,
            class_names,
            format=arguments.format,
            allow_unknown_classes=arguments.allow_unknown_classes,
            image_settings=read_by,
        )
    if arguments.dataset:
        return sources.TfdsSource(arguments.dataset, arguments.split, class_names)
    if settings is None:
        raise EvaluationError(
            "this checkpoint does not say what it was validated on: give --images and --labels, or --dataset"
        )
    data = settings["data"]
    if arguments.split not in ("train", "val"):
        raise EvaluationError(f"--split: a run has the splits train and val, got {arguments.split!r}")
    options = dict(data[arguments.split])
    if data["kind"] == "folder":
        options["image_settings"] = read_by
    if data["kind"] != "scenes":
        options["min_side"] = data.get("min_side", 0.0)
    for name in ("directory", "images_dir", "labels_dir"):
        if options.get(name) and data.get("root"):
            options[name] = os.path.join(data["root"], options[name])
    return sources.open_source(data["kind"], class_names, **options)


def _all_fit(folder, detector):
    """Whether all images of a folder are no larger than the network's input."""
    for path in image_files.list_images(folder):
        try:
            header = read_header(path)
        except (ImageError, OSError):  # it is named when it is its turn
            continue
        if not views.fits(header.height, header.width, detector.input_size):
            return False
    return True


def evaluate_checkpoint(arguments):
    """Detections of a checkpoint on a split, beside its labels.

    Args:
      arguments: of the command.

    Returns:
      (detections by image, labels by image, class names, function from an image's name to its pixels, number of images
      that cannot be read and are left out).

    Raises:
      ValueError, OSError: with one sentence.
    """
    devices.enable_compilation_cache()
    settings = run_settings(arguments.checkpoint)
    caps, score = {}, Settings().score
    if settings is not None:  # so that a run's figures come out again
        caps["proposal_caps"], caps["detection_caps"], score = run_caps(settings)
    detector = load(arguments.checkpoint, precision=arguments.precision, batch_size=arguments.batch_size, **caps)
    detector.image_settings = image_settings.merged(image_settings.of_options(arguments), detector.image_settings)
    source = open_split(arguments, detector.class_names, settings, detector.image_settings)
    bad = _pass_over_bad_images(source)
    print(source.summary(), file=sys.stderr)
    names = list(source.image_ids)
    labels_by_image = {name: source.labels(index) for index, name in enumerate(names)}
    if not _has_objects(labels_by_image) and not arguments.output:  # before any work is done
        raise EvaluationError(
            "no object is labelled, so there is nothing to score: add --output=DIR for the predictions, which "
            "`haksnet submit` packs"
        )
    resize = arguments.resize
    if resize == "auto":
        resize = "auto" if arguments.images and not _all_fit(arguments.images, detector) else "fit"
    is_square = len(set(detector.input_size)) == 1  # else it lies as the image does, which the batches cannot
    if resize == "fit" and arguments.pad == "full" and (is_square or settings is not None):
        rounded = [-(-side // 32) * 32 for side in detector.input_size]
        session, mesh = detector.session, devices.data_mesh()
        with jax.set_mesh(mesh), session.arithmetic():
            found, num_cut = evaluator.detect_split(
                sessions.make_step(
                    session.graph, mesh, proposal_caps=session.proposal_caps, detection_caps=session.detection_caps
                ),
                jax.device_put(session.variables, devices.replicated(mesh)),
                source,
                mesh,
                image_size=rounded,
                batch_size_per_device=arguments.batch_size or 1,
                score=score,
                num_workers=arguments.num_workers,
            )
    else:
        options = Settings(resize=resize, overlap=arguments.overlap, pad=arguments.pad, score=score)
        found, num_cut = [None] * len(source), 0
        for one in detector.look((source[index]["image"] for index in range(len(source))), options):
            if one.error is not None:
                raise one.error
            found[one.index] = merge(one, options) | {"size": (one.image.width, one.image.height)}
            one.image.close()
            num_cut += one.num_cut
    if num_cut:
        print(f"{num_cut} detections beyond the model's caps were left out", file=sys.stderr)
    position = {name: index for index, name in enumerate(names)}
    detections = dict(zip(names, found, strict=True))
    return detections, labels_by_image, detector.class_names, lambda name: source[position[name]]["image"], bad


def _pass_over_bad_images(source):
    """Leaves images that cannot be read out of a folder's source, and names them. Returns: how many."""
    if not isinstance(source, sources.FolderSource):
        return 0
    # Decoded, since what is damaged in its middle would end the evaluation when it is half done.
    bad = [one for one in source.check_images(decode=True, bad_images="leave_out") if one.reason == "unreadable_image"]
    for problem in bad:
        print(f"error: {problem}", file=sys.stderr)
    if bad:
        print(f"{len(bad)} images that cannot be read are left out of the score", file=sys.stderr)
    return len(bad)


def _pictures_of(folder):
    """Function from an image's name to its pixels, or to None where the folder has no such image."""
    from haksnet_jax.images.reader import ImageFile

    paths = {}
    if folder:
        paths = {
            dota.image_stem(path.name): path for path in pathlib.Path(folder).iterdir() if dota.is_image_file(path)
        }

    def read(name):
        if name not in paths:
            return None
        with ImageFile(paths[name]) as image:
            return image.read(0, 0, image.width, image.height)

    return read


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


def run(arguments):
    """Runs the command. Args: arguments, of `cli.evaluate`. Returns: exit status."""
    for target in (arguments.json, arguments.output):
        if target:  # before any work is done
            try:
                files.absolute(target).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise EvaluationError(f"cannot write {target}: {error.strerror}") from error
    num_bad = 0
    if arguments.predictions:
        names = read_class_names(arguments.classes) if arguments.classes else class_names_of(arguments.predictions)
        detections, labels_by_image, problems = evaluate_files(
            arguments.predictions, arguments.labels, names, format=arguments.format, images=arguments.images
        )
        num_known = sum(len(one["labels"]) for one in labels_by_image.values())
        _report_problems(problems, num_known, arguments.allow_unknown_classes)
        picture = _pictures_of(arguments.images)
    else:
        detections, labels_by_image, names, picture, num_bad = evaluate_checkpoint(arguments)
    if not _has_objects(labels_by_image):
        if not arguments.checkpoint:
            raise EvaluationError(
                "no object is labelled, so there is nothing to score; predictions on unlabelled images are for "
                "`haksnet submit`"
            )
        write_predictions(arguments.output, detections, names)
        print(
            f"No object is labelled, so there is no score. The predictions are in {arguments.output}:\n"
            f"  haksnet submit --predictions={arguments.output} --classes={arguments.output}/classes.txt "
            "--output=submission.zip"
        )
        return 1 if num_bad else 0
    result = mean_average_precision(detections, labels_by_image, names, ignore_truncated=arguments.ignore_truncated)
    print(result.table())
    if arguments.json:
        files.write_text(arguments.json, json.dumps(result.to_json(), indent=2) + "\n")
        print(arguments.json)
    if arguments.output:
        if arguments.ignore_truncated:  # what is drawn knows one kind of ignored objects
            labels_by_image = {
                name: {**one, "difficulty": np.where(one["difficulty"] == 2, 1, one["difficulty"])}
                for name, one in labels_by_image.items()
            }
        missing = write_report(
            arguments.output,
            result,
            detections,
            labels_by_image,
            names,
            picture,
            score=arguments.score,
            num_worst=arguments.worst,
        )
        if missing:
            print(f"{len(missing)} of the worst images are not drawn: give their folder with --images", file=sys.stderr)
        if arguments.checkpoint:
            write_predictions(arguments.output, detections, names)
        print(arguments.output)
    return 1 if num_bad else 0


def _has_objects(labels_by_image):
    return any(len(one["labels"]) for one in labels_by_image.values())


def write_predictions(folder, detections, class_names):
    """Writes detections.json, classes.txt and task1/ as `predict` does. Args: folder; detections by image; classes."""
    from haksnet_jax.cli.prediction import write_detections_json

    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "classes.txt", "".join(f"{name}\n" for name in class_names))
    dota.write_task1(folder / "task1", detections, class_names)
    entries = ((name, *one["size"], one) for name, one in detections.items())
    write_detections_json(folder / "detections.json", entries, class_names)


def _report_problems(problems, num_known, allow_unknown):
    """Names problems in label files: all kinds with their counts, the first of each one by one.

    Raises:
      UserError: too many labels are of classes that are not in the list, and that is not allowed.
    """
    counts = collections.Counter(problem.reason for problem in problems)
    for reason, count in counts.most_common():
        these = [problem for problem in problems if problem.reason == reason]
        lost = these[0].loses
        print(f"labels: {count} {reason}{'; these objects do not count' if lost else ''}", file=sys.stderr)
        for problem in these[:_SHOWN] if lost else ():
            print(f"  {problem}", file=sys.stderr)
    remedy = "name the predictions' classes with --classes, or allow it with --allow-unknown-classes"
    sentence = unknown_classes(problems, num_known, allow=allow_unknown, remedy=remedy)
    if sentence:
        print(f"warning: {sentence}", file=sys.stderr)
