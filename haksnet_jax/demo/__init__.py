"""A small detector and a few scenes that come with the package, so that there is something to run at once.

    haksnet predict --checkpoint=demo --images=demo --output=found
    haksnet evaluate --checkpoint=demo --images=demo --labels=demo

The detector is that of `make demo`: narrow, trained on generated scenes of 192 pixels. It shows how the program works,
not what HAKSNet can do. `haksnet_jax.cli.demo_files` made the files here, and writes more scenes.
"""

import os
import pathlib

NAME = "demo"
_FOLDER = pathlib.Path(__file__).resolve().parent
MODEL = _FOLDER / "model"
IMAGES = _FOLDER / "scenes" / "images"
LABELS = _FOLDER / "scenes" / "labelTxt"


def or_path(name: str | os.PathLike[str], shipped: pathlib.Path) -> str | os.PathLike[str]:
    """What a user means by a path: `demo` is what comes with the package, unless something of that name is here.

    Args:
      name: as the user typed it.
      shipped: MODEL, IMAGES or LABELS.

    Returns:
      The name itself, or the shipped folder as str.
    """
    return str(shipped) if str(name) == NAME and not pathlib.Path(NAME).exists() else name
