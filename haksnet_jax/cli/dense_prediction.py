"""Classes of pixels, or changed pixels, of images: what the command `predict` does with models of the dense tasks."""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import sys
import time

import cv2
import numpy as np

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.images import settings as image_settings
from haksnet_jax.images.files import images_in
from haksnet_jax.images.reader import ImageFile
from haksnet_jax.inference import dense_predictor, dense_session
from haksnet_jax.inference.pairs import open_pair
from haksnet_jax.labels import name_lists
from haksnet_jax.labels.masks import IGNORED
from haksnet_jax.results import dense_maps, map_files, visualize
from haksnet_jax.wording import counted

UNFINISHED = ".unfinished"
_PREVIEW_SIDE = 2048  # pixels: larger images are drawn reduced to this


class _Item:
    """One image, or pair, on its way: where it comes from and what is written of it."""

    def __init__(self, paths, images, writer, ground, told):
        self.paths, self.images, self.writer, self.ground, self.told = paths, images, writer, ground, told
        self.name = paths[0].stem

    def sink(self, first, rows):
        """Rows of labels without those pixels that have no data at a date."""
        for image in self.images:
            empty = _without_data(image, first, first + len(rows))
            if empty is not None:
                rows[empty] = IGNORED
        self.writer(first, rows)

    def close(self):
        for image in self.images:
            image.close()


def _without_data(image, first, last):
    """[rows, width] bool of pixels without data, or None. Args: image, ImageFile; first, last, rows."""
    if image.header.format != "TIFF":
        return None
    _, empty = image.samples(0, first, image.width, last)
    if "alpha" in image.band_names and image.band_names.index("alpha") not in image.chosen:
        alpha, _ = image.samples(0, first, image.width, last, [image.band_names.index("alpha")])
        clear = alpha[..., 0] == 0
        empty = clear if empty is None else empty | clear
    return empty


def find_pairs(
    before: str | os.PathLike[str], after: str | os.PathLike[str]
) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """[(path, path)] of two files, or of the images of equal names in two folders.

    Raises:
      UserError: one is a folder and the other is none, or images have no partner.
    """
    before, after = pathlib.Path(before), pathlib.Path(after)
    if before.is_dir() != after.is_dir():
        raise UserError(f"--before={before} and --after={after}: expected two files or two folders")
    if not before.is_dir():
        for path in (before, after):
            if not path.is_file():
                raise UserError(f"{path}: there is no such file")
        return [(before, after)]
    earlier, later = images_in(before), images_in(after)
    alone = sorted(set(earlier) ^ set(later))
    if alone:
        where = before if alone[0] in earlier else after
        raise UserError(
            f"{counted(len(alone), 'image')} of {before} and {after} without a partner of the same name, {alone[0]} in "
            f"{where} first: every earlier image needs a later one"
        )
    return [(earlier[name], later[name]) for name in sorted(earlier)]


def predict(arguments: argparse.Namespace) -> int:
    """Runs the command. Args: arguments, parsed. Returns: exit status.

    Raises:
      UserError: nothing was done.
    """
    started = time.monotonic()
    from haksnet_jax.distributed import mesh as devices
    from haksnet_jax.inference.images import find_images

    folder = files.output_folder(arguments.output)
    if arguments.polygons and not map_files.has_rasterio():
        raise UserError("--polygons needs rasterio: pip install rasterio")
    devices.enable_compilation_cache()
    predictor = dense_predictor.load(
        arguments.checkpoint, precision=arguments.precision, batch_size=arguments.batch_size
    )
    if predictor.num_images == 2:
        if not (arguments.before and arguments.after) or arguments.images:
            raise UserError(
                f"{arguments.checkpoint} detects change: name the two dates with --before=PATH and --after=PATH"
            )
        sources = find_pairs(arguments.before, arguments.after)
    else:
        if arguments.before or arguments.after or not arguments.images:
            raise UserError(f"{arguments.checkpoint} segments single images: name them with --images=PATH")
        sources = [(path,) for path in find_images(arguments.images)[0]]
    settings = predictor.settings(
        tile=arguments.tile,
        overlap=arguments.overlap,
        scales=arguments.scales,
        flip=arguments.flip,
        turns=arguments.turns,
    )
    with files.held(folder):
        try:
            return _predict(arguments, predictor, settings, sources, folder, started)
        finally:
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def _predict(arguments, predictor, settings, sources, folder, started):
    failed, results, opened = {}, {}, {}

    def say(text):
        print(text, file=sys.stderr, flush=True)

    def jobs():
        for paths in sources:
            try:
                item = _open(paths, predictor, folder)
            except (UserError, OSError, MemoryError) as error:
                failed[paths] = str(error)
                say(f"error: {error}")
                continue
            if item.told:
                say(item.told)
            opened[item.name] = item
            yield dense_session.Job(item.images, item.sink, item)

    try:
        for job in predictor.predict(jobs(), settings, on_progress=_progress(say)):
            with contextlib.closing(opened.pop(job.tag.name)):
                results[job.tag.name] = _finish(job.tag, arguments, predictor, folder, say)
    finally:
        for item in opened.values():  # where something went wrong
            item.writer.discard()
            item.close()
    files.write_text(folder / "classes.txt", name_lists.as_text(predictor.class_names))
    files.write_text(folder / "areas.json", json.dumps({"images": results}, indent=1, ensure_ascii=False) + "\n")
    _tell_areas(results, predictor, say)
    if not results:
        raise UserError(f"none of {counted(len(sources), 'image')} could be used, so there is no result")
    say(f"{len(results)} of {len(sources)} done in {time.monotonic() - started:.1f} s")
    print(folder / "maps")
    return 1 if failed else 0


