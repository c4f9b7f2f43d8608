"""HAKSNet and Oriented R-CNN in JAX: oriented object detection in aerial images, on TPUs and GPUs.

detector = haksnet_jax.load("CHECKPOINT_FOLDER")
detections = detector("harbour.tif")
"""

from haksnet_jax.version import __version__

__all__ = ["__version__", "load"]


def load(directory, **options):
    """Loads a trained or converted detector: see `haksnet_jax.inference.predictor.load`."""
    from haksnet_jax.inference import (
        predictor as detector,  # here: it loads JAX, which importing the package alone should not
    )

    return detector.load(directory, **options)
