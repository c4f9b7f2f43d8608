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

# What is meant in one command: --format is of what predict writes, and elsewhere of labels that are read; --to is a
# form in export, and in convert a file.
_IN_ONE_COMMAND = {
    ("predict", "save-txt"): "--format=labels",
    ("export", "format"): "--to",
    ("convert", "format"): "haksnet export --to",
    ("export", "half"): "the precision of the checkpoint, which `haksnet info` says",
    ("export", "amp"): "the precision of the checkpoint, which `haksnet info` says",
}


def option(name: str, command: str, options: Container[str]) -> str | None:
    """What an option of another program is here.

    Args:
      name: as typed, with dashes in front or without.
      command: as its parser is called: "haksnet predict".
      options: those of the command: "--images".

    Returns:
      What to type, or None where that is not known or the command has nothing like it.
    """
    name = name.lstrip("-").replace("_", "-")
    only_here = _IN_ONE_COMMAND.get((re.split(r"[ .]", command)[-1], name))
    if only_here is not None:
        return only_here
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
