"""Options of Ultralytics and MMRotate by the names that they have here: what newcomers type first."""

import re
from collections.abc import Container

# The name elsewhere, without dashes in front, and what it is here. A command takes the first one all of whose options
# it has; words without an option hold for every command.
_HERE = {
    "source": ("--images",),
    "weights": ("--checkpoint", "--set init=DIR", "--input"),
    "model": ("--checkpoint", "--set init=DIR", "--input"),
    "ckpt": ("--checkpoint", "--set init=DIR", "--input"),
    "cfg": ("--config",),
    "cfg-options": ("--set KEY=VALUE",),
    "data": ("--set data.root=DIR", "--images and --labels", "--images"),
    "conf": ("--score",),
    "conf-thres": ("--score",),
    "score-thr": ("--score",),
    "iou-thres": ("--iou",),
    "epochs": ("--set num_epochs=N",),
    "batch": ("--set batch_size_per_device=N", "--batch-size", "--batch"),
    "batch-size": ("--set batch_size_per_device=N", "--batch"),
    "lr": ("--set optimizer.learning_rate=X",),
    "lr0": ("--set optimizer.learning_rate=X",),
    "imgsz": ("--set data.image_size=640,640", "--size", "--tile"),
    "img-size": ("--set data.image_size=640,640", "--size", "--tile"),
    "workers": ("--set data.num_workers=N",),
    "seed": ("--set seed=N",),
    "half": ("--set model.dtype=bfloat16", "--precision=bfloat16", "--dtype=bfloat16"),
    "amp": ("--set model.dtype=bfloat16", "--precision=bfloat16", "--dtype=bfloat16"),
    "work-dir": ("--workdir", "--output"),
    "project": ("--workdir", "--output"),
    "save-dir": ("--workdir", "--output"),
    "out": ("--output",),
    "out-dir": ("--output",),
    "show-dir": ("--output",),
    "device": ("JAX_PLATFORMS=cpu or CUDA_VISIBLE_DEVICES=0 before the command",),
    "gpu-ids": ("CUDA_VISIBLE_DEVICES=0 before the command",),
    "gpus": ("CUDA_VISIBLE_DEVICES=0,1 before the command",),
}

# What holds for one command alone: (name, an option that only this command has, what is meant there). --format is of
# what predict writes (which has --drawings), and elsewhere of labels that are read; --to is a form in export (which has
# --opset), and in convert (which has --reinit-classifier) a file.
_IN_ONE_COMMAND = (
    ("save-txt", "--drawings", "--format=labels"),
    ("format", "--opset", "--to"),
    ("format", "--reinit-classifier", "haksnet export --to"),
    ("half", "--opset", "the precision of the checkpoint, which `haksnet info` says"),
    ("amp", "--opset", "the precision of the checkpoint, which `haksnet info` says"),
)


def option(name: str, options: Container[str]) -> str | None:
    """What an option of another program is here.

    Args:
      name: as typed, with dashes in front or without.
      options: those of the command: "--images".

    Returns:
      What to type, or None where that is not known or the command has nothing like it.
    """
    name = name.lstrip("-").replace("_", "-")
    for one, of_command, here in _IN_ONE_COMMAND:
        if one == name and of_command in options:
            return here
    for here in _HERE.get(name, ()):
        if all(needed in options for needed in re.findall(r"--[a-z-]+", here)):
            return here
    return None


def setting(name: str) -> str | None:
    """The key of a configuration that another program's key is, or None. Args: name, as typed."""
    for here in _HERE.get(name.replace("_", "-"), ()):
        if here.startswith("--set ") and "KEY" not in here:
            return here.removeprefix("--set ").partition("=")[0]
    return None
