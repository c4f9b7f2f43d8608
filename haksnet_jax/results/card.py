"""The result card of a run: what was measured, on what, with which code."""

import json
import pathlib
import subprocess

from etils import epath

from haksnet_jax import files


def code_version():
    """Commit of the checkout that runs, "-dirty" where it has changes, or "unknown" outside a checkout."""
    folder = pathlib.Path(__file__).parent

    def git(*arguments):
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def as_markdown(card):
    """A result card as a readable page.

    Args:
      card: dict with "facts" ({name: value}), and where the run was evaluated "mean" and "classes" as
        `MeanAveragePrecision.to_json` gives them.
    """
    lines = [f"# {card['facts']['config']}", "", "| | |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in card["facts"].items() if name != "config"]
    if "mean" in card:
        measures = list(card["mean"])
        lines += ["", "| class | " + " | ".join(measures) + " | objects | detections |"]
        lines += ["|---|" + "---|" * (len(measures) + 2)]
        rows = [("**mean**", card["mean"], "", "")]
        rows += [(name, row, row["num_gts"], row["num_detections"]) for name, row in card["classes"].items()]
        for name, row, num_gts, num_detections in rows:
            figures = ["" if row[measure] is None else f"{row[measure]:.4f}" for measure in measures]
            lines.append(f"| {name} | " + " | ".join(figures) + f" | {num_gts} | {num_detections} |")
    return "\n".join(lines) + "\n"


def write_result_card(workdir, card):
    """Writes `result.json` and `result.md`. Args: workdir; card, see `as_markdown`."""
    workdir = epath.Path(workdir)
    files.write_text(workdir / "result.json", json.dumps(card, indent=2) + "\n")
    files.write_text(workdir / "result.md", as_markdown(card))
