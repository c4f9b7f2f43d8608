"""An exported program beside the live model, on generated images."""

from collections.abc import Callable

import numpy as np

from haksnet_jax.geometry.polygon_iou import rotated_iou_pairs
from haksnet_jax.pipeline.sources import SceneSource
from haksnet_jax.tools.export.programs import Program

# What an exported program may differ by from the live one: both are compiled, each its own way, in float32.
_MIN_IOU, _MAX_SCORE_DIFFERENCE = 0.999, 1e-3
# Lowest scores, one after another until something is found: generated images may show nothing that a model knows.
_SCORES = (0.05, 0.005, 0.0005)


def compare(
    program: Program, call: Callable[..., dict[str, np.ndarray]], *, num_images: int = 4
) -> tuple[str, list[str]]:
    """Runs the exported program beside the live model.

    Args:
      program: programs.Program.
      call: (*inputs) -> {name: numpy array}, the exported one.
      num_images: how many images or pairs, at least; batches are filled up.

    Returns:
      (sentence that says what was compared, list of sentences about what differs; empty: they agree).
    """
    name, images = next(iter(program.inputs.items()))
    batch, rows, columns, bands = images.shape
    scenes = SceneSource(-(-num_images // batch) * batch + (name == "before"), size=(rows, columns))
    pixels = np.stack([scenes[index]["image"][..., np.arange(bands) % 3] for index in range(len(scenes))])
    batches = [
        tuple(pixels[first + date : first + date + batch] for date in range(2 if name == "before" else 1))
        for first in range(0, len(pixels) - batch + 1, batch)
    ]
    if program.task == "detection":
        return _compare_detections(program, call, batches)
    return _compare_probabilities(program, call, batches)


def _compare_detections(program, call, batches):
    for score in _SCORES:
        num_compared, different = 0, []
        for number, (images,) in enumerate(batches):
            live, other = program.live(images, score), call(images, np.array(score, np.float32))
            for row in range(len(images)):
                ours, theirs = (
                    {name: x[name][row][x["valid"][row]] for name in ("boxes", "scores", "labels")}
                    for x in (live, other)
                )
                num_compared += len(ours["scores"])
                sentences = _without_counterpart(ours, theirs, score)
                different += [f"image {number * len(images) + row}: {text}" for text in sentences]
        if num_compared or different:
            break
    num_images = len(batches) * len(batches[0][0])
    told = f"{num_compared} detections of a score of {score:g} or more in {num_images} generated images"
    return (f"{told}, each has its counterpart" if num_compared else f"{told}: boxes were not compared"), different


def _without_counterpart(ours, theirs, score):
    """Yields a sentence for each detection of one that the other has not."""
    for what, one, other in (("only live", ours, theirs), ("only exported", theirs, ours)):
        for box, value, label in zip(one["boxes"], one["scores"], one["labels"], strict=True):
            same = (other["labels"] == label) & (np.abs(other["scores"] - value) <= _MAX_SCORE_DIFFERENCE)
            candidates = np.asarray(other["boxes"], np.float64)[same]
            near = len(candidates) and _iou(box, candidates).max() >= _MIN_IOU
            if not near and value > score + _MAX_SCORE_DIFFERENCE:  # at the threshold either may leave it out
                yield f"{what}: label {label}, score {value:.4f}"


def _iou(box, boxes):
    return rotated_iou_pairs(np.broadcast_to(np.asarray(box, np.float64), boxes.shape), boxes)


def _compare_probabilities(program, call, batches):
    largest, num_labels, num_images, different = 0.0, 0, 0, []
    for images in batches:
        live, other = program.live(*images), call(*images)
        for row in range(len(images[0])):
            ours, theirs = live["probabilities"][row], other["probabilities"][row]
            difference = float(np.abs(ours - theirs).max())
            largest = max(largest, difference) if np.isfinite(difference) else np.inf
            if not difference <= _MAX_SCORE_DIFFERENCE:
                different.append(f"image {num_images}: a probability by {difference:.2g}")
            # Where the two best classes are as near as the tolerance, either may be named.
            best = np.sort(ours, axis=0)[-2:]
            sure = best[-1] - best[0] > 2 * _MAX_SCORE_DIFFERENCE if len(ours) > 1 else np.ones(ours.shape[1:], bool)
            wrong = int(((live["labels"][row] != other["labels"][row]) & sure).sum())
            if wrong:
                different.append(f"image {num_images}: {wrong} labels")
            num_labels += int(np.size(live["labels"][row]))
            num_images += 1
    told = f"{num_labels} labels in {num_images} generated images are equal, probabilities to {largest:.1e}"
    return told, different
