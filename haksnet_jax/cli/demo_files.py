"""Writes generated scenes to try the program on, and makes the files that come with the package (`haksnet_jax.demo`).

python -m haksnet_jax.cli.demo_files --scenes=runs/demo_scenes           20 scenes that training never sees
make demo && python -m haksnet_jax.cli.demo_files --ship=runs/demo       in a checkout: replaces the package's files
"""

import argparse
import json
import os
import pathlib
import shutil
import tempfile

from haksnet_jax import demo
from haksnet_jax.cli import configuration, program

_SHIPPED = (3, 10, 17, 27)  # numbers of validation scenes, in which each class is shown


def write_scenes(folder: str | os.PathLike[str], num_scenes: int) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes validation scenes of `make demo` with their labels. Returns: (folder of images, folder of labels)."""
    from haksnet_jax.pipeline import sources

    data = configuration.load("demo").data
    options = {**data.val, "num_scenes": num_scenes}
    return sources.write_dota_folder(sources.open_source("scenes", data.class_names, **options), folder)


def ship(checkpoint: str | os.PathLike[str]) -> None:
    """Replaces model and scenes of the package. Args: checkpoint, folder of a run of `make demo`."""
    import numpy as np
    from safetensors.numpy import save_file

    from haksnet_jax.weights import model_folder, sums

    arrays, info = model_folder.load_model(checkpoint)
    for folder in (demo.MODEL, demo.IMAGES, demo.LABELS):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    # One plain file, where a folder of Orbax would be a dozen with random names.
    save_file({name: np.asarray(array) for name, array in arrays.items()}, demo.MODEL / model_folder.ARRAYS_FILE)
    (demo.MODEL / model_folder.MODEL_FILE).write_text(json.dumps(info, indent=2) + "\n")
    sums.write(demo.MODEL)
    with tempfile.TemporaryDirectory() as made:
        for source, target in zip(write_scenes(made, max(_SHIPPED) + 1), (demo.IMAGES, demo.LABELS), strict=True):
            for path in sorted(source.iterdir()):
                if int(path.stem.rpartition("_")[2]) in _SHIPPED:
                    shutil.copyfile(path, target / path.name)


def _run(arguments):
    if arguments.ship:
        ship(arguments.ship)
    else:
        images, labels = write_scenes(arguments.scenes, 20)
        print(f"20 scenes: images in {images}, labels in {labels}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--scenes", metavar="DIR", help="folder that gets images/ and labelTxt/")
    group.add_argument("--ship", metavar="RUN", help="folder of a run of `make demo`")
    raise SystemExit(program.guarded(_run, parser.parse_args()))
