"""What the TFDS builders of all data sets share: features, checks, and the command line.

A data set gives its classes, its splits and a reader for its annotation files; everything it emits looks the same, so
that one source reads them all:

  image       PNG or JPEG bytes; three channels, eight bits
  image_id    the file's name without extension
  objects     a sequence of polygon [8] float32 (x1 y1 ... x4 y4, pixels), label, difficulty int32

Records are ArrayRecord; TensorFlow is not needed. Annotations are all read before the first image is, and a data set
from which something would be lost is not built unless that is asked for.
"""

import abc
import argparse
import collections
import contextlib
import functools
import io
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds

from haksnet_jax import files
from haksnet_jax.images import files as image_files
from haksnet_jax.images import reader
from haksnet_jax.images.headers import ImageError, read_header
from haksnet_jax.labels import dota as labels
from haksnet_jax.labels.problems import losses


class Record(NamedTuple):
    """One image of a split.

    Attributes:
      image: path of the image file.
      read: () -> (labels.Objects, list of labels.Problem), or None for an image without annotations.
    """

    image: pathlib.Path
    read: Any


class DataError(ValueError):
    """The source cannot be built from; the message says in full what is wrong and what to do."""


class OrientedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the builders. A data set gives class_names, VERSION, MANUAL_DOWNLOAD_INSTRUCTIONS and `records`.

    Args:
      lossy: True builds although annotations or images have to be left out.
      **kwargs: of tfds.core.GeneratorBasedBuilder; file_format is always array_record.
    """

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = ""
    HOMEPAGE = None
    CITATION = None
    CLASSES: tuple[str, ...] = ()

    def __init__(self, *, lossy=False, **kwargs):
        self.lossy = lossy
        self.problems = []  # what was wrong with the source, filled while building
        super().__init__(file_format="array_record", **kwargs)

    @property
    def class_names(self):
        """Names of the classes, in the order of their labels."""
        return self.CLASSES

    @abc.abstractmethod
    def records(self, source):
        """The data set's content.

        Args:
          source: pathlib.Path of the unpacked download.

        Returns:
          (dict from split to list of Record, list of labels.Problem about the folders).

        Raises:
          DataError: the source does not look like this data set.
        """

    def _info(self):
        # dataset_info_from_configs wants each builder in a folder of its own
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "image_id": tfds.features.Text(),
                    "objects": tfds.features.Sequence(
                        {
                            "polygon": tfds.features.Tensor(shape=(8,), dtype=np.float32),
                            "label": tfds.features.ClassLabel(names=list(self.class_names)),
                            "difficulty": tfds.features.Scalar(np.int32),
                        }
                    ),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        splits, problems = self.records(pathlib.Path(dl_manager.manual_dir))
        self.problems = list(problems)
        content = {}
        for split, records in splits.items():
            twice = [name for name, n in collections.Counter(r.image.stem for r in records).items() if n > 1]
            if twice:
                raise DataError(f"Split {split} has {len(twice)} image names more than once, for example '{twice[0]}'.")
            content[split] = [(record.image, self._read(record)) for record in records]
        self.refuse_losses("annotations")
        return {split: self._generate_examples(images) for split, images in content.items()}

    def _read(self, record):
        try:
            read_header(record.image)
        except (ImageError, OSError) as error:
            self.problems.append(_image_problem(record.image, error))
            return None
        if record.read is None:
            return []
        objects, problems = record.read()
        self.problems.extend(problems)
        return [
            {"polygon": polygon.reshape(8).astype(np.float32), "label": int(label), "difficulty": int(difficulty)}
            for polygon, label, difficulty, _ in zip(*objects, strict=True)
        ]

    def refuse_losses(self, what):
        """Raises DataError when the problems so far lose something and that was not asked for."""
        lost = losses(self.problems)
        if lost and not self.lossy:
            raise DataError(
                f"{len(lost)} problems with the {what} would lose something ({count_reasons(lost)}):\n{listed(lost)}\n"
                "Correct them, or build without what they concern by --lossy."
            )

    def _generate_examples(self, images):
        for path, objects in images:
            if objects is None:
                continue
            try:
                data = encoded_image(path)
            except (ImageError, OSError) as error:
                self.problems.append(_image_problem(path, error))
                self.refuse_losses("images")
                continue
            yield path.stem, {"image": io.BytesIO(data), "image_id": path.stem, "objects": objects}


def _image_problem(path, error):
    reason = getattr(error, "reason", "unreadable_image")
    return labels.Problem(str(path), 0, reason, getattr(error, "sentence", str(error)))


def count_reasons(problems):
    """`3 unknown_class, 1 zero_area`: the problems counted per reason, the most frequent first."""
    counts = collections.Counter(problem.reason for problem in problems)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def listed(problems, per_reason=5):
    """The problems one a line, at most so many of each reason; the rest only counted."""
    by_reason = collections.defaultdict(list)
    for problem in problems:
        by_reason[problem.reason].append(problem)
    lines = []
    for reason, found in by_reason.items():
        lines += [f"  {problem}" for problem in found[:per_reason]]
        if len(found) > per_reason:
            lines.append(f"  ... and {len(found) - per_reason} more of {reason}")
    return "\n".join(lines)


def encoded_image(path):
    """The bytes of an image as three channels of eight bits: as they are where they fit, else decoded and as PNG.

    Raises:
      ImageError: the file is no image or cannot be decoded.
      OSError: the file cannot be read.
    """
    header = read_header(path)
    if header.format in ("PNG", "JPEG") and header.channels == 3 and header.bits == 8:
        return path.read_bytes()
    return cv2.imencode(".png", cv2.cvtColor(reader.read(path), cv2.COLOR_RGB2BGR))[1].tobytes()


def pair_files(images, annotations, extension, read):
    """Records of a folder of images and a folder of annotation files with the same names.

    Args:
      images: folder of images.
      annotations: folder of annotation files, or None.
      extension: of the annotation files, ".txt".
      read: path of an annotation file -> (labels.Objects, problems).

    Returns:
      (list of Record in the order of the names, list of labels.Problem: images and annotations without partner).

    Raises:
      DataError: a folder is missing, or holds no image.
    """
    for folder in [images] + ([annotations] if annotations is not None else []):
        if not folder.is_dir():
            raise DataError(f"Expected a folder at {folder}, found none.")
    paths = sorted(path for path in images.iterdir() if image_files.is_image(path))
    if not paths:
        raise DataError(f"Found no images in {images} (looked for {', '.join(image_files.EXTENSIONS)}).")
    if annotations is None:
        return [Record(path, None) for path in paths], []
    by_name = {path.stem: path for path in annotations.iterdir() if path.suffix == extension}
    records, problems = [], []
    for path in paths:
        annotation = by_name.pop(path.stem, None)
        if annotation is None:
            problems.append(
                labels.Problem(
                    str(path),
                    0,
                    "image_without_labels",
                    f"expected {annotations / (path.stem + extension)}, found none",
                )
            )
        else:
            records.append(Record(path, functools.partial(read, annotation)))
    problems += [
        labels.Problem(str(path), 0, "labels_without_image", f"there is no image of this name in {images}")
        for path in sorted(by_name.values())
    ]
    return records, problems


def pair_listed(list_file, image_folders, annotations, extension, read):
    """Records of the images that a split's list names, in its order.

    Args:
      list_file: text file with one image name a line, with or without folder and extension.
      image_folders: folders in which the images are.
      annotations: folder of annotation files.
      extension: of the annotation files, ".xml".
      read: path of an annotation file -> (labels.Objects, problems).

    Returns:
      (list of Record, list of labels.Problem: names without image or annotations, with the line of the list).

    Raises:
      DataError: the list or a folder is missing.
    """
    if not list_file.is_file():
        raise DataError(f"Expected the list of a split's images at {list_file}, found none.")
    for folder in [*image_folders, annotations]:
        if not folder.is_dir():
            raise DataError(f"Expected a folder at {folder}, found none.")
    images = {path.stem: path for folder in image_folders for path in folder.iterdir() if image_files.is_image(path)}
    records, problems = [], []
    for line, text in enumerate(list_file.read_text().splitlines(), start=1):
        if not text.strip():
            continue
        name = pathlib.PurePosixPath(text.strip()).name
        stem = name if name in images else pathlib.PurePosixPath(name).stem
        annotation = annotations / f"{stem}{extension}"
        if stem in images and annotation.is_file():
            records.append(Record(images[stem], functools.partial(read, annotation)))
            continue
        missing = annotation if stem in images else f"an image {stem} in {', '.join(map(str, image_folders))}"
        problems.append(labels.Problem(str(list_file), line, "missing_file", f"expected {missing}, found none"))
    return records, problems


def prepare(builder, source):
    """Builds a data set in TFDS's own layout, builder.data_dir.

    Args:
      builder: an OrientedBuilder.
      source: folder of the unpacked download.

    Returns:
      pathlib.Path of the folder that sources.TfdsSource reads.

    Raises:
      DataError: the source is not as expected, or something would be lost.
      OSError: writing failed.
    """
    if not pathlib.Path(source).is_dir():
        raise DataError(f"Expected the unpacked data set at {source}, found no folder.")
    config = tfds.download.DownloadConfig(manual_dir=str(source))
    with tempfile.TemporaryDirectory() as downloads:  # TFDS makes this folder although nothing is downloaded
        try:
            builder.download_and_prepare(download_dir=downloads, download_config=config)
        except RuntimeError as error:  # what ArrayRecord raises when the disk is full
            raise OSError(str(error).strip().splitlines()[0]) from error
    return pathlib.Path(builder.data_dir)


def prepare_at(make_builder, source, output, overwrite=False):
    """Builds a data set so that its records lie in `output` itself; the folder appears whole or not at all.

    Args:
      make_builder: function of data_dir that makes an OrientedBuilder.
      source: folder of the unpacked download.
      output: the folder; sources.TfdsSource reads it.
      overwrite: True replaces a data set that is there, once the new one is complete.

    Returns:
      The OrientedBuilder, with its problems.

    Raises:
      DataError: see prepare; or the folder is there already.
      OSError: writing failed.
    """
    output = pathlib.Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not (output / "dataset_info.json").is_file():
            raise DataError(f"{output} is there already and is no such data set: name another --output.")
        if not overwrite:
            raise DataError(f"{output} is there already: name another --output, or build it anew by --overwrite.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        builder = make_builder(data_dir=temporary)
        built = prepare(builder, source)
        if output.exists():
            os.replace(output, pathlib.Path(temporary) / "before")
        os.replace(built, output)
    return builder


def write_dota(builder, source, folder):
    """Writes a data set as folders in DOTA's format, to be cut by data.dota.split or looked at by data.validate.

    Args:
      builder: an OrientedBuilder.
      source: folder of the unpacked download.
      folder: output; gets SPLIT/images (hard links where the file system can, else copies) and SPLIT/labelTxt.

    Returns:
      dict from split to its number of images.

    Raises:
      DataError: the source is not as expected, or something would be lost.
      OSError: writing failed.
    """
    splits, problems = builder.records(pathlib.Path(source))
    builder.problems = list(problems)
    content = {
        split: [(record.image, record.read() if record.read else None) for record in records]
        for split, records in splits.items()
    }
    for images in content.values():
        for _, annotation in images:
            builder.problems += annotation[1] if annotation else []
    builder.refuse_losses("annotations")
    for split, images in content.items():
        target = pathlib.Path(folder) / split
        (target / "images").mkdir(parents=True, exist_ok=True)
        for path, annotation in images:
            if annotation is not None:
                (target / "labelTxt").mkdir(exist_ok=True)
                lines = [
                    labels.format_label_line(polygon, builder.class_names[label], difficulty) + "\n"
                    for polygon, label, difficulty, _ in zip(*annotation[0], strict=True)
                ]
                text = "".join(lines)
                files.write_text(target / "labelTxt" / f"{path.stem}.txt", text, sync=False)
            with files.whole(target / "images" / path.name, sync=False) as temporary:
                _link(path, temporary)
    return {split: len(images) for split, images in content.items()}


def _link(path, name):
    try:
        os.link(path, name)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(path, name)


def add_arguments(parser):
    """Adds the arguments that all data sets share."""
    parser.add_argument("--output", required=True, help="the folder that the data set is written to")
    parser.add_argument("--overwrite", action="store_true", help="build anew what is in the output folder already")
    parser.add_argument("--lossy", action="store_true", help="build although something has to be left out; it is named")


def report(make_builder, source, output, overwrite):
    """Builds, prints what was built and what was odd, and returns the exit status of the command."""
    tfds.disable_progress_bar()
    try:
        # TFDS announces downloads and temporary folders, which would only confuse here
        with contextlib.redirect_stdout(io.StringIO()):
            builder = prepare_at(make_builder, source, output, overwrite)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"Cannot write {output}: {error.strerror or error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; nothing was written.", file=sys.stderr)
        return 130
    if builder.problems:
        print(f"{len(builder.problems)} problems: {count_reasons(builder.problems)}", file=sys.stderr)
        print(listed(builder.problems), file=sys.stderr)
    for split, info in builder.info.splits.items():
        print(f"{split}: {info.num_examples} images")
    print(f"classes: {', '.join(builder.class_names)}")
    print(f"written to {output}")
    return 0


def main(builder_class, argv=None):
    """The command of one data set: python -m data.NAME --source=DIR --output=DIR."""
    parser = argparse.ArgumentParser(
        prog=f"python -m data.{builder_class.name}",
        description=f"{builder_class.DESCRIPTION}\n\n{builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", required=True, help="folder of the unpacked download, as described above")
    add_arguments(parser)
    parser.add_argument(
        "--as_dota", action="store_true", help="write folders in DOTA's format to --output instead of a TFDS data set"
    )
    args = parser.parse_args(argv)
    make_builder = functools.partial(builder_class, lossy=args.lossy)
    if not args.as_dota:
        return report(make_builder, args.source, args.output, args.overwrite)
    builder = make_builder(data_dir=args.output)
    try:
        counts = write_dota(builder, args.source, args.output)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"Cannot write {args.output}: {error.strerror or error}.", file=sys.stderr)
        return 1
    for problem in builder.problems:
        print(problem, file=sys.stderr)
    for split, count in counts.items():
        print(f"{split}: {count} images")
    print(f"written to {args.output}")
    return 0
