"""The options of `predict` and `evaluate` that say how images are read and looked at."""

import argparse
from typing import Any

from haksnet_jax.cli import terminal
from haksnet_jax.inference import view_settings
from haksnet_jax.inference.precision import PRECISIONS


def add(parser: terminal.Parser, *, pad: str, scales: Any, auto: str, batch_size: str) -> None:
    """Adds the options.

    Args:
      parser: terminal.Parser.
      pad: default of --pad.
      scales: default of --scales.
      auto: what --resize=auto means, words.
      batch_size: help of --batch-size.
    """
    from haksnet_jax.images import settings as image_settings

    parser.add_argument(
        "--resize",
        choices=view_settings.RESIZES,
        default=view_settings.Settings().resize,
        help="fit: the whole image at the size of the network's input; tile: overlapping windows at the image's own "
        f"scale; auto: {auto}; default: %(default)s",
    )
    parser.add_argument(
        "--pad",
        choices=view_settings.PADDINGS,
        default=pad,
        help="of fitted images: least pads up to a multiple of 32 as upstream does, which compiles once for each such "
        "size; full pads to the whole input and compiles once; default: %(default)s",
    )
    parser.add_argument(
        "--overlap",
        type=terminal.number(0, whole=True),
        help="pixels that neighbouring windows share; default: 200, or a quarter of small ones",
    )
    of_pixels = "" if scales else "of segmenters and change detectors: "  # detectors are evaluated at one scale
    terminal.add_list(
        parser,
        "--scales",
        kind=_scale,
        default=scales,
        help=f"{of_pixels}factors at which images are looked at and merged: 0.5,1; default: 1",
    )
    parser.add_argument("--flip", action="store_true", help=f"{of_pixels}look at the mirror image too, and merge")
    parser.add_argument(
        "--turns", action="store_true", help="classes of pixels: look in all four directions, and average"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of the network's arithmetic; default: %(default)s",
    )
    parser.add_argument("--batch-size", type=terminal.number(1, whole=True), help=batch_size)
    image_settings.add_options(parser)


def _scale(text):
    value = float(text)
    if not view_settings.is_scale(value):
        low, high = view_settings.SCALES
        raise argparse.ArgumentTypeError(f"expected factors between {low} and {high}, got {text!r}")
    return value
