"""A trained segmenter or change detector, ready to use on images of any size.

predictor = dense_predictor.load("RUN")
labels = predictor.labels(image)           # uint8 [H, W, C] -> uint8 [H, W]
labels = predictor.labels(before, after)   # of a change detector
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from haksnet_jax.distributed import mesh as devices
from haksnet_jax.errors import UserError
from haksnet_jax.images import settings as image_settings
from haksnet_jax.inference import dense_session
from haksnet_jax.inference import precision as precisions
from haksnet_jax.models import architecture
from haksnet_jax.results import dense_maps
from haksnet_jax.weights import model_folder
from haksnet_jax.weights.errors import CheckpointError

TASKS = {"segmentation": 1, "change": 2}  # images that are looked at together


def load(directory: str | os.PathLike[str], **options: Any) -> "DensePredictor":
    """Loads a model.

    Args:
      directory: a run's folder (its best evaluation), or one checkpoint of a run.
      **options: of `DensePredictor`.

    Returns:
      DensePredictor.

    Raises:
      CheckpointError: nothing usable is there.
    """
    return model_folder.opened(DensePredictor, directory, **options)


class DensePredictor:
    """Classes of the pixels of images of any size.

    Args:
      arrays: {"a.b.c": array} parameters and batch statistics.
      model_info: dict, see `model.json`.
      precision: "float32" with exact products, or "bfloat16".
      batch_size: windows at a time on each device; None for 4, or 1 on CPUs.

    Attributes:
      task: "segmentation" or "change".
      class_names, colours: of the classes, by label.
      image_settings: ImageSettings by which images are read.
      num_images: images that are looked at together: two of a change detector.
      tile, overlap: of the windows that the model was evaluated with.
      session: dense_session.Session with the weights.
      variables: {"params", "batch_stats"} of numpy arrays.
      precision: of the arithmetic.
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
        task = model_info.get("task")
        if task not in TASKS:
            raise CheckpointError(f"its task is {task!r}, expected one of {', '.join(TASKS)}")
        self.task: str = task
        try:
            self.class_names = tuple(model_info["class_names"])
            self.tile = int(model_info["input_size"][0])
            self.overlap = int(model_info["overlap"])
            colours = model_info.get("colours")
            self.image_settings = image_settings.from_json(model_info.get("images", {}), "model.json: images")
            num_classes = model_info["architecture"]["num_classes"]
            if len(self.class_names) != num_classes:
                raise CheckpointError(f"model.json names {len(self.class_names)} classes, the model has {num_classes}")
            graph, params, stats = architecture.abstract(model_info, dtype=precision)
        except (KeyError, TypeError, IndexError) as error:
            raise CheckpointError(f"model.json does not describe a model of {self.task}: {error!r}") from error
        self.variables = model_folder.variables_of(params, stats, arrays)
        self.colours = dense_maps.colours_of(self.class_names, colours)
        self.num_images = TASKS[self.task]
        mesh = devices.data_mesh(jax.local_devices())
        batch_size = batch_size or (1 if jax.default_backend() == "cpu" else 4)
        self.session = dense_session.Session(graph, mesh, batch_size=batch_size * mesh.devices.size)
        self.session.set_variables(self.variables)

    def settings(
        self,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        turns: bool = False,
    ) -> dense_session.Settings:
        """dense_session.Settings, those of the model where they are None.

        Raises:
          UserError: a value that cannot be used.
        """
        tile = self.tile if tile is None else tile
        overlap = (self.overlap if tile == self.tile else tile // 4) if overlap is None else overlap
        if tile % 32 or tile < 64:
            raise UserError(f"tile: expected a multiple of 32, 64 or more, got {tile}")
        if not 0 <= overlap <= tile // 2:
            raise UserError(f"overlap: expected 0 to {tile // 2} (half a window of {tile}), got {overlap}")
        return dense_session.Settings(tile, overlap, tuple(scales), flip, turns)

    def predict(
        self,
        jobs: Iterable[Any],
        settings: dense_session.Settings,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Any]:
        """`dense_session.predict` with this model. Yields: each Job when its sink has all rows."""
        with precisions.arithmetic(self.precision):
            yield from dense_session.predict(self.session, jobs, settings, on_progress=on_progress)

    def labels(self, *images: np.ndarray, settings: dense_session.Settings | None = None) -> np.ndarray:
        """The class of each pixel.

        Args:
          *images: one array [H, W, C] uint8, or two of the same size for a change detector.
          settings: dense_session.Settings, or None for the model's own.

        Returns:
          [H, W] uint8.

        Raises:
          UserError: another number of images, or images of different sizes.
        """
        if len(images) != self.num_images or any(image.shape != images[0].shape for image in images):
            raise UserError(
                f"expected {self.num_images} image(s) of one size for {self.task}, got "
                f"{', '.join(str(np.shape(image)) for image in images)}"
            )
        found, sink = dense_session.fill_array(*images[0].shape[:2])
        job = dense_session.Job(tuple(map(dense_session.ArrayImage, images)), sink)
        for _ in self.predict([job], settings or self.settings()):
            pass
        return found
