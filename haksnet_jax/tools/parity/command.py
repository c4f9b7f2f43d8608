"""The report: all rows, as they are printed and stored by the command `parity`."""

import argparse
import fnmatch
import json
import math
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from haksnet_jax import files
from haksnet_jax.errors import UserError
from haksnet_jax.tools.parity import backbones, data, detectors, operators, training, weights
from haksnet_jax.tools.parity.rows import Fixture, Row

# By the beginning of a fixture's name: "inference" stands for inference_t, inference_s and any other.
CHECKS = {
    "box_transforms": operators.box_transform_rows,
    "coder_midpoint_offset": operators.midpoint_coder_rows,
    "coder_delta_xywha": operators.delta_coder_rows,
    "anchors": operators.anchor_rows,
    "box_iou_rotated": operators.iou_rows,
    "nms_rotated": operators.nms_rotated_rows,
    "nms_horizontal": operators.nms_horizontal_rows,
    "roi_align_rotated": operators.roi_align_rows,
    "roi_extractor": operators.roi_extractor_rows,
    "assigners": operators.assigner_rows,
    "losses": operators.loss_rows,
    "init_statistics": weights.init_rows,
    "lr_schedule": operators.schedule_rows,
    "optimizer_adamw": operators.optimizer_rows,
    "drop_path": backbones.drop_path_rows,
    "backbone_blocks": backbones.block_rows,
    "backbone_full": backbones.backbone_rows,
    "neck_rpn": detectors.neck_rpn_rows,
    "inference_pipeline": detectors.pipeline_rows,
    "inference": detectors.inference_rows,
    "train_step": training.train_step_rows,
    "augment": data.augment_rows,
    "evaluation": data.average_precision_rows,
    "merge": data.merge_rows,
    "checkpoints_expected": weights.checkpoint_rows,
    "label_parsing": data.label_rows,
    "image_split": data.split_rows,
}
_INPUTS = ("state_dict_", "weights_check", "model_summary")  # not outputs to compare with, but what others are made of
_FIGURES = ("absolute", "relative")
_ROUNDED = ("inference_pipeline", "inference")  # what is compared in bfloat16


def check_of(name: str) -> str | None:
    """The key of CHECKS for a fixture's name, or None."""
    fitting = [key for key in CHECKS if name == key or name.startswith(f"{key}_")]
    return max(fitting, key=len, default=None)


def report(
    folder: str | os.PathLike[str],
    *,
    only: Sequence[str] = ("*",),
    dtype: str = "float32",
    done: Callable[[list[Row]], None] | None = None,
) -> tuple[list[Row], list[str]]:
    """Compares everything that is recorded in a folder.

    Args:
      folder: with the fixtures, `reference_weights.py`, the state_dict_*.json and the images they name.
      only: patterns of fixtures' names.
      dtype: "bfloat16" compares whole inference alone, with tolerances for it.
      done: function of a fixture's rows, called as they come.

    Returns:
      (rows, names of recorded files that nothing is compared with).

    Raises:
      UserError: the folder holds no fixture of that name.
    """
    names = sorted(path.stem for path in pathlib.Path(folder).glob("*.json"))
    wanted = {name for pattern in only for name in fnmatch.filter(names, pattern)}
    names = [name for name in names if name in wanted and not name.startswith(_INPUTS)]
    rounded = dtype == "bfloat16"
    checks = {name: check for name in names if (check := check_of(name))}
    checked = [name for name, check in checks.items() if not rounded or check in _ROUNDED]
    if not checked:
        raise UserError(
            f"{folder} holds no fixture with a name like {', '.join(only)}: expected pairs NAME.json and NAME.npz"
        )
    order = list(CHECKS)
    rows = []
    for name in sorted(checked, key=lambda name: (order.index(checks[name]), name)):
        options = {"dtype": jnp.bfloat16} if rounded else {}
        try:
            found = CHECKS[checks[name]](Fixture(folder, name), **options)
        except Exception as error:  # one broken fixture must not hide the others' figures
            reason = str(error).splitlines()[0] if str(error) else ""
            found = [
                Row(name, "could not be compared", math.nan, math.nan, "", False, f"{type(error).__name__}: {reason}")
            ]
        found = [row._replace(passed=bool(row.passed)) for row in found]  # of numpy's kind, which JSON does not know
        rows += found
        if done:
            done(found)
    return rows, [name for name in names if name not in checks]


def _number(value):
    """A number as JSON can hold it."""
    return float(value) if math.isfinite(value) else None


def _figure(value):
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if math.isfinite(value) and value == int(value) and abs(value) < 1e5 else f"{value:.1e}"


def as_markdown(rows: Sequence[Row]) -> str:
    """The table of the report."""
    lines = ["| part | compared | absolute | relative | tolerance | verdict |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        what = f"{row.what} ({row.note})" if row.note else row.what
        verdict = "green" if row.passed else "**red**"
        cells = [row.part, what, _figure(row.absolute), _figure(row.relative), row.tolerance, verdict]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _print(rows):
    for row in rows:
        verdict = "green" if row.passed else "RED"
        print(
            f"{row.part:24} {row.what:44} {_figure(row.absolute):>8} {_figure(row.relative):>8}  {row.tolerance:24} "
            f"{verdict:6} {row.note}".rstrip(),
            flush=True,
        )


def run(options: argparse.Namespace) -> int:
    """Runs the command. Args: options, of `cli.parity`. Returns: 0 if every row is green, else 1."""
    jax.config.update("jax_platforms", options.platform)
    if options.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")  # the reference is exact float32
    header = Row("part", "compared", math.nan, math.nan, "tolerance", True)
    print(f"{header.part:24} {header.what:44} {'absolute':>8} {'relative':>8}  {header.tolerance:24} verdict")
    rows, unread = report(options.goldens, only=options.only, dtype=options.dtype, done=_print)
    red = [row for row in rows if not row.passed]
    print(f"{len(rows) - len(red)} of {len(rows)} rows green")
    if unread:
        print(f"nothing is compared with {', '.join(unread)}")
    if options.json:
        records = [row._asdict() | {name: _number(getattr(row, name)) for name in _FIGURES} for row in rows]
        files.write_text(options.json, json.dumps({"rows": records, "unread": unread}, indent=1) + "\n")
    if options.markdown:
        files.write_text(options.markdown, as_markdown(rows))
    return 1 if red else 0
