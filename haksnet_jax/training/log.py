"""What a run tells while it goes on: lines of progress, `metrics.jsonl`, event files, curves."""

import datetime
import json
import logging as python_logging
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from etils import epath

from haksnet_jax import files
from haksnet_jax.results import diagrams
from haksnet_jax.results.events import event_writer
from haksnet_jax.training import trackers

METRICS_FILE = "metrics.jsonl"


def read_metrics(path: epath.Path) -> list[dict[str, Any]]:
    """Reads a run's metrics; a line that cannot be read is named in a warning and left out.

    Args:
      path: of a `metrics.jsonl`.

    Returns:
      List of dicts, each with "step".
    """
    records = []
    for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record["step"], int):
                raise ValueError("no object with a step")
        except (ValueError, KeyError) as error:
            logging.warning("%s:%d is damaged and is left out (%s)", path, number, str(error).splitlines()[0])
            continue
        records.append(record)
    return records


def quiet_libraries() -> None:
    """Lets libraries tell nothing of failures inside them, for the rest of the process.

    What goes wrong ends the run with one sentence. Beside it Orbax logs each of its threads, asyncio each array that a
    full disk did not take, and callbacks print tracebacks of event loops that are closed meanwhile. HAKSNET_TRACEBACK=1
    shows it all.
    """
    if os.environ.get("HAKSNET_TRACEBACK"):
        return
    logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL + 1)
    of_callbacks, of_threads = sys.unraisablehook, threading.excepthook

    def callback_hook(arguments):
        if not (arguments.exc_type is RuntimeError and str(arguments.exc_value) == "Event loop is closed"):
            of_callbacks(arguments)

    def thread_hook(arguments):
        places = [frame.filename for frame in traceback.extract_tb(arguments.exc_traceback)]
        if not any(library in place for place in places for library in ("orbax", "tensorboardX")):
            of_threads(arguments)
        else:
            logging.warning("a library's thread ended: %s: %s", arguments.exc_type.__name__, arguments.exc_value)

    sys.unraisablehook, threading.excepthook = callback_hook, thread_hook


