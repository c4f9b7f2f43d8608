"""Puts finished runs beside each other: a table in Markdown, and curves of all of them in one picture.

    python benchmarks/compare_runs.py RUN [RUN ...] [--figure=curves.png]

A run is a folder with `result.json` and `metrics.jsonl`: the working folder of a training, or what
`benchmarks/learn.py` kept of one, which also says what was changed on the command line. Runs that differ in nothing but
their seed are summed up in a row of means, with the least and the largest value.

Exit status: 0 done; 1 a folder holds no finished run.
"""

import argparse
import json
import pathlib
import shlex
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # the package of this checkout, installed or not

from haksnet_jax.results import diagrams

MEASURES = {"AP50_voc07": "AP50 (VOC07)", "AP50_voc12": "AP50 (VOC12)", "AP75_voc12": "AP75", "AP50:95": "AP50:95"}


def read_run(folder):
    """One run.

    Args:
      folder: see the module.

    Returns:
      {"name": configuration and what was changed of it, "facts": of the result card, "mean": average precision at the
      end, "records": lines of metrics.jsonl, "files": average precision of the predicted files or None}.

    Raises:
      ValueError: there is no finished, evaluated run.
    """
    folder = pathlib.Path(folder)
    for name in ("result.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: expected the folder of a finished run")
    card = json.loads((folder / "result.json").read_text())
    if "mean" not in card:
        raise ValueError(f"{folder}: the run was not evaluated, its result.json has no average precision")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    files = json.loads((folder / "scores.json").read_text())["mean"] if (folder / "scores.json").is_file() else None
    changes = []
    if (folder / "learn.json").is_file():
        changes = shlex.split(json.loads((folder / "learn.json").read_text())["arguments"])
    changes = [change for change in changes if not change.startswith(("--config=", "--config.seed="))]
    name = " ".join([card["facts"]["config"], *(change.removeprefix("--config.") for change in changes)])
    return {"name": name, "facts": card["facts"], "mean": card["mean"], "records": records, "files": files}


def best_evaluation(run):
    """(step, {measure: AP}) of the evaluation with the highest AP50, the first of equals."""
    evaluations = [record for record in run["records"] if "AP50_voc12" in record]
    best = max(evaluations, key=lambda record: record["AP50_voc12"])
    return best["step"], {name: best.get(name) for name in MEASURES}


def groups_of(runs):
    """Runs by what they share apart from the seed: a list of lists, in the order of the first of each."""
    groups = {}
    for run in runs:
        facts = run["facts"]
        key = (run["name"], *(facts[name] for name in ("steps", "global_batch", "commit", "hardware")))
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def table(runs):
    """Markdown: a row for each run, and one with the spread for each group of several seeds."""

    def cells(figures):
        return ["" if figures.get(name) is None else f"{figures[name]:.3f}" for name in MEASURES]

    head = ["run", "seed", "commit", "steps", "minutes", "images/s", *MEASURES.values(), "best (step)", "files, AP50"]
    rows = []
    for group in groups_of(runs):
        for run in group:
            facts, (step, best) = run["facts"], best_evaluation(run)
            files = "" if run["files"] is None else f"{run['files']['AP50_voc12']:.3f}"
            start = [facts[name] for name in ("seed", "commit", "steps", "minutes", "images_per_second")]
            rows.append([run["name"], *start, *cells(run["mean"]), f"{best['AP50_voc12']:.3f} ({step})", files])
        if len(group) > 1:
            spread = []
            for name in MEASURES:
                values = [run["mean"][name] for run in group]
                spread.append(f"**{sum(values) / len(values):.3f}** ({min(values):.3f} to {max(values):.3f})")
            start = [group[0]["name"], f"{len(group)} seeds", group[0]["facts"]["commit"], "", "", ""]
            rows.append([*start, *spread, "", ""])
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def figure(runs):
    """Losses and AP50 over the steps, a line for each run."""
    losses, scores = {}, {}
    for run in runs:
        name = f"{run['name']}, seed {run['facts']['seed']}"
        while name in losses:
            name += "'"
        for lines, key in ((losses, "loss"), (scores, "AP50_voc12")):
            points = [(record["step"], record[key]) for record in run["records"] if key in record]
            lines[name] = tuple(zip(*points, strict=True))
    return diagrams.training_figure(losses, scores)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--figure", help="file for the curves, .png, .svg or .pdf")
    arguments = parser.parse_args(argv)
    try:
        runs = [read_run(folder) for folder in arguments.runs]
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(table(runs))
    if arguments.figure:
        diagrams.save_figure(figure(runs), arguments.figure)


if __name__ == "__main__":
    main()
