"""Scores a segmenter or a change detector on labelled images: what the command `evaluate` does with models of these."""

import argparse
import json
import os
import pathlib
from typing import Any

import ml_collections
from etils import epath

from haksnet_jax import files, tasks
from haksnet_jax.cli.checkpoint_evaluation import run_settings
from haksnet_jax.errors import UserError
from haksnet_jax.inference import dense_predictor, dense_session
from haksnet_jax.inference import precision as precisions
from haksnet_jax.inference.dense_evaluator import DenseEvaluator
from haksnet_jax.tasks.dense import inference_settings

_FOLDERS = {
    "segmentation": (("images", "images_dir"), ("masks", "masks_dir")),
    "change": (("before", "before_dir"), ("after", "after_dir"), ("masks", "masks_dir")),
}


_GIVEN = ("images", "masks", "before", "after", "labels")


def open_source(
    arguments: argparse.Namespace, checkpoint: str | os.PathLike[str], predictor: dense_predictor.DensePredictor
) -> tuple[Any, tuple[str, ...], dense_session.Settings]:
    """What a command's arguments name: examples, the classes that means leave out, how the run looks at images.

    Args:
      arguments: with images, masks, before, after, labels and split.
      checkpoint: of the predictor; what its run was validated on is taken where no folder is named.
      predictor: DensePredictor.

    Raises:
      UserError: no examples are named, or not all folders of them.
    """
    settings = run_settings(checkpoint)
    if settings is None:
        raise UserError(
            f"{checkpoint} belongs to no run: its config.json says how the masks' values are read; evaluate "
            "the folder of a run, or one of its checkpoints"
        )
    given = {option: getattr(arguments, option) for option, _ in _FOLDERS[predictor.task]}
    missing = [f"--{option}" for option, value in given.items() if not value]
    if arguments.labels or (any(given.values()) and missing):
        wanted = " and ".join(f"--{option}=DIR" for option in given)
        raise UserError(
            f"{checkpoint} is a model of {predictor.task}: expected {wanted}, or none of them for what its run was "
            f"validated on; got {', '.join(f'--{name}' for name in _GIVEN if getattr(arguments, name))}"
        )
    config = ml_collections.ConfigDict(settings)
    split = arguments.split
    if split not in ("train", "val"):
        raise UserError(f"--split: a run has the splits train and val, got {split!r}")
    if all(given.values()):  # (absolute, so that they lie not in data.root, where the palette is looked for)
        folders = {key: str(files.absolute(given[option])) for option, key in _FOLDERS[predictor.task]}
        if config.data.kind == "folder":
            config.data[split].update(folders)
        else:  # generated scenes, whose masks hold the numbers of the classes
            config.data.kind, config.data[split] = "folder", folders
    looked_at = inference_settings(config)._replace(tile=predictor.tile, overlap=predictor.overlap)
    return tasks.of(config).open_source(config, split), tuple(config.evaluation.left_out), looked_at


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Args: arguments, of `cli.evaluate`. Returns: exit status."""
    from haksnet_jax.distributed import mesh as devices

    devices.enable_compilation_cache()
    predictor = dense_predictor.load(
        arguments.checkpoint, precision=arguments.precision, batch_size=arguments.batch_size
    )
    source, left_out, as_validated = open_source(arguments, arguments.checkpoint, predictor)
    settings = predictor.settings(
        overlap=arguments.overlap,
        scales=arguments.scales or as_validated.scales,
        flip=arguments.flip or as_validated.flip,
        turns=arguments.turns or as_validated.turns,
    )
    evaluator = DenseEvaluator(
        predictor.session,
        source,
        settings,
        left_out=left_out,
        num_pictures=arguments.worst if arguments.output else 0,
        colours=predictor.colours,
    )
    print(source.summary())
    with precisions.arithmetic(predictor.precision):
        result = evaluator(None, pictures=epath.Path(arguments.output) / "pictures" if arguments.output else None)
    print(result.table())
    figures = {name: value for name, value in result.figures().items() if not name.startswith("iou:")}
    print(", ".join(f"{name} {'-' if value is None else f'{100 * value:.2f} %'}" for name, value in figures.items()))
    text = json.dumps({"figures": result.figures(), **result.to_json()}, indent=2) + "\n"
    for target in filter(None, (arguments.json, arguments.output and f"{arguments.output}/evaluation.json")):
        pathlib.Path(target).parent.mkdir(parents=True, exist_ok=True)
        files.write_text(target, text)
        print(target)
    return 1 if evaluator.num_unread else 0
