"""Batches of detection as its task makes them, from the settings of the row and of the stream in one call."""

from haksnet_jax.pipeline import loader
from haksnet_jax.pipeline.detection_rows import Augment, EvaluationRow, TrainingRow


def train_batches(source, *, image_size, max_boxes, resize="fit", **settings):
    augment = Augment(**{name: settings.pop(name) for name in Augment._fields if name in settings})
    row = TrainingRow(
        image_size=image_size, max_boxes=max_boxes, class_names=source.class_names, augment=augment, resize=resize
    )
    return loader.stream_batches(source, row, **settings)


def evaluation_batches(source, *, image_size, max_boxes=None, **settings):
    channels = getattr(source, "num_channels", 3)
    row = EvaluationRow(image_size=image_size, channels=channels, max_boxes=max_boxes)
    return loader.ordered_batches(source, row, row.filler, **settings)
