"""A trained or converted detector, ready to use on images of any size.

    detector = haksnet_jax.load("CHECKPOINT_FOLDER")
    detections = detector("harbour.tif")  # or a uint8 array [H, W, 3], RGB
    detections.boxes, detections.scores, detections.names

Images no larger than the network's input are resized to fit it, as upstream's test pipeline does; larger ones are cut
into overlapping windows at their own scale, and what is found in the windows is merged over the whole image.
"""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from haksnet_jax.errors import UserError
from haksnet_jax.images import scaling
from haksnet_jax.images import settings as image_settings
from haksnet_jax.images.reader import ImageFile
from haksnet_jax.images.settings import ImageSettings
from haksnet_jax.inference import stream, view_settings, views
from haksnet_jax.inference.detection_session import Session
from haksnet_jax.inference.images import ImageArray, find_images
from haksnet_jax.inference.view_settings import Settings
from haksnet_jax.results import tiles
from haksnet_jax.results.detections import Detections, labels_of
from haksnet_jax.weights import model_folder


class Found(NamedTuple):
    """What the network found in one image, not yet merged.

    Attributes:
      index: of the image in the sequence.
      image: ImageFile or ImageArray, open; None where it could not be opened.
      detections: {"boxes": [n, 5] float32, "scores": [n] float32, "labels": [n] int32} in pixels of the image.
      num_views: how many windows (or whole images) went through the network.
      num_skipped: windows of a single colour, such as those without data, that did not.
      num_cut: detections beyond the most that a view can have (`Detector.max_detections`), which are not here.
      error: None, or why the image cannot be read.
    """

    index: int  # type: ignore[assignment]  # (tuple.index is hidden; nobody calls it)
    image: Any
    detections: dict | None
    num_views: int
    num_skipped: int
    num_cut: int
    error: Exception | None


def load(directory: str | os.PathLike[str], **options: Any) -> "Detector":
    """Loads a detector.

    Args:
      directory: a converted model, a run's folder (its best evaluation), or one checkpoint of a run.
      **options: of `Detector`.

    Raises:
      CheckpointError: nothing usable is there.
    """
    return model_folder.opened(Detector, directory, **options)


