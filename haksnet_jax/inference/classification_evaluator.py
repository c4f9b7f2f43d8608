"""A classifier over many images with one compilation: the likeliest classes, and what is measured with labels."""

import heapq
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from flax import nnx

from haksnet_jax.distributed import mesh as devices
from haksnet_jax.images import reader
from haksnet_jax.inference.detection_evaluator import Picture
from haksnet_jax.pipeline import loader
from haksnet_jax.pipeline.classification_transforms import EvaluationRow
from haksnet_jax.results import diagrams, visualize
from haksnet_jax.results.top_k import NUM_BEST, ClassificationResult, classification_result
from haksnet_jax.wording import counted

MAX_DRAWN_CLASSES = 40  # a confusion matrix of more cannot be read
_NOT_SEEN = -2  # as a label: no batch had the image


def make_classify_step(
    graph: nnx.GraphDef, mesh: jax.sharding.Mesh, num_best: int, *, num_views: int = 1
) -> Callable[..., Any]:
    """Compiles (at its first call) the classifier.

    Args:
      graph: graph definition of the model.
      mesh: the batch is split over all its devices.
      num_best: classes an image.
      num_views: see `Classifier.classify`.

    Returns:
      (variables, images [B, H, W, C]) -> (scores [B, num_best] float32, classes [B, num_best] int32), best first, where
      variables is {"params", "batch_stats"}.
    """

    def classify(variables, images):
        model = nnx.merge(graph, variables["params"], variables["batch_stats"])
        return jax.lax.top_k(model.classify(images, num_views=num_views), num_best)

    return jax.jit(classify, out_shardings=devices.replicated(mesh), compiler_options=devices.detection_options(mesh))


class ClassificationEvaluator:
    """Evaluates a classifier on a labelled split, again and again with one compilation.

    Args:
      graph: graph definition of the model.
      source: labelled source of examples.
      mesh: of the run.
      row: `EvaluationRow`.
      batch_size: images a step and device.
      num_workers, stall_seconds: of the loader.
      num_views: see `Classifier.classify`.
      num_pictures: of the mistakes that the model is surest of, on one sheet; 0 draws nothing.
      num_best: how many of an image's likeliest classes `predictions` gives.

    Attributes:
      pictures: list of Picture, drawn by the last evaluation.
      num_unread: images that the last evaluation left out since they cannot be read.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        source: Any,
        mesh: jax.sharding.Mesh,
        *,
        row: EvaluationRow,
        batch_size: int,
        num_workers: int = 0,
        stall_seconds: float | None = None,
        num_views: int = 1,
        num_pictures: int = 16,
        num_best: int = NUM_BEST,
    ) -> None:
        num_best = min(num_best, len(source.class_names))
        self._classify = make_classify_step(graph, mesh, num_best, num_views=num_views)
        self._source, self._mesh, self._row = source, mesh, row
        self._batch_size = batch_size
        self._num_workers, self._stall_seconds = num_workers, stall_seconds
        self._num_pictures = num_pictures
        self.pictures: list[Picture] = []
        self.num_unread = 0

    def _batches(self):
        return loader.ordered_batches(
            self._source,
            self._row,
            self._row.filler,
            batch_size=self._batch_size * self._mesh.devices.size // jax.process_count(),
            num_workers=self._num_workers,
            stall_seconds=self._stall_seconds,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def predictions(self, variables: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Runs over the split.

        Args:
          variables: {"params", "batch_stats"}.

        Returns:
          (labels [N], scores [N, best], classes [N, best]) in the source's order, the same on every host. The label of
          an image that cannot be read is -1.
        """
        variables = devices.gather(self._mesh, variables)  # once, not for every batch
        labels = np.full(len(self._source), _NOT_SEEN, np.int32)
        scores: Any = None
        classes: Any = None
        batches, pending = self._batches(), []

        def collect(rows, found):
            nonlocal scores, classes
            rows, (some_scores, some_classes) = jax.device_get((rows, found))
            if scores is None:
                scores = np.zeros((len(labels), some_scores.shape[1]), np.float32)
                classes = np.zeros(scores.shape, np.int32)
            real = rows["image_index"] >= 0  # the others fill up the last batch
            index = rows["image_index"][real]
            labels[index], scores[index], classes[index] = rows["label"][real], some_scores[real], some_classes[real]

        for batch in batches:
            placed = devices.place_batch(self._mesh, {name: batch[name] for name in ("image", "label", "image_index")})
            found = self._classify(variables, placed["image"])
            # Rows of all hosts, since every host's rows have to reach every host's list.
            rows = devices.gather(self._mesh, {name: placed[name] for name in ("label", "image_index")})
            pending.append((rows, found))
            if len(pending) > 2:  # the devices work while the host unpacks what is done
                collect(*pending.pop(0))
        for entry in pending:
            collect(*entry)
        batches.close()
        if (labels == _NOT_SEEN).any():
            missing = self._source.image_ids[int(np.argmin(labels))]
            raise RuntimeError(f"{int((labels == _NOT_SEEN).sum())} images were not evaluated, {missing} first")
        return labels, scores, classes

    def __call__(self, variables: Any, *, pictures: epath.Path | None = None) -> ClassificationResult:
        """Evaluates.

        Args:
          variables: {"params", "batch_stats"}.
          pictures: folder (a path) for drawings, or None for none.

        Returns:
          ClassificationResult.
        """
        labels, scores, classes = self.predictions(variables)
        read = labels >= 0
        self.num_unread = int((~read).sum())
        if self.num_unread:
            logging.warning("%s could not be read and are left out of the metrics", counted(self.num_unread, "image"))
        result = classification_result(labels[read], classes[read, :NUM_BEST], self._source.class_names)
        self.pictures = []
        if pictures is not None and self._num_pictures and jax.process_index() == 0:
            pictures.mkdir(parents=True, exist_ok=True)
            self.pictures = list(self._draw(result, labels, scores, classes, pictures))
        return result

    def _draw(self, result, labels, scores, classes, folder):
        names = self._source.class_names
        wrong = np.flatnonzero((classes[:, 0] != labels) & (labels >= 0))
        surest = heapq.nlargest(self._num_pictures, wrong, key=lambda index: scores[index, 0])
        if surest:
            images = [reader.picture(self._source[int(index)]["image"].pixels()) for index in surest]
            captions = [f"{names[labels[i]]}, taken for {names[classes[i, 0]]} {scores[i, 0]:.2f}" for i in surest]
            sheet = visualize.contact_sheet(images, captions, cell=240)
            path = folder / "mistakes.png"
            visualize.write_image(path, sheet)
            yield Picture("mistakes", path, sheet)
        # The classes with the most mistakes, in the order of the labels.
        errors = result.matrix.sum(axis=0) + result.matrix.sum(axis=1) - 2 * np.diag(result.matrix)
        shown = np.sort(np.argsort(-errors, kind="stable")[:MAX_DRAWN_CLASSES])
        figure = diagrams.confusion_matrix_figure(
            result.matrix[np.ix_(shown, shown)], [names[i] for i in shown], with_background=False
        )
        diagrams.save_figure(figure, folder / "confusion.png")
