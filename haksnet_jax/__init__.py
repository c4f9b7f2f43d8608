"""HAKSNet and Oriented R-CNN in JAX: oriented object detection in aerial images, on TPUs and GPUs.

detector = haksnet_jax.load("CHECKPOINT_FOLDER")
detections = detector("harbour.tif")
"""

import sys

from haksnet_jax.version import __version__

if sys.argv[:1] == ["-m"]:  # of `python -m haksnet_jax.SOMETHING`, before it is looked for
    from haksnet_jax.cli import doors

    doors.check(sys.orig_argv)

__all__ = ["__version__", "load"]


def load(directory, **options):
    """Loads a trained or converted detector: see `haksnet_jax.inference.predictor.load`."""
    from haksnet_jax.inference import (
        predictor as detector,  # here: it loads JAX, which importing the package alone should not
    )

    return detector.load(directory, **options)
