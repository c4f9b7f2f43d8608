"""A trained classifier, ready for images: the middle of each, one compilation, the likeliest classes."""

import concurrent.futures
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from haksnet_jax.distributed import mesh as devices
from haksnet_jax.images.headers import ImageError
from haksnet_jax.images.reader import ImageFile
from haksnet_jax.inference import precision as precisions
from haksnet_jax.inference.classification_evaluator import make_classify_step
from haksnet_jax.models import architecture
from haksnet_jax.pipeline.classification_sources import StoredImage, image_settings_of
from haksnet_jax.pipeline.classification_transforms import EvaluationRow
from haksnet_jax.results.top_k import NUM_BEST
from haksnet_jax.weights import model_folder
from haksnet_jax.weights.errors import CheckpointError


class Classified(NamedTuple):
    """One image: its likeliest classes, best first, with their probabilities."""

    path: pathlib.Path
    class_names: tuple
    scores: tuple


class ImageClassifier:
    """A classifier on this host's devices.

    Args:
      arrays: {"a.b.c": array} parameters and batch statistics.
      model_info: dict, see `model.json`.
      precision: "float32" with exact products, or "bfloat16".
      batch_size: images at a time and device; None: 32, on CPUs 8.

    Attributes:
      class_names: names of the classes, by label.
      model_info, graph, variables, mesh: as given and built.

    Raises:
      CheckpointError: the description is no classifier's, or the arrays do not fit it.
      UserError: an unknown precision.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        model_info: dict[str, Any],
        *,
        precision: str = "float32",
        batch_size: int | None = None,
    ) -> None:
        self.precision = precisions.checked(precision)
        if model_info.get("task") != "classification":
            raise CheckpointError(f"expected a classifier, found a model for {model_info.get('task', 'detection')}")
        self.model_info = model_info
        try:
            self.class_names = tuple(model_info["class_names"])
            self.graph, params, stats = architecture.abstract(model_info, dtype=precision)
            row = {"size": model_info["input_size"], "share": model_info.get("crop_share", 0.875)}
            self._images = image_settings_of(model_info)
            self._row = EvaluationRow(**row, num_bands=self._images.num_channels)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"model.json does not describe a classifier: {error!r}") from error
        self.variables = model_folder.variables_of(params, stats, arrays)
        self.mesh = devices.data_mesh(jax.local_devices())
        on_cpu = jax.local_devices()[0].platform == "cpu"
        self._batch_size = (batch_size or (8 if on_cpu else 32)) * self.mesh.devices.size
        self._placed = None
        self._step = make_classify_step(
            self.graph,
            self.mesh,
            min(NUM_BEST, len(self.class_names)),
            num_views=model_info.get("num_views", 1),
        )

    def __call__(self, paths: Sequence[str | os.PathLike[str]]) -> Iterator[Any]:
        """Classifies images.

        Args:
          paths: of image files.

        Yields:
          Classified, or (path, UserError) for an image that cannot be used; in the order of the paths.
        """
        files = [pathlib.Path(path) for path in paths]
        with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for first in range(0, len(files), self._batch_size):
                some = files[first : first + self._batch_size]
                rows = list(pool.map(self._read, some))
                scores, classes = self._classify([row for row in rows if not isinstance(row, Exception)])
                place = 0
                for path, row in zip(some, rows, strict=True):
                    if isinstance(row, Exception):
                        yield path, row
                        continue
                    names = tuple(self.class_names[index] for index in classes[place])
                    yield Classified(path, names, tuple(scores[place].tolist()))
                    place += 1

    def _read(self, path):
        """The pixels that the network gets, or what is wrong with the image."""
        try:
            with ImageFile(path, self._images) as image:  # (TIFF files by windows, whatever their size)
                pixels = image.read(0, 0, image.width, image.height)
        except (ImageError, OSError, MemoryError) as error:
            return error
        return self._row({"image": StoredImage(pixels=pixels, name=str(path)), "label": 0})["image"]

    def _classify(self, images):
        if not images:
            return np.zeros((0, 0)), np.zeros((0, 0), int)
        batch = np.zeros((self._batch_size, *images[0].shape), np.uint8)
        batch[: len(images)] = images
        if self._placed is None:
            self._placed = devices.place(self.variables, devices.replicated(self.mesh))
        placed = devices.place_batch(self.mesh, {"image": batch})
        with jax.set_mesh(self.mesh), precisions.arithmetic(self.precision):
            scores, classes = jax.device_get(self._step(self._placed, placed["image"]))
        return scores[: len(images)], classes[: len(images)]


def load(
    directory: str | os.PathLike[str], *, precision: str = "float32", batch_size: int | None = None
) -> ImageClassifier:
    """A classifier of a converted model, a run's folder, or one of its checkpoints. Raises: as `ImageClassifier`."""
    return model_folder.opened(ImageClassifier, directory, precision=precision, batch_size=batch_size)
