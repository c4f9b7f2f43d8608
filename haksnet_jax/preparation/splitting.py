"""Cuts scenes and their labels into tiles, in worker processes; a run that was stopped goes on where it ended.

Windows, kept objects, their order and coordinates are those of the reference's splitter: see `results.tiles.windows`;
an object belongs to a tile that holds at least 0.7 of its area. Two things differ. An object gets difficulty 2
("truncated") only when a corner lies outside the tile, where the reference's rounding also marks complete objects; and
a label without difficulty gets 0, where the reference writes a line that it cannot read again.

The output folder holds
  images/             the tiles, named IMAGE__SIDE__X___Y; SIDE, X and Y in pixels of the image
  labelTxt/           a label file for each tile, empty where it has no objects; not for images without labels
  classes.txt         the classes: those given or found beside the labels, else those of the objects
  images/georeference.json   where georeferenced images lie, so that merged results find their place
  split.json          the parameters
  split_done.jsonl    one line for each finished image
  split_problems.txt  what was odd or left out, with file and line

Until all is there, it holds the mark `folders.UNFINISHED`, and no other command takes it for data.
"""

import concurrent.futures
import concurrent.futures.process
import contextlib
import multiprocessing
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2

from haksnet_jax import files
from haksnet_jax.images import files as image_files
from haksnet_jax.images import settings as image_settings
from haksnet_jax.labels import classes, folders
from haksnet_jax.labels.label_set import LabelSet
from haksnet_jax.labels.problems import Problem, losses
from haksnet_jax.preparation import split_output
from haksnet_jax.preparation.split_output import SplitError
from haksnet_jax.preparation.tiling import Job, Parameters, cut_image

PROTOCOLS = {"single_scale": (200, (1.0,)), "multi_scale": (500, (0.5, 1.0, 1.5))}  # overlap, rates
__all__ = ["PROTOCOLS", "Parameters", "SplitError", "Summary", "find_jobs", "split"]

_stop = None  # in a worker process: the event that asks it to stop between two tiles


def _start_worker(stop):
    global _stop
    _stop = stop
    cv2.setNumThreads(1)  # one process a core already


def _cut_in_worker(job, *arguments):
    return cut_image(job, *arguments, stop=_stop)


def find_jobs(
    image_folders: Sequence[str | os.PathLike[str]],
    label_paths: Sequence[str | os.PathLike[str]],
    *,
    format: str = "dota",
    class_names: tuple[str, ...] | None = None,
) -> tuple[list[Job], list[Problem], tuple[str, ...] | None]:
    """Pairs images with their labels.

    Args:
      image_folders: list of folders of images.
      label_paths: list of as many folders of label files (or files), or [] for images without labels.
      format: of the labels, see label_set.FORMATS.
      class_names: tuple of the classes, or None: those that the labels list themselves.

    Returns:
      (list of Job, list of Problem: images and labels without partner, tuple of the classes or None).

    Raises:
      UserError: a folder is missing or without images, or two images have one name.
    """
    if label_paths and len(label_paths) != len(image_folders):
        raise SplitError(f"Expected one --labels for each of {len(image_folders)} --images, got {len(label_paths)}.")
    jobs, problems = [], []
    seen: dict[str, str] = {}
    for index, images_dir in enumerate(image_folders):
        labels = label_paths[index] if label_paths else None
        label_set = None if labels is None else LabelSet(labels, format)
        folders.require_finished(images_dir)
        images = {}
        for path in map(str, image_files.list_images(images_dir)):
            stem = pathlib.Path(path).stem
            if stem in seen:
                raise SplitError(f"{seen[stem]} and {path} would give tiles of the same names: rename one of them.")
            seen[stem] = images[stem] = path
        if labels is None or label_set is None:
            jobs += [Job(path, None) for path in images.values()]
            continue
        problems += label_set.problems
        class_names = class_names or label_set.class_names
        jobs += _labelled_jobs(images, label_set, class_names)
        problems += folders.pair(images, label_set.files, labels, images_dir)
    return jobs, problems, class_names


def _labelled_jobs(images, label_set, class_names):
    """Jobs of the images that have labels. Labels in DOTA's format are read where the image is cut."""
    names = class_names or ()
    if label_set.format != "dota" and class_names is None:
        names = label_set.found_class_names()
    jobs = []
    for stem, image in images.items():
        if stem in label_set.files:
            given = None if label_set.format == "dota" else label_set.read(stem, names, image)
            jobs.append(Job(image, str(label_set.files[stem]), tuple(names), given))
    return jobs


class Summary(NamedTuple):
    """What a run did.

    Attributes:
      num_images: finished images, those of earlier runs included.
      num_tiles: their tiles.
      num_objects: their objects.
      num_written: their label lines.
      num_truncated: of these, truncated by the tile.
      num_blank: windows of one single value.
      problems: list of labels.Problem, those of earlier runs included.
      coding_share: share of this run's working time that went into reading, decoding, encoding and writing images.
      seconds: wall time of this run.
    """

    num_images: int
    num_tiles: int
    num_objects: int
    num_written: int
    num_truncated: int
    num_blank: int
    problems: list
    coding_share: float
    seconds: float

    @property
    def lost(self) -> list[Problem]:
        """The problems by which an image or an object is missing in the output."""
        return losses(self.problems)


