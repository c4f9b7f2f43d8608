"""Finds oriented objects in images of any size, the class of each of their pixels, or what has changed.

    haksnet predict --checkpoint=demo --images=demo --output=found
    haksnet predict --checkpoint=runs/folder --images scene.tif others/ --output=found --score=0.3
    haksnet predict --checkpoint=DIR --images='scenes/**/*.tif' --scales=0.5,1 --output=found

    haksnet predict --checkpoint=SEGMENTER --images=scene.tif --output=found --polygons
    haksnet predict --checkpoint=CHANGE_DETECTOR --before=2019.tif --after=2024.tif --output=found --polygons

What is found depends on what the model was trained for. Of objects, the output folder gets detections.json, classes.txt
(the model's classes in order), task1/ (DOTA's text files), drawings/, and geojson/ for images that are georeferenced. A
command that was stopped goes on where it ended when it is given again. Of pixels, it gets maps/ (GeoTIFF with the
scene's place and a colour table, or PNG), overlays/, areas.json and with --polygons polygons/.
"""

import argparse
import os

from haksnet_jax import demo
from haksnet_jax.cli import terminal, view_options
from haksnet_jax.inference.view_settings import Settings
from haksnet_jax.results.thresholds import SHOWN_SCORE


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a run's folder, one of its checkpoints, a converted model")
    terminal.add_list(parser, "--images", help="files, folders, or patterns in quotes ('scenes/**/*.tif')")
    add("--before", metavar="PATH", help="for change: the earlier image, or a folder of such")
    add("--after", metavar="PATH", help="for change: the later image, or a folder of images of the same names")
    add("--output", required=True, metavar="DIR", help="folder to write to")
    add(
        "--score",
        type=terminal.number(0, 1, above=True, hint="0.3 for 30 %"),
        default=Settings().score,
        help="lowest score of a detection; default: %(default)s",
    )
    terminal.add_list(parser, "--classes", help="only these classes")
    view_options.add(
        parser,
        pad=Settings().pad,
        scales=Settings().scales,
        auto="fit where the image is no larger than the input, else tile",
        batch_size="windows at a time on each device; default: 8, on CPUs 1",
    )
    add(
        "--tile",
        type=terminal.number(1, whole=True),
        help="side of the windows in pixels; default: the network's input",
    )
    add("--polygons", action="store_true", help="classes of pixels: outlines as GeoJSON, with their areas")
    add(
        "--min-pixels",
        type=terminal.number(1, whole=True),
        default=10,
        help="smallest area that becomes a polygon; default: %(default)s",
    )
    add(
        "--iou",
        type=terminal.number(0, 1),
        default=Settings().iou_threshold,
        help="overlap above which merging drops the lower score; default: %(default)s",
    )
    add("--drawings", action=argparse.BooleanOptionalAction, default=True, help="draw what was found")
    add(
        "--drawing-score",
        type=terminal.number(0, 1),
        default=SHOWN_SCORE,
        help="lowest score that is drawn; default: %(default)s",
    )
    terminal.add_list(
        parser,
        "--format",
        default=None,
        help="files besides detections.json: task1 (DOTA's text files), geojson, gpkg, coco, yolo-obb, labels (a text "
        "file an image), csv; default: task1,geojson",
    )
    add("--task1", action=argparse.BooleanOptionalAction, default=True, help="--no-task1 leaves out DOTA's text files")
    add("--geojson", action=argparse.BooleanOptionalAction, default=True, help="--no-geojson leaves out GeoJSON")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    # What GDAL keeps of decoded blocks: by default a twentieth of the machine's memory.
    os.environ.setdefault("GDAL_CACHEMAX", "256")
    arguments.scales = tuple(arguments.scales)
    arguments.images = [demo.or_path(image, demo.IMAGES) for image in arguments.images or ()]
    from haksnet_jax.cli import prediction
    from haksnet_jax.images import settings as image_settings
    from haksnet_jax.results import formats
    from haksnet_jax.weights import model_folder

    task = model_folder.task_of(arguments.checkpoint)
    if task == "classification":
        from haksnet_jax.cli import classification

        return classification.predict(arguments)
    if task in ("segmentation", "change"):
        from haksnet_jax.cli import dense_prediction

        return dense_prediction.predict(arguments)
    if not arguments.images or arguments.before or arguments.after:
        raise terminal.UsageError("a detector takes --images=PATH; --before and --after are for change detectors")
    chosen = formats.DEFAULT if arguments.format is None else arguments.format
    left_out = {name for name in ("task1", "geojson") if not getattr(arguments, name)}
    return prediction.predict(
        checkpoint=arguments.checkpoint,
        images=arguments.images,
        output_folder=arguments.output,
        classes=arguments.classes,
        precision=arguments.precision,
        batch_size=arguments.batch_size,
        drawings=arguments.drawings,
        drawing_score=arguments.drawing_score,
        given_settings=image_settings.of_options(arguments),
        formats_out=[name for name in chosen if name not in left_out],
        resize=arguments.resize,
        score=arguments.score,
        overlap=arguments.overlap,
        tile=arguments.tile,
        scales=arguments.scales,
        flip=arguments.flip,
        pad=arguments.pad,
        iou_threshold=arguments.iou,
    )
