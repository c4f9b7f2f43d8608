"""FAIR1M: 37 fine-grained classes of aircraft, ships, vehicles, courts and roads.

Source: Sun et al., "FAIR1M: A Benchmark Dataset for Fine-Grained Object Recognition in High-Resolution Remote Sensing
Imagery", ISPRS 2022. Images have 1,000 to 10,000 pixels a side: write them in DOTA's format first (--as-dota), cut them
by `haksnet split`, and build from the tiles by `haksnet build` --classes=fair1m.
"""

import functools
import pathlib

from haksnet_jax.labels import classes
from haksnet_jax.labels.formats.structured import FormatError, Node, finite
from haksnet_jax.labels.problems import Reason
from haksnet_jax.preparation import pairing, records
from haksnet_jax.preparation.records import Content, Record


def describe(node: Node) -> tuple[str, list[list[float]], None]:
    """Class, corners and difficulty of an <object>: its first four points, since the fifth repeats the first."""
    points = node.all("points/point")
    if len(points) < 4:
        raise FormatError(Reason.TOO_FEW_NUMBERS, f"expected 4 or 5 points, found {len(points)}", node.line)
    polygon = []
    for point in points[:4]:
        pair = point.text.split(",")
        if len(pair) != 2:
            raise FormatError(Reason.BAD_NUMBER, f"expected 'x,y' in <point>, found '{point.text[:40]}'", point.line)
        polygon.append([finite(number, "<point>", point.line) for number in pair])
    return node.one("possibleresult/name").text, polygon, None


class Fair1m(records.OrientedBuilder, skip_registration=True):
    """FAIR1M: a split for each folder of the download (train, validation, test; the test labels are not public)."""

    CLASSES = classes.CLASSES["fair1m"]
    DESCRIPTION = "FAIR1M: fine-grained objects in remote sensing images, oriented boxes, 37 classes."
    HOMEPAGE = "https://www.gaofen-challenge.com/benchmark"
    CITATION = "Sun et al., FAIR1M: A Benchmark Dataset for Fine-Grained Object Recognition, ISPRS 2022."
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""Download FAIR1M from {HOMEPAGE} and unpack it into one
folder, the source. Every folder `images` in it is read, with the folder `labelXml` or `labelXmls` beside it; the first
folder of its path names the split:

  train/part1/images/0.tif   train/part1/labelXml/0.xml   train/part2/...
  validation/images/0.tif    validation/labelXml/0.xml    test/images/0.tif
"""

    def records(self, source: pathlib.Path) -> Content:
        """See the base class."""
        read = functools.partial(
            pairing.read_xml,
            finder=classes.finder(self.class_names),
            objects_at="objects/object",
            describe=describe,
        )
        splits: dict[str, list[Record]] = {}
        problems = []
        for images in sorted(path for path in source.rglob("images") if path.is_dir()):
            split = images.relative_to(source).parts[0]
            beside = [path for path in sorted(images.parent.iterdir()) if path.name.lower().startswith("labelxml")]
            found, wrong = pairing.pair_files(images, beside[0] if beside else None, read)
            splits.setdefault(split, []).extend(found)
            problems += wrong
        if not splits or "images" in splits:
            raise records.DataError(f"Expected folders like {source / 'train' / 'part1' / 'images'}, found none.")
        return splits, problems
