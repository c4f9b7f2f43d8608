"""The result card of a run: what was measured, on what, with which code."""

import json
import os
import pathlib
import subprocess
import tomllib
from collections.abc import Mapping
from typing import Any

from etils import epath

from haksnet_jax import files


def code_version(package: pathlib.Path | None = None) -> str:
    """Commit of the checkout that runs, "-dirty" where its code has changes, or "unknown" outside a checkout.

    A repository that the package merely lies in (installed below it, or copied into it) is not its checkout. Data and
    other files beside the package do not count as changes.

    Args:
      package: folder of the package; None: this one.
    """
    package = package or pathlib.Path(__file__).resolve().parents[1]
    top = package.parent

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=top, capture_output=True, text=True, check=True).stdout.strip()

    try:
        described = tomllib.loads((top / "pyproject.toml").read_text(encoding="utf-8"))
        is_ours = described.get("project", {}).get("name", "").replace("-", "_") == "haksnet_jax"
        if not is_ours or pathlib.Path(git("rev-parse", "--show-toplevel")).resolve() != top:
            return "unknown"
        git("ls-files", "--error-unmatch", f"{package.name}/__init__.py")
        changed = git("status", "--porcelain", "--", package.name)
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, ValueError, subprocess.CalledProcessError):
        return "unknown"


_COUNTS = {"num_gts": "objects", "num_detections": "detections", "num_images": "images", "num_pixels": "pixels"}


def _cell(value):
    """A measure in percent, or a count."""
    return "" if value is None else f"{100 * value:.2f}" if isinstance(value, float) else str(value)


def _fact(name, value):
    if name.startswith("best_") and isinstance(value, float):
        return f"{100 * value:.2f} %"
    return value


def as_markdown(card: Mapping[str, Any]) -> str:
    """A result card as a readable page: measures in percent, facts that are not known left out.

    Args:
      card: dict with "facts" ({name: value}), and where the run was evaluated "mean" ({measure: value}) and "classes"
        ({class: {measure or count: value}}), as a task's result gives them.
    """
    lines = [f"# {card['facts']['config']}", "", "| | |", "|---|---|"]
    facts = {name: value for name, value in card["facts"].items() if name != "config" and value is not None}
    lines += [f"| {name.replace('_', ' ')} | {_fact(name, value)} |" for name, value in facts.items()]
    if "mean" in card:
        rows = {"**mean**": card["mean"], **card["classes"]}
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        lines += ["", "| class | " + " | ".join(_COUNTS.get(name, f"{name} %") for name in columns) + " |"]
        lines += ["|---|" + "---|" * len(columns)]
        lines += [f"| {name} | " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def write_result_card(workdir: str | os.PathLike[str], card: Mapping[str, Any]) -> None:
    """Writes `result.json` and `result.md`. Args: workdir; card, see `as_markdown`."""
    workdir = epath.Path(workdir)
    files.write_text(workdir / "result.json", json.dumps(card, indent=2) + "\n")
    files.write_text(workdir / "result.md", as_markdown(card))