def split(
    image_folders: Sequence[str | os.PathLike[str]],
    label_paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    parameters: Parameters,
    *,
    format: str = "dota",
    classes_from: str | None = None,
    num_workers: int | None = None,
    progress: Callable[..., None] | None = None,
) -> Summary:
    """Cuts all images of some folders into tiles. A second call with the same arguments completes the first.

    Args:
      image_folders: list of folders of images.
      label_paths: list of as many folders of label files (or files of labels), or [] for images without labels.
      output: the output folder.
      parameters: Parameters.
      format: of the labels, see label_set.FORMATS.
      classes_from: a published list's name or a file with one class a line; None: the list beside the labels.
      num_workers: worker processes; None: one a core; 0: work in this process. Scripts that call this need the usual
        `if __name__ == "__main__":`, since workers are spawned.
      progress: function of (images done, images in all, tiles), called after each image.

    Returns:
      A Summary.

    Raises:
      UserError: nothing to do, other parameters than before, another process at work there, or writing failed.
      KeyboardInterrupt: stopped; what is finished is marked, and a second call goes on.
    """
    begin = time.perf_counter()
    output = pathlib.Path(output)
    class_names = None if classes_from is None else classes.read_class_names(classes_from)
    jobs, problems, class_names = find_jobs(image_folders, label_paths, format=format, class_names=class_names)
    settings = {
        "images": [str(pathlib.Path(folder).resolve()) for folder in image_folders],
        "labels": [str(pathlib.Path(path).resolve()) for path in label_paths],
        **{name: value for name, value in parameters._asdict().items() if name != "images"},
        "rates": list(parameters.rates),
        "image_settings": image_settings.to_json(parameters.images),
    }
    files.output_folder(output)
    with files.held(output):
        folder = split_output.OutputFolder(output, settings)
        run = _Run(folder, jobs, problems, progress)
        run.cut(parameters, num_workers)
        problems = sorted([*problems, *folder.problems()], key=lambda problem: problem[:2])
        folder.finish(problems, class_names)
    return Summary(
        num_images=len(folder.finished),
        num_tiles=run.num_tiles(),
        **{key: sum(entry[key] for entry in folder.finished) for key in split_output.COUNTS},
        problems=problems,
        coding_share=run.seconds["coding"] / max(run.seconds["all"], 1e-9),
        seconds=time.perf_counter() - begin,
    )


class _Run:
    """One run over the images that are not finished.

    Attributes:
      seconds: {"coding", "all"} working time so far.
    """

    def __init__(self, folder, jobs, problems, progress):
        """Args: split_output.OutputFolder; all jobs; list that problems are added to; function to call, or None."""
        self._folder, self._jobs, self._problems, self._progress = folder, jobs, problems, progress
        self.seconds = {"coding": 0.0, "all": 0.0}

    def cut(self, parameters, num_workers):
        """Cuts what is waiting. Args: Parameters; worker processes, None or 0."""
        waiting = self._folder.waiting(self._jobs)
        images_dir = self._folder.path / "images"
        settings = split_output.settings_for(images_dir, [job.image for job in waiting], parameters.images)
        if waiting:
            self._folder.mark_unfinished()
        num_workers = min(os.cpu_count() or 1 if num_workers is None else num_workers, len(waiting))
        # The largest first, so that no worker is left alone with a large image at the end.
        waiting.sort(key=lambda job: -os.path.getsize(job.image) if os.path.exists(job.image) else 0)
        arguments = (self._folder.path, parameters, settings)
        if num_workers:
            _run_workers(waiting, arguments, num_workers, self._take)
            return
        for job in waiting:
            self._take(job, cut_image(job, *arguments))

    def num_tiles(self):
        """Tiles of all finished images."""
        return sum(len(entry["tiles"]) for entry in self._folder.finished)

    def _take(self, job, result):
        if result.error is not None:
            raise SplitError(
                f"{result.error}. {len(self._folder.finished)} of {len(self._jobs)} images are finished; the same "
                "command goes on there."
            )
        for key in self.seconds:
            self.seconds[key] += result.seconds[key]
        if not result.tiles and not result.num_blank:  # not usable; named, and tried again by the next run
            self._problems.extend(result.problems)
            return
        self._folder.add(job, result)
        if self._progress is not None:
            self._progress(len(self._folder.finished), len(self._jobs), self.num_tiles())


@contextlib.contextmanager
def _interrupt_deferred():
    """Puts Ctrl-C off until the end of the block, for processes that start in it and for this one.

    Ctrl-C reaches every process of the terminal. Workers are born deaf to it, or one that is still importing would die
    with a traceback; the parent decides, and workers finish the tile at hand. They inherit the mask of the thread that
    starts them. In this process the mask is not enough: the system hands the signal to any thread that does not block
    it, such as those of numpy, and Python then runs the handler in the main thread, in the middle of a start.
    """
    noted = []
    # Handlers can be set in the main thread alone, and no other is interrupted. One that is not Python's (None) could
    # not be put back.
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if handler is not None:
        signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # one that waited behind the mask is noted here
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        if noted:
            signal.raise_signal(signal.SIGINT)  # for the old handler: KeyboardInterrupt, unless the caller set another


def _run_workers(jobs, arguments, num_workers, take):
    """Runs cut_image over worker processes; on Ctrl-C or an error they stop after the tile at hand."""
    context = multiprocessing.get_context("spawn")  # fork is unsafe beside the threads of OpenCV, GDAL and JAX
    stop = context.Event()
    executor = concurrent.futures.ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(stop,)
    )
    try:
        with _interrupt_deferred():
            futures = {executor.submit(_cut_in_worker, job, *arguments): job for job in jobs}
        for future in concurrent.futures.as_completed(futures):
            take(futures[future], future.result())
    except concurrent.futures.process.BrokenProcessPool:
        raise SplitError(
            "A worker process died, most likely for want of memory: run the same command again with fewer --workers."
        ) from None
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)
