"""FAIR1M: 37 fine-grained classes of aircraft, ships, vehicles, courts and roads. python -m data.fair1m --help

Source: Sun et al., "FAIR1M: A Benchmark Dataset for Fine-Grained Object Recognition in High-Resolution Remote Sensing
Imagery", ISPRS 2022. Images have 1,000 to 10,000 pixels a side: write them in DOTA's format first (--as_dota), cut them
by data.dota.split, and build from the tiles by data.dota.build --classes=fair1m.
"""

import functools
import sys

from data import annotations, builder
from haksnet_jax.labels import dota as labels


def describe(node):
    """Class, corners and difficulty of an <object>: its first four points, since the fifth repeats the first."""
    points = node.all("points/point")
    if len(points) < 4:
        raise annotations.AnnotationError("too_few_numbers", f"expected 4 or 5 points, found {len(points)}", node.line)
    polygon = []
    for point in points[:4]:
        try:
            x, y = (float(number) for number in point.text.split(","))
        except ValueError:
            raise annotations.AnnotationError(
                "bad_number", f"expected 'x,y' in <point>, found '{point.text}'", point.line
            ) from None
        polygon.append((x, y))
    return node.one("possibleresult/name").text, polygon, 0


class Fair1m(builder.OrientedBuilder, skip_registration=True):
    """FAIR1M: a split for each folder of the download (train, validation, test; the test labels are not public)."""

    CLASSES = labels.CLASSES["fair1m"]
    DESCRIPTION = "FAIR1M: fine-grained objects in remote sensing images, oriented boxes, 37 classes."
    HOMEPAGE = "https://www.gaofen-challenge.com/benchmark"
    CITATION = "Sun et al., FAIR1M: A Benchmark Dataset for Fine-Grained Object Recognition, ISPRS 2022."
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""Download FAIR1M from {HOMEPAGE} and unpack it into one
folder, the source. Every folder `images` in it is read, with the folder `labelXml` or `labelXmls` beside it; the first
folder of its path names the split:

  train/part1/images/0.tif   train/part1/labelXml/0.xml   train/part2/...
  validation/images/0.tif    validation/labelXml/0.xml    test/images/0.tif
"""

    def records(self, source):
        """See the base class."""
        read = functools.partial(
            annotations.read_xml, class_names=self.class_names, objects_at="objects/object", describe=describe
        )
        splits, problems = {}, []
        for images in sorted(path for path in source.rglob("images") if path.is_dir()):
            split = images.relative_to(source).parts[0]
            beside = [path for path in sorted(images.parent.iterdir()) if path.name.lower().startswith("labelxml")]
            records, found = builder.pair_files(images, beside[0] if beside else None, ".xml", read)
            splits.setdefault(split, []).extend(records)
            problems += found
        if not splits or "images" in splits:
            raise builder.DataError(f"Expected folders like {source / 'train' / 'part1' / 'images'}, found none.")
        return splits, problems


if __name__ == "__main__":
    sys.exit(builder.main(Fair1m))
