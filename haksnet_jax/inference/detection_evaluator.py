"""The detector over a labelled split, again and again with one compilation: detections, average precision, drawings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from flax import nnx

from haksnet_jax.distributed import mesh as devices
from haksnet_jax.images import reader
from haksnet_jax.images.headers import ImageError
from haksnet_jax.inference.detection_session import make_step
from haksnet_jax.pipeline import loader
from haksnet_jax.pipeline.detection_rows import EvaluationRow
from haksnet_jax.results import visualize
from haksnet_jax.results.mean_ap import mean_average_precision


def detect_split(
    step: Callable[..., Any],
    variables: Any,
    source: Any,
    mesh: jax.sharding.Mesh,
    *,
    image_size: tuple[int, int],
    batch_size_per_device: int,
    score: float,
    num_workers: int = 0,
    stall_seconds: float = 60.0,
) -> Any:
    """Runs a detector over a split, every image fitted into the same canvas. All hosts of a run take part.

    Args:
      step: of `detection_session.make_step`.
      variables: {"params", "batch_stats"} on the devices of the mesh.
      source: examples of the split.
      mesh: the devices.
      image_size: (rows, columns) of the canvas.
      batch_size_per_device: images at a time on each device.
      score: lowest score of a detection.
      num_workers, stall_seconds: see `loader.stream_batches`.

    Returns:
      (a list by image of {"boxes", "scores", "labels", "size": (columns, rows) of the image}, the same on every host;
      the number of detections that caps left out).
    """
    row = EvaluationRow(image_size=image_size, channels=getattr(source, "num_channels", 3))
    batches = loader.ordered_batches(
        source,
        row,
        row.filler,
        batch_size=batch_size_per_device * mesh.devices.size // jax.process_count(),
        num_workers=num_workers,
        stall_seconds=stall_seconds,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    variables = devices.gather(mesh, variables)  # once, not for every batch
    found = [None] * len(source)
    num_cut = 0

    def collect(rows, detections):
        nonlocal num_cut
        detections = jax.device_get(detections)
        sizes = np.rint(rows["image_size"][:, ::-1] / rows["scale"]).astype(int)
        for row, index in enumerate(rows["image_index"]):
            if index < 0:  # fills up the last batch
                continue
            if found[index] is not None:
                raise RuntimeError(f"image {source.image_ids[index]} was evaluated twice")
            valid = detections.valid[row]
            num_cut += int(detections.num_cut[row])
            found[index] = {
                "boxes": detections.boxes[row][valid],
                "scores": detections.scores[row][valid],
                "labels": detections.labels[row][valid],
                "size": tuple(sizes[row].tolist()),
            }

    # One batch ahead: the device works while the host unpacks the batch before.
    pending = None
    for batch in batches:
        placed = devices.place_batch(mesh, {k: batch[k] for k in ("image", "image_size", "image_index", "scale")})
        detections = step(variables, placed["image"], placed["image_size"], placed["scale"], np.float32(score))
        if pending is not None:
            collect(*pending)
        # Rows of all hosts, since every host's rows have to reach every host's list.
        named = {k: placed[k] for k in ("image_index", "image_size", "scale")}
        rows = jax.device_get(devices.gather(mesh, named))
        pending = (rows, detections)
    if pending is not None:
        collect(*pending)
    batches.close()
    # Every host has the whole list now, and with it the same figures.
    missing = [source.image_ids[i] for i, entry in enumerate(found) if entry is None]
    if missing:
        raise RuntimeError(f"{len(missing)} images were not evaluated, {missing[0]} first")
    return found, num_cut


class Picture(NamedTuple):
    """A drawn image: its identifier, the file, and the pixels [H, W, 3] uint8 RGB."""

    image_id: str
    path: Any
    image: np.ndarray


class DetectionEvaluator:
    """Evaluates a model on a validation split, again and again with one compilation.

    Args:
      graph: graph definition of the model.
      source: labelled source of examples.
      mesh: of the run.
      proposal_settings, detection_settings: of `detection_session.make_step`; detections below the latter's score
        threshold are left out.
      image_size: (rows, columns) of the canvas.
      batch_size_per_device, num_workers, stall_seconds: of `detect_split`.
      num_pictures: images with most objects that are drawn.
      picture_score: score from which a detection is drawn.

    Attributes:
      pictures: list of Picture, drawn by the last evaluation.
      num_cut: detections that the caps cut in the last evaluation.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        source: Any,
        mesh: jax.sharding.Mesh,
        *,
        proposal_settings: Any,
        detection_settings: Any,
        image_size: tuple[int, int],
        batch_size_per_device: int,
        num_workers: int,
        stall_seconds: float,
        num_pictures: int,
        picture_score: float,
    ) -> None:
        self._step = make_step(graph, mesh, proposal_settings=proposal_settings, detection_settings=detection_settings)
        self._source = source
        self._mesh = mesh
        self._score = detection_settings.score_threshold
        self._batches: dict[str, Any] = {
            "image_size": tuple(image_size),
            "batch_size_per_device": batch_size_per_device,
            "num_workers": num_workers,
            "stall_seconds": stall_seconds,
        }
        self._num_pictures, self._picture_score = num_pictures, picture_score
        self.pictures: list[Picture] = []
        self.num_cut = 0

    def detections(self, variables: Any) -> Any:
        """Runs over the split. Args: variables, {"params", "batch_stats"}. Returns: as `detect_split`'s list."""
        found, self.num_cut = detect_split(
            self._step,
            variables,
            self._source,
            self._mesh,
            score=self._score,
            **self._batches,
        )
        return found

    def __call__(self, variables: Any, *, pictures: epath.Path | None = None) -> Any:
        """Evaluates.

        Args:
          variables: {"params", "batch_stats"}.
          pictures: folder (a path) for drawn detections, or None for none.

        Returns:
          MeanAveragePrecision.
        """
        found = self.detections(variables)
        labels = [self._source.labels(i) for i in range(len(self._source))]
        result = mean_average_precision(found, labels, self._source.class_names)
        self.pictures = []
        if pictures is not None and jax.process_index() == 0:
            self.pictures = list(self._draw(found, labels, pictures))
        return result

    def _draw(self, found, labels, folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Those with the most objects: an empty picture shows nothing.
        order = sorted(range(len(found)), key=lambda i: -len(labels[i]["labels"]))[: self._num_pictures]
        for index in order:
            try:
                image = self._source[index]["image"]
            except ImageError:  # (the stream has named it)
                continue
            shown = found[index]["scores"] >= self._picture_score
            picture = visualize.draw_detections(
                reader.picture(image),
                *(found[index][name][shown] for name in ("boxes", "scores", "labels")),
                self._source.class_names,
            )
            name = self._source.image_ids[index]
            path = folder / f"{name.replace('/', '_')}.png"
            visualize.write_image(path, picture)
            yield Picture(name, path, picture)