def _progress(say):
    last = time.monotonic()

    def on_progress(done, planned):
        nonlocal last
        if time.monotonic() - last >= 15:
            last = time.monotonic()
            say(f"window {done} of {planned}")

    return on_progress


def _open(paths, predictor, folder):
    given = image_settings.merged(predictor.image_settings, image_settings.DEFAULT)
    if len(paths) == 2:
        *images, told = open_pair(*paths, folder / UNFINISHED, given)
    else:
        images, told = [ImageFile(paths[0], given)], ""
    try:
        ground, _ = map_files.read_ground(paths[0])
        as_tiff = images[0].header.format == "TIFF" and map_files.has_rasterio()
        (folder / "maps").mkdir(exist_ok=True)
        target = folder / "maps" / f"{paths[0].stem}.{'tif' if as_tiff else 'png'}"
        writer = map_files.MapWriter(
            target, images[0].height, images[0].width, predictor.colours, ground, preview_side=_PREVIEW_SIDE
        )
    except BaseException:
        for image in images:
            image.close()
        raise
    item = _Item(paths, tuple(images), writer, ground, told)
    item.target = target
    return item


def _finish(item, arguments, predictor, folder, say):
    """Writes what belongs to one image. Returns: its entry of areas.json."""
    item.writer.close()
    pixel = None if item.ground is None else item.ground.square_metres
    entry = {"width": item.images[0].width, "height": item.images[0].height}
    if item.told:
        entry["warped"] = item.told
    entry |= map_files.areas(item.writer.counts, predictor.class_names, pixel)
    changed = [1] if predictor.num_images == 2 else None
    if arguments.drawings:
        (folder / "overlays").mkdir(exist_ok=True)
        visualize.write_image(folder / "overlays" / f"{item.name}.jpg", _overlay(item, predictor))
    if arguments.polygons:
        (folder / "polygons").mkdir(exist_ok=True)
        written, left_out = map_files.write_polygons(
            folder / "polygons" / f"{item.name}.geojson", item.target, predictor.class_names,
            ground=item.ground, labels=changed, min_pixels=arguments.min_pixels,
        )  # fmt: skip
        entry["polygons"], entry["polygons_left_out"] = written, left_out
        say(f"{item.name}: {written} polygons" + (f", {left_out} smaller ones left out" if left_out else ""))
    return entry


def _overlay(item, predictor):
    """The (reduced) image, at the later date, with its classes in colours and their names below."""
    image, _ = item.images[-1].thumbnail(_PREVIEW_SIDE)
    labels = item.writer.preview
    if labels.shape != image.shape[:2]:
        labels = cv2.resize(labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    is_pair = predictor.num_images == 2
    picture = dense_maps.overlay(image, labels, predictor.colours, transparent=(0,) if is_pair else ())
    shown = slice(1, None) if is_pair else slice(None)
    strip = dense_maps.legend(picture.shape[1], predictor.class_names[shown], predictor.colours[shown])
    return np.concatenate([picture, strip])


def _tell_areas(results, predictor, say):
    """A table of the classes over all images."""
    entries = [result["classes"] for result in results.values()]
    total = sum(entry["pixels"] for classes in entries for entry in classes.values())
    width = max(map(len, predictor.class_names))
    for name in predictor.class_names:
        pixels = sum(classes[name]["pixels"] for classes in entries)
        line = f"{name:<{width}}  {pixels:>14,} pixels  {pixels / max(total, 1):7.2%}"
        if entries and all("square_metres" in classes[name] for classes in entries):
            line += f"  {sum(classes[name]['square_metres'] for classes in entries):>16,.0f} m2"
        say(line)
