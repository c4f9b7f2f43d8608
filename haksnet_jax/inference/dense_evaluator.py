"""A segmenter or change detector over a labelled split: one confusion matrix, and drawings."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath

from haksnet_jax.distributed import hosts
from haksnet_jax.errors import UserError
from haksnet_jax.images.headers import ImageError
from haksnet_jax.inference import dense_session
from haksnet_jax.labels.masks import IGNORED
from haksnet_jax.results import dense_maps, visualize
from haksnet_jax.results.confusion import ChangeConfusion, Confusion, confusion_matrix
from haksnet_jax.wording import counted


class Picture(NamedTuple):
    """A drawn image: its identifier, the file, and the pixels [H, W, 3] uint8 RGB."""

    image_id: str
    path: Any
    image: np.ndarray


class DenseEvaluator:
    """Evaluates on whole images, again and again with one compilation. Each host takes its part of the images.

    Args:
      session: dense_session.Session.
      source: labelled examples.
      settings: dense_session.Settings.
      left_out: names of classes that the means leave out.
      num_pictures: examples that are drawn.
      colours: of the classes, or None.
      errors: PixelErrors that gets each image, or None.

    Attributes:
      pictures: list of Picture, drawn by the last evaluation.
      num_unread: images that the last evaluation left out since they or their masks cannot be read.
    """

    def __init__(
        self,
        session: dense_session.Session,
        source: Any,
        settings: dense_session.Settings,
        *,
        left_out: Sequence[str] = (),
        num_pictures: int = 8,
        colours: Sequence[Sequence[int]] | None = None,
        errors: Any | None = None,
    ) -> None:
        self._session = session
        self._source = source
        self._settings = settings
        self._left_out = tuple(left_out)
        self._num_pictures = num_pictures
        self._colours = dense_maps.colours_of(source.class_names, colours)
        self._errors = errors
        self.pictures: list[Any] = []
        self.num_unread = 0

    def __call__(self, variables: Any, *, pictures: epath.Path | None = None) -> Any:
        """Evaluates.

        Args:
          variables: {"params", "batch_stats"}, whole on every device; None: those that the session has.
          pictures: folder (a path) for drawings, or None for none.

        Returns:
          Confusion, or ChangeConfusion of a source of pairs.

        Raises:
          UserError: no image can be read; or a mask is of another size than its image, or holds no labels.
        """
        if variables is not None:
            self._session.set_variables(variables)
        num_classes = len(self._source.class_names)
        matrix = np.zeros((num_classes, num_classes), np.int64)
        drawn = set(
            np.linspace(0, len(self._source) - 1, min(self._num_pictures, len(self._source))).round().astype(int)
        )
        self.pictures, self.num_unread = [], 0
        for job in dense_session.predict(self._session, self._jobs(), self._settings):
            index, example, labels = job.tag
            truth = _labels(example["mask"], num_classes)
            if self._errors is None:
                matrix += confusion_matrix(truth, labels, num_classes)
            else:
                matrix += self._errors.add(self._source.image_ids[index], truth, labels)
            if pictures is not None and index in drawn and jax.process_index() == 0:
                self.pictures.append(self._draw(index, example, labels, pictures))
        matrix = hosts.sum_over_hosts(matrix)
        self.num_unread = int(hosts.sum_over_hosts(np.array(self.num_unread)))
        if self.num_unread == len(self._source):
            raise UserError(f"none of {counted(self.num_unread, 'image')} could be read, so nothing is evaluated")
        if self.num_unread:
            logging.warning("%s could not be read and are left out of the metrics", counted(self.num_unread, "image"))
        kind = ChangeConfusion if len(self._source.image_names) == 2 else Confusion
        return kind(matrix, tuple(self._source.class_names), self._left_out)

    def _jobs(self):
        for index in range(jax.process_index(), len(self._source), jax.process_count()):
            try:
                example = self._source[index]
            except ImageError as error:  # and no other: an image and a mask that do not fit each other end the run
                logging.warning("%s", error)
                self.num_unread += 1
                continue
            images = tuple(dense_session.ArrayImage(example[name]) for name in self._source.image_names)
            labels, sink = dense_session.fill_array(*example["mask"].shape)
            yield dense_session.Job(images, sink, (index, example, labels), self._sums_of(example["mask"]))

    def _sums_of(self, mask):
        """The function that gets an image's probabilities, or None."""
        if self._errors is None:
            return None
        truth = _labels(mask, len(self._source.class_names))
        return lambda first, sums: self._errors.add_sums(truth[first : first + sums.shape[1]], sums)

    def _draw(self, index, example, labels, folder):
        folder.mkdir(parents=True, exist_ok=True)
        images = {name: example[name] for name in self._source.image_names}
        picture = dense_maps.comparison(images, labels, example["mask"], self._colours)
        strip = dense_maps.legend(picture.shape[1], self._source.class_names, self._colours)
        picture = np.concatenate([picture, strip])
        name = self._source.image_ids[index]
        path = folder / f"{name.replace('/', '_')}.png"
        visualize.write_image(path, picture)
        return Picture(name, path, picture)


def _labels(mask, num_classes):
    """Labels as int32 with -1 for those that are none."""
    return np.where((mask == IGNORED) | (mask >= num_classes), -1, mask.astype(np.int32))
