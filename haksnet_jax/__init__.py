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
    """Loads a trained or converted model.

    Args:
      directory: a run's folder, one of its checkpoints, or a converted model.
      **options: of what is returned.

    Returns:
      What its task asks for: `inference.predictor.Detector`; of a segmenter or change detector
      `inference.dense_predictor.DensePredictor`.
    """
    # here: they load JAX, which importing the package alone should not
    from haksnet_jax.inference import dense_predictor, predictor
    from haksnet_jax.weights import model_folder

    info_path = model_folder.resolve(directory)[1]
    task = model_folder.read_model_info(info_path).get("task") if info_path.exists() else None
    return (dense_predictor if task in dense_predictor.TASKS else predictor).load(directory, **options)
