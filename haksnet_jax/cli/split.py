"""Cuts large images and their labels into overlapping tiles, in worker processes.

    haksnet split --images=train/images --labels=train/labelTxt --output=tiles/train
    haksnet split --images=test/images --output=tiles/test --protocol=multi_scale

The output folder gets images/, labelTxt/, classes.txt and split_problems.txt: what was odd or left out, with file and
line. A command that was stopped goes on where it ended when it is given again.
"""

import argparse
import itertools
import os
import pathlib
import sys
import time

from haksnet_jax.cli import terminal
from haksnet_jax.wording import counted

_TILE_FORMATS = ("png", "jpg", "tif")


def add_arguments(parser: terminal.Parser) -> None:
    """Adds the command's options. Args: parser, terminal.Parser."""
    from haksnet_jax.images import settings as image_settings

    add = parser.add_argument
    terminal.add_list(parser, "--images", required=True, help="folders of images")
    terminal.add_list(parser, "--labels", default=[], help="as many folders of label files, or files; none: no labels")
    add("--output", required=True, metavar="DIR", help="folder to write to")
    add(
        "--protocol",
        choices=("single_scale", "multi_scale"),
        default="single_scale",
        help="single_scale: overlap 200, rate 1; multi_scale: overlap 500, rates 0.5, 1, 1.5; default: %(default)s",
    )
    add("--tile", type=terminal.number(1, whole=True), default=1024, help="side in pixels; default: %(default)s")
    add("--overlap", type=terminal.number(0, whole=True), help="pixels that neighbours share; default: the protocol's")
    terminal.add_list(parser, "--rates", kind=float, help="0.5,1,1.5 for example; default: the protocol's")
    add("--resize", action="store_true", help="write every tile with side --tile, not as it was cut")
    add("--format", metavar="FORMAT", default="dota", help=f"of the labels: {terminal.LABEL_FORMATS}; default: dota")
    add(
        "--classes",
        help="a published list's name, or a file of names (one a line, data.yaml, JSON); "
        "default: the one beside the labels, or all found",
    )
    add("--tile-format", choices=_TILE_FORMATS, help="of the tiles; default: png")
    add("--skip-blank", action="store_true", help="leave out windows of one value without objects")
    image_settings.add_options(parser)
    add("--workers", type=terminal.number(0, whole=True), help="worker processes; default: one a core")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command. Args: arguments, parsed. Returns: exit status."""
    from haksnet_jax.images import settings as image_settings
    from haksnet_jax.preparation import splitting

    if arguments.format in _TILE_FORMATS:  # as it was called before labels had formats
        arguments.format, arguments.tile_format = "dota", arguments.format
    overlap, rates = splitting.PROTOCOLS[arguments.protocol]
    parameters = splitting.Parameters(
        tile=arguments.tile,
        overlap=overlap if arguments.overlap is None else arguments.overlap,
        rates=tuple(arguments.rates or rates),
        resize=arguments.resize,
        extension=f".{arguments.tile_format or 'png'}",
        skip_blank=arguments.skip_blank,
        images=image_settings.of_options(arguments),
    )
    if not parameters.overlap < parameters.tile or min(parameters.rates) <= 0:
        raise terminal.UsageError(
            f"expected --tile above --overlap and --rates above 0, got tile {parameters.tile}, "
            f"overlap {parameters.overlap}, rates {', '.join(f'{rate:g}' for rate in parameters.rates)}"
        )
    for folder in arguments.images:
        if os.path.realpath(arguments.output) == os.path.realpath(folder):
            raise terminal.UsageError(f"--output={arguments.output} is the folder of the images: name another one")
    try:
        summary = splitting.split(
            arguments.images,
            arguments.labels,
            arguments.output,
            parameters,
            format=arguments.format,
            classes_from=arguments.classes,
            num_workers=arguments.workers,
            progress=None if arguments.quiet else _progress_line(time.perf_counter()),
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on with the images that are not finished") from None
    return _tell(summary, arguments)


def _tell(summary, arguments):
    """Prints what was cut and what is missing. Returns: exit status."""
    lost, where = summary.lost, pathlib.Path(arguments.output) / "split_problems.txt"
    images, tiles = counted(summary.num_images, "image"), counted(summary.num_tiles, "tile")
    print(f"{images}, {tiles} in {summary.seconds:.1f} s")
    if arguments.labels:
        objects, labels = counted(summary.num_objects, "object"), counted(summary.num_written, "label")
        print(f"{objects}; {labels} in tiles (overlaps count again), {summary.num_truncated} of them truncated")
    else:
        print("no labels")
    if summary.num_blank:
        print(f"{summary.num_blank} windows without content")
    nowhere = sum(problem.reason == "in_no_tile" for problem in summary.problems)
    if nowhere:
        print(f"{nowhere} objects are in no tile, because none holds 0.7 of their area: see {where}")
    if lost:
        for problem in itertools.islice(lost, 20):
            print(problem, file=sys.stderr)
        print(f"{len(lost)} problems by which something is missing: see {where}", file=sys.stderr)
        return 1
    return 0


def _progress_line(begin):
    """A line on the terminal that renews itself; elsewhere a line every half minute, so that logs stay readable."""
    is_terminal = sys.stderr.isatty()
    last = begin

    def show(num_images, num_all, num_tiles):
        nonlocal last
        now = time.perf_counter()
        if now - last < (0.2 if is_terminal else 30) and num_images < num_all:
            return
        last = now
        images, tiles = counted(num_all, "image"), counted(num_tiles, "tile")
        line = f"{num_images} of {images}, {tiles} ({num_tiles / max(now - begin, 1e-9):.0f}/s)"
        end = "\n" if num_images == num_all or not is_terminal else ""
        print(f"\r{line:<60}" if is_terminal else line, end=end, file=sys.stderr, flush=True)

    return show
