"""The detector over a labelled split, again and again with one compilation: detections, average precision, drawings."""

from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from haksnet_jax.distributed import mesh as devices
from haksnet_jax.pipeline import loader
from haksnet_jax.results import visualize
from haksnet_jax.results.mean_ap import mean_average_precision


def make_detect_step(graph, mesh, *, proposal_caps=None, detection_caps=None):
    """Compiles (at its first call) the detector.

    Args:
      graph: graph definition of the model.
      mesh: the batch is split over all its devices.
      proposal_caps, detection_caps: see `OrientedRCNN.detect`.

    Returns:
      (variables, images [B, H, W, 3], image_size [B, 2], scale [B, 2] or None) -> Detections, where variables is
      {"params", "batch_stats"}.
    """

    def detect(variables, images, image_size, scale=None):
        model = nnx.merge(graph, variables["params"], variables["batch_stats"])
        return model.detect(images, image_size, scale, proposal_caps=proposal_caps, detection_caps=detection_caps)

    return jax.jit(detect, out_shardings=devices.replicated(mesh), compiler_options=devices.detection_options())


def detection_settings(config):
    """The keyword arguments of `make_detect_step` that a configuration holds."""
    return {
        "proposal_caps": {
            "candidates_per_level": config.rpn.candidates_per_level,
            "max_proposals": config.rpn.max_proposals,
            "iou_threshold": config.rpn.iou_threshold,
        },
        "detection_caps": dict(config.detection),
    }


class Picture(NamedTuple):
    """A drawn image: its identifier, the file, and the pixels [H, W, 3] uint8 RGB."""

    image_id: str
    path: Any
    image: np.ndarray


class Evaluator:
    """Evaluates a model on a validation split, again and again with one compilation.

    Args:
      graph: graph definition of the model.
      source: labelled source of examples.
      config: the experiment.
      mesh: of the run.

    Attributes:
      pictures: list of Picture, drawn by the last evaluation.
      num_cut: detections that the caps cut in the last evaluation.
    """

    def __init__(self, graph, source, config, mesh):
        self._detect = make_detect_step(graph, mesh, **detection_settings(config))
        self._source = source
        self._config = config
        self._mesh = mesh
        self.pictures = []
        self.num_cut = 0

    def detections(self, variables):
        """Runs over the split.

        Args:
          variables: {"params", "batch_stats"}.

        Returns:
          A list by image of {"boxes", "scores", "labels", "size": (columns, rows) of the image}.
        """
        per_host = self._config.evaluation.batch_size_per_device * self._mesh.devices.size // jax.process_count()
        batches = loader.evaluation_batches(
            self._source,
            batch_size=per_host,
            image_size=tuple(self._config.data.image_size),
            num_workers=self._config.data.num_workers,
            stall_seconds=self._config.data.stall_seconds,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        variables = devices.gather(self._mesh, variables)  # once, not for every batch
        found = [None] * len(self._source)
        self.num_cut = 0

        def collect(rows, detections):
            detections = jax.device_get(detections)
            sizes = np.rint(rows["image_size"][:, ::-1] / rows["scale"]).astype(int)
            for row, index in enumerate(rows["image_index"]):
                if index < 0:  # fills up the last batch
                    continue
                if found[index] is not None:
                    raise RuntimeError(f"image {self._source.image_ids[index]} was evaluated twice")
                valid = detections.valid[row]
                self.num_cut += int(detections.num_cut[row])
                found[index] = {
                    "boxes": detections.boxes[row][valid],
                    "scores": detections.scores[row][valid],
                    "labels": detections.labels[row][valid],
                    "size": tuple(sizes[row].tolist()),
                }

        # One batch ahead: the device works while the host unpacks the batch before.
        pending = None
        for batch in batches:
            placed = devices.place_batch(
                self._mesh, {k: batch[k] for k in ("image", "image_size", "image_index", "scale")}
            )
            detections = self._detect(variables, placed["image"], placed["image_size"], placed["scale"])
            if pending is not None:
                collect(*pending)
            # Rows of all hosts, since every host's rows have to reach every host's list.
            named = {k: placed[k] for k in ("image_index", "image_size", "scale")}
            rows = jax.device_get(devices.gather(self._mesh, named))
            pending = (rows, detections)
        if pending is not None:
            collect(*pending)
        batches.close()
        # Every host has the whole list now, and with it the same figures.
        missing = [self._source.image_ids[i] for i, entry in enumerate(found) if entry is None]
        if missing:
            raise RuntimeError(f"{len(missing)} images were not evaluated, {missing[0]} first")
        return found

    def __call__(self, variables, *, pictures=None):
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
        settings = self._config.evaluation
        # Those with the most objects: an empty picture shows nothing.
        order = sorted(range(len(found)), key=lambda i: -len(labels[i]["labels"]))[: settings.num_pictures]
        for index in order:
            shown = found[index]["scores"] >= settings.picture_score
            picture = visualize.draw_detections(
                self._source[index]["image"],
                *(found[index][name][shown] for name in ("boxes", "scores", "labels")),
                self._source.class_names,
            )
            name = self._source.image_ids[index]
            path = folder / f"{name.replace('/', '_')}.png"
            visualize.write_image(path, picture)
            yield Picture(name, path, picture)
