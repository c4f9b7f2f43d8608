"""Weights of a network for some bands of an image, carried over to one for others."""

from collections.abc import Sequence
from typing import Any

import numpy as np

RGB = ("red", "green", "blue")
# The first convolution of each backbone, [rows, columns, bands, channels]: all else knows no bands.
FIRST_CONVOLUTIONS = ("backbone.stages.0.patch_embed.conv.kernel", "backbone.conv1.kernel")


def bands_of(info: dict[str, Any]) -> tuple[Any, ...]:
    """The bands that a model takes, by name or by number from 1. Args: info, of a model.json. Returns: tuple."""
    named = (info.get("images") or {}).get("bands")
    if named:
        return tuple(named)
    num_bands = info.get("architecture", {}).get("in_channels") or 3
    return RGB if num_bands == 3 else tuple(range(1, num_bands + 1))


def carried_over(kernel: np.ndarray, theirs: Sequence[Any], ours: Sequence[Any]) -> tuple[np.ndarray, list[Any]]:
    """The first convolution for other bands: those of the same name are copied, others get the mean over all.

    Args:
      kernel: [rows, columns, bands, channels] of the other model.
      theirs: its bands.
      ours: bands that are wanted.

    Returns:
      ([rows, columns, len(ours), channels] float32, names of the bands that were copied).

    Raises:
      ValueError: the kernel is not one of `theirs`.
    """
    kernel = np.asarray(kernel)
    if kernel.ndim != 4 or kernel.shape[2] != len(theirs):
        raise ValueError(f"a kernel of shape {kernel.shape} is not one of {len(theirs)} bands")
    place = {str(band).lower(): index for index, band in enumerate(theirs)}
    mean = kernel.mean(axis=2)
    copied = [band for band in ours if str(band).lower() in place]
    parts = [kernel[:, :, place[str(band).lower()]] if band in copied else mean for band in ours]
    return np.stack(parts, axis=2).astype(np.float32), copied
