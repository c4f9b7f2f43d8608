"""HAKSNet and Oriented R-CNN in JAX: oriented object detection in aerial images, on TPUs and GPUs.

detector = haksnet_jax.load("CHECKPOINT_FOLDER")
detections = detector("harbour.tif")
detections.boxes, detections.scores, detections.names
"""

import os
import sys
from typing import Any

from haksnet_jax.version import __version__

if sys.argv[:1] == ["-m"]:  # of `python -m haksnet_jax.SOMETHING`, before it is looked for
    from haksnet_jax.cli import doors

    doors.check(sys.orig_argv)

__all__ = ["Detections", "__version__", "load"]


def load(directory: str | os.PathLike[str], **options: Any) -> Any:
    """Loads a trained or converted model.

    Args:
      directory: a run's folder, one of its checkpoints, or a converted model.
      **options: of what is returned; for a detector precision ("float32" or "bfloat16"), batch_size (windows at a time
        on each device) and accelerators (devices to use).

    Returns:
      What its task asks for: of a detector `inference.detection_predictor.Detector`, which called with an image, a
      folder or a list gives `Detections`; of a segmenter or change detector
      `inference.dense_predictor.DensePredictor`; of a classifier
      `inference.classification_predictor.ImageClassifier`.

    Raises:
      UserError: nothing usable is there, or an option cannot be used.
    """
    # here: they load JAX, which importing the package alone should not
    from haksnet_jax.inference import classification_predictor, dense_predictor, detection_predictor
    from haksnet_jax.weights import model_folder

    task = model_folder.task_of(directory)
    if task == "classification":
        return classification_predictor.load(directory, **options)
    return (dense_predictor if task in dense_predictor.TASKS else detection_predictor).load(directory, **options)


def __getattr__(name: str) -> Any:
    if name == "Detections":
        from haksnet_jax.results.detections import Detections

        return Detections
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