class RunLog:
    """Progress lines, event files and `metrics.jsonl` of a run; fetches metrics from the devices only when it writes.

    Args:
      task: the run's task, for what its lines show and which curves are drawn.
      workdir: folder of the run.
      first_step: steps that were taken before; what `metrics.jsonl` has beyond them is left out of the new one.
      num_steps: length of the run.
      global_batch: images a step.
      config: of the experiment, for the trackers that it names.

    Attributes:
      counts: {name: total} of the counters `num_*` of all batches so far.
      first_step_seconds: time until the first step of this start was done, or None before.
    """

    def __init__(
        self,
        task: Any,
        workdir: epath.Path,
        first_step: int,
        num_steps: int,
        global_batch: int,
        config: ml_collections.ConfigDict,
    ) -> None:
        self._task = task
        self._workdir = workdir
        self._num_steps = num_steps
        self._global_batch = global_batch
        self._pending: list[tuple[Any, ...]] = []
        self._since: float | None = None
        self._skipped_in_a_row = 0
        self.counts: dict[str, int] = {}
        self.first_step_seconds: float | None = None
        self._started = time.monotonic()
        self._is_writer = jax.process_index() == 0
        self._records: list[dict[str, Any]] = []
        path = workdir / METRICS_FILE
        if first_step and path.exists():
            self._records = [record for record in read_metrics(path) if record["step"] <= first_step]
        self._events = event_writer(workdir / "events") if self._is_writer else None
        self._trackers = trackers.Trackers(config, workdir) if self._is_writer else None
        logging.info("curves: tensorboard --logdir=%s", workdir / "events")

    def add(self, metrics: dict[str, Any], batch: dict[str, Any], waited: float) -> None:
        """Keeps a step's metrics (still on the devices) until the next line is written."""
        self._pending.append((metrics, batch["image_index"], waited))
        for name, values in batch.items():
            if name.startswith("num_"):
                self.counts[name] = self.counts.get(name, 0) + int(np.sum(values))

    def write(self, step: int, learning_rate: float, image_ids: Sequence[str]) -> int:
        """Writes the means since the last line. Returns: how many updates in a row were not finite at its end."""
        fetched = jax.device_get([metrics for metrics, _, _ in self._pending])
        now = time.monotonic()
        for metrics, (_, image_index, _) in zip(fetched, self._pending, strict=True):
            self._skipped_in_a_row = 0 if metrics["finite"] else self._skipped_in_a_row + 1
            if not metrics["finite"]:
                names = ", ".join(image_ids[i] for i in image_index)
                logging.warning("an update was not finite and was left out; images of this host's batch: %s", names)
        finite = [metrics for metrics in fetched if metrics["finite"]]
        means = {
            name: float(np.mean([metrics[name] for metrics in finite])) if finite else math.nan
            for name in fetched[0]
            if name != "finite"
        }
        record = {"step": step, "learning_rate": learning_rate, **means}
        record["waited_for_data"] = sum(waited for _, _, waited in self._pending) / len(self._pending)
        if self._since is not None:  # the first line's time is compilation
            record["images_per_second"] = len(fetched) * self._global_batch / (now - self._since)
        else:
            self.first_step_seconds = round(now - self._started, 1)
        self._since = now
        self._pending = []
        self._append(record)
        logging.info(
            "step %d/%d  %s  lr %.2e  %s",
            step, self._num_steps, self._task.log_line(means), learning_rate, self._pace(record),
        )  # fmt: skip
        return self._skipped_in_a_row

    def _pace(self, record):
        speed = record.get("images_per_second")
        if not speed:
            return f"first step after {self.first_step_seconds:.0f} s"
        left = datetime.timedelta(seconds=round((self._num_steps - record["step"]) * self._global_batch / speed))
        return f"{speed:.1f} images/s  data wait {1000 * record['waited_for_data']:.0f} ms  ETA {left}"

    def images_per_second(self) -> float | None:
        """Median over the lines so far, or None."""
        speeds = [record["images_per_second"] for record in self._records if "images_per_second" in record]
        return round(float(np.median(speeds)), 2) if speeds else None

    def evaluated(self, step: int, result: Any, pictures: Sequence[Any]) -> None:
        """Writes an evaluation's metrics and drawings."""
        figures = {name: value for name, value in result.figures().items() if value is not None}
        self._append({"step": step, **figures})
        logging.info("evaluation at step %d\n%s", step, result.table())
        if self._events:
            for picture in pictures:
                self._events.add_image(f"detections/{picture.image_id}", picture.image, step, dataformats="HWC")
            if pictures:
                self._trackers.tell("picture", step, f"pictures/{pictures[0].image_id}", pictures[0].image)
        self._since = None if self._since is None else time.monotonic()

    def _append(self, record):
        self._records.append(record)
        if not self._is_writer:
            return
        files.write_text(self._workdir / METRICS_FILE, "".join(json.dumps(r) + "\n" for r in self._records))
        for name, value in record.items():
            if name != "step":
                self._events.add_scalar(name.replace(":", "_"), value, record["step"])
        self._trackers.tell("log", record["step"], {name: value for name, value in record.items() if name != "step"})

    def draw_curves(self) -> None:
        """Writes `curves.png`: losses (the task's first prefix) and scores (its others) over the steps."""
        losses: dict[str, Any] = {}
        scores: dict[str, Any] = {}
        for record in self._records:
            for name, value in record.items():
                for number, prefix in enumerate(self._task.CURVES):
                    if name.startswith(prefix):
                        if number and "learning_rate" in record:  # of crops, as they are augmented
                            name = f"{name}, training"
                        steps, values = (scores if number else losses).setdefault(name, ([], []))
                        steps.append(record["step"])
                        values.append(value)
        figure = diagrams.training_figure(losses, scores or None)
        diagrams.save_figure(figure, self._workdir / "curves.png")

    def close(self, card: dict[str, Any] | None = None) -> None:
        """Flushes the event files and ends the trackers, once. Args: card, the result card of a run at its end."""
        if self._events:
            self._events.close()
            self._events = None
            if card is not None:
                self._trackers.tell("card", card)
            self._trackers.tell("close", card is not None)