class Detector:
    """Finds oriented objects in images of any size.

    Args:
      arrays: {"a.b.c": array} parameters and batch statistics.
      model_info: dict, see `model.json`.
      batch_size: windows at a time on each device; None for 8, or 1 on CPUs.
      **options: of `Session`: precision, accelerators, proposal_caps, detection_caps.

    Attributes:
      session: Session, the compiled network.
      class_names: names of the classes, by label.
      input_size: (rows, columns) of the network's input.
      model_info: as given.
      image_settings: ImageSettings by which files are read: those of the model, unless others are set.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        model_info: dict[str, Any],
        *,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        self.session = Session(arrays, model_info, **options)
        self.model_info = model_info
        self.class_names = self.session.class_names
        self.input_size = self.session.input.size
        self.image_settings = image_settings.from_json(model_info.get("images", {}), "model.json: images")
        if batch_size is None:
            batch_size = 1 if self.session.platform == "cpu" else 8
        if batch_size < 1:
            raise UserError(f"batch_size: expected at least 1, got {batch_size}")
        self._batch_size = batch_size * self.session.num_devices

    @property
    def max_detections(self) -> int:
        """The most detections that a view can have."""
        return self.session.detection_settings.max_detections

    def __call__(self, images: Any, *, classes: Any = None, **settings: Any) -> "Detections | list[Detections]":
        """Finds objects.

        Args:
          images: one image: a file, or pixels [H, W, C] uint8, RGB or the model's bands. Or several: a folder (the
            images in it), a pattern such as "scenes/**/*.tif", or an iterable of files and arrays.
          classes: names of the classes that are wanted; None for all.
          **settings: of `view_settings.Settings`: score (lowest, 0..1), resize ("auto", "fit", "tile"), scales
            (factors), flip, tile and overlap (pixels), pad, iou_threshold (0..1).

        Returns:
          Detections of one image; a list of them in the order of the images for several. Of several images, one that
          cannot be read is warned of, and its Detections are empty and say why in `error`.

        Raises:
          UserError: a setting cannot be used, or the one image.
          OSError: the one image is not there.
        """
        one = isinstance(images, np.ndarray) or (isinstance(images, (str, os.PathLike)) and os.path.isfile(images))
        if one:
            (detections,) = self.stream([images], classes=classes, **settings)
            if detections.error is not None:
                raise detections.error
            return detections
        if isinstance(images, (str, os.PathLike)):
            images = find_images([os.fspath(images)])[0]
            # Neighbours are read alike, also where their values have more than 8 bits and nothing says how many.
            settings["image_settings"] = scaling.for_images(images, self.image_settings)
        found = []
        for detections in self.stream(images, classes=classes, **settings):
            if detections.error is not None:
                warnings.warn(f"{detections.image}: {detections.error}", stacklevel=2)
            found.append(detections)
        return found

    def stream(self, images: Iterable[Any], *, classes: Any = None, **settings: Any) -> Iterator[Detections]:
        """Looks at many images, reading ahead of the devices.

        Args:
          images: an iterable of files and arrays; an iterator is not asked for more than is needed.
          classes, **settings: as for calling the detector.

        Yields:
          Detections, one for each image, in the order of the images. Of one that cannot be read they are empty, and
          `error` says why.

        Raises:
          UserError: a setting cannot be used.
        """
        read_by = settings.pop("image_settings", self.image_settings)
        looked_at = view_settings.settings_of(settings)
        view_settings.check(looked_at, self.input_size)
        labels = None if classes is None else labels_of(classes, self.class_names)
        sources = []  # (of the images that the network has not answered for)

        def noted():
            for source in images:
                sources.append(source)
                yield source

        for found in self.look(noted(), looked_at, image_settings=read_by):
            detections = self._result(found, sources.pop(0), looked_at, read_by)
            yield detections if labels is None else detections[np.isin(detections.labels, labels)]

    def _result(self, found, source, settings, read_by):
        path = pathlib.Path(source) if isinstance(source, (str, os.PathLike)) else None
        name = None if path is None else path.name
        if found.error is not None:
            return Detections([], [], [], self.class_names, image=name, path=path, error=found.error)
        image = found.image
        image.close()

        def thumbnail(longest_side):
            if path is None:
                return image.thumbnail(longest_side)
            with ImageFile(path, read_by) as again:
                return again.thumbnail(longest_side)

        return Detections(
            **merge(found, settings),
            class_names=self.class_names,
            image=name,
            path=path,
            size=(image.width, image.height),
            read=thumbnail,
            num_cut=found.num_cut,
        )

    def look(
        self,
        images: Iterable[Any],
        settings: Settings | None = None,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        image_settings: ImageSettings | None = None,
    ) -> Iterator[Found]:
        """Looks at many images, without merging what is found in the views of one.

        Args:
          images: an iterable of files and arrays.
          settings: Settings.
          on_progress: function of (views done or skipped so far, views of the images opened so far), called for each
            batch.
          image_settings: ImageSettings by which files are read; None for the detector's own.

        Yields:
          Found, one for each image, in the order of the images. Its image is open: close it.

        Raises:
          UserError: a setting is out of range.
        """
        settings = settings or Settings()
        view_settings.check(settings, self.input_size)
        side = view_settings.tile_side(settings, self.input_size)
        seen = stream.look(
            images,
            open_image=lambda source: open_image(source, image_settings or self.image_settings),
            views_of=lambda index, image: views.views_of(index, image, settings, self.session.input),
            count=lambda image: views.count(image, settings, self.input_size),
            canvas=(side, side),
            batch_size=self._batch_size,
            start=lambda batch: self.session.detect(*batch[:3], score=settings.score, spread=batch.spread),
            unpack=lambda batch, output: self._unpack(batch, output, settings.score),
            on_progress=on_progress,
        )
        with contextlib.closing(seen):
            for index, image, parts, num_skipped, error in seen:
                detections = None if error is not None else _concatenate([part for part, _ in parts])
                num_cut = sum(number for _, number in parts)
                yield Found(index, image, detections, len(parts), num_skipped, num_cut, error)

    def _unpack(self, batch, output, score):
        """[(detections in pixels of the image, number cut)] of the views of a batch."""
        output = self.session.complete(output, *batch[:3], score=score)
        parts = []
        for row, view in enumerate(batch.views):
            valid = output.valid[row]
            fields = (output.boxes[row][valid], output.scores[row][valid], output.labels[row][valid])
            parts.append((views.to_image(view, *fields), int(output.num_cut[row])))
        return parts


def open_image(source: Any, settings: ImageSettings) -> Any:
    """ImageFile of a path, ImageArray of an array. Args: source; settings, ImageSettings."""
    if isinstance(source, (str, os.PathLike)):
        return ImageFile(source, settings)
    return ImageArray(source, settings.num_channels)


def _concatenate(parts):
    empty = (np.zeros((0, 5), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    fields = zip(*[tuple(part[name] for name in ("boxes", "scores", "labels")) for part in parts], empty, strict=True)
    return dict(zip(("boxes", "scores", "labels"), map(np.concatenate, fields), strict=True))


def merge(found: Found, settings: Settings) -> dict[str, np.ndarray]:
    """Detections of one image, each object once.

    Args:
      found: Found, without an error.
      settings: those it was found with.

    Returns:
      {"boxes", "scores", "labels"}, best score first.
    """
    detections = found.detections
    if found.num_views > 1:
        kept = tiles.merge_detections(
            *(detections[name] for name in ("boxes", "scores", "labels")), iou_threshold=settings.iou_threshold
        )
    else:  # the network's own suppression has done it
        kept = np.argsort(-detections["scores"], kind="stable")
    return {name: values[kept] for name, values in detections.items()}
