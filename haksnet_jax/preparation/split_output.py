"""The output folder of the tile splitter: what it was made with, what is finished, and what a killed run left."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.images import scaling
from haksnet_jax.images import settings as image_settings
from haksnet_jax.labels import folders, name_lists
from haksnet_jax.labels.classes import CLASSES
from haksnet_jax.labels.problems import Problem
from haksnet_jax.preparation.tiling import Job, Result
from haksnet_jax.results.geojson import PLACES

COUNTS = ("num_objects", "num_written", "num_truncated", "num_blank")


class SplitError(UserError):
    """The run cannot begin or go on; the message says what is wrong and what to do."""


def signature(job: Job) -> str:
    """Size and time of an image and its labels: a finished image is done again when these change."""
    parts = []
    for path in filter(None, (job.image, job.labels)):
        try:
            stat = pathlib.Path(path).stat()
        except OSError:  # a link that leads nowhere: it is named when it is to be read
            parts.append("none")
        else:
            parts.append(f"{stat.st_size}-{stat.st_mtime_ns}")
    return "+".join(parts)


class OutputFolder:
    """One output folder, held by this process.

    Attributes:
      path: pathlib.Path.
      finished: list of dicts, one for each finished image of this run's jobs.
    """

    def __init__(self, path: pathlib.Path, settings: Mapping[str, Any]) -> None:
        """Opens the folder for a run; the caller holds it.

        Args:
          path: pathlib.Path of the folder, which is there.
          settings: dict of all that decides what the tiles are.

        Raises:
          SplitError: the folder was begun with other settings, or holds other files.
        """
        self.path = path
        self.finished: list[dict[str, Any]] = []
        self._done_path = path / "split_done.jsonl"
        with _writing(path):
            for folder in (path, path / "images", path / "labelTxt"):
                if folder.name != "labelTxt" or settings["labels"]:
                    folder.mkdir(exist_ok=True)
                    files.remove_left_overs(folder)
        self._check_settings(settings)
        self._done = self._read_done()

    def _check_settings(self, settings):
        path = self.path / "split.json"
        if not path.exists():
            if any(not one.name.startswith(".") for one in (self.path / "images").iterdir()):
                raise SplitError(
                    f"{self.path / 'images'} holds files that are not of this tool: name another --output."
                )
            self._write(path, json.dumps(settings, indent=1) + "\n")
            return
        try:
            before = dict(json.loads(path.read_text()))
        except (ValueError, TypeError):
            raise SplitError(f"{path} is damaged: remove {self.path}, or name another --output.") from None
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            differences = ", ".join(f"{key} was {before.get(key)}, is {settings[key]}" for key in changed)
            raise SplitError(
                f"{self.path} was begun with other parameters ({differences}): repeat those, or name another --output."
            )

    def _read_done(self):
        """Dict from image name to its line; a line cut short by a crash is as if it were not there."""
        done = {}
        if self._done_path.exists():
            text = self._done_path.read_text(errors="replace")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                    done[entry["image"]] = entry
                except (ValueError, KeyError, TypeError):
                    continue
            if text and not text.endswith("\n"):
                with _writing(self._done_path), open(self._done_path, "a") as file:
                    file.write("\n")
        return done

    def waiting(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that are not finished; what an earlier run made of changed images is removed. Args: jobs."""
        waiting = []
        for job in jobs:
            entry = self._done.get(pathlib.Path(job.image).name)
            if entry is not None and entry["signature"] == signature(job):
                self.finished.append(entry)
                continue
            for name in entry["tiles"] if entry else ():  # the image or its labels have changed since
                for old in [*(self.path / "images").glob(f"{name}.*"), self.path / "labelTxt" / f"{name}.txt"]:
                    old.unlink(missing_ok=True)
            waiting.append(job)
        return waiting

    def mark_unfinished(self) -> None:
        """Says that what is here is a part of the data, until `finish`."""
        self._write(self.path / folders.UNFINISHED, "")

    def add(self, job: Job, result: Result) -> None:
        """Notes an image as finished."""
        entry = {
            "image": pathlib.Path(job.image).name,
            "signature": signature(job),
            **{key: getattr(result, key) for key in COUNTS},
            "tiles": list(result.tiles),
            "classes": list(result.class_names),
            "place": result.place,
            "problems": [list(problem) for problem in result.problems],
        }
        with _writing(self._done_path), open(self._done_path, "a") as file:
            file.write(json.dumps(entry) + "\n")
        self.finished.append(entry)

    def problems(self) -> list[Problem]:
        """List of Problem of all finished images."""
        return [Problem(*problem) for entry in self.finished for problem in entry["problems"]]

    def finish(self, problems: Sequence[Problem], class_names: tuple[str, ...] | None) -> None:
        """Writes what belongs to the whole: problems, classes, places on the ground. Then the folder is finished.

        Args:
          problems: list of Problem.
          class_names: tuple of the classes, or None: those of the objects, in a published order where they are exactly
            such a list, else in alphabetical order.
        """
        self._write(self.path / "split_problems.txt", "".join(f"{problem}\n" for problem in problems))
        if class_names is None:
            found = {name for entry in self.finished for name in entry.get("classes", ())}
            published = (names for names in CLASSES.values() if set(names) == found)
            class_names = next(published, tuple(sorted(found)))
        if class_names:
            self._write(self.path / folders.CLASS_LIST, name_lists.as_text(class_names))
        places = {pathlib.Path(e["image"]).stem: e["place"] for e in self.finished if e.get("place")}
        if places:
            self._write(self.path / "images" / PLACES, json.dumps(places, indent=1) + "\n")
        (self.path / folders.UNFINISHED).unlink(missing_ok=True)

    def _write(self, path, text):
        with _writing(path):
            files.write_text(path, text)


class _writing:
    """A context in which an OSError becomes a sentence. Args: what, path of what is written."""

    def __init__(self, what):
        self._what = what

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, OSError):
            raise SplitError(f"Cannot write {self._what}: {error.strerror or error}.") from None


def settings_for(
    folder: pathlib.Path, paths: Sequence[str], given: image_settings.ImageSettings
) -> image_settings.ImageSettings:
    """The settings for all images of this run and those before, kept beside the tiles where they say something."""
    before, _ = image_settings.read_folder(folder)
    settings = scaling.for_images(paths, given, max_measured=None) if paths else image_settings.merged(given, before)
    if given.limits is None and settings.limits and before.limits:
        settings = settings._replace(limits=max(settings.limits, before.limits))
    elif settings.limits is None:
        settings = settings._replace(limits=before.limits)
    if settings != before:
        try:
            image_settings.write_folder(folder, settings)
        except OSError as error:
            raise SplitError(f"Cannot write {folder / image_settings.FILE}: {error.strerror}.") from None
    return settings
