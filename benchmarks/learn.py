"""Trains, predicts the validation's image files with what was trained, and scores them. Do the commands agree?

    python benchmarks/learn.py --config=configs/ssdd.py --root=DIR --out=DIR [--config.seed=1 ...]

The configuration is one that reads folders; what else is given goes to the training command. The run itself (weights,
events, predictions) stays in --workdir. `--out` gets what one wants to keep of a machine that goes away, a few MB:

    result.json, result.md, metrics.jsonl, curves.png    of the training
    scores.json, precision_recall.png                    of the predicted files
    best.jpg, worst.jpg                                  images of the validation, drawn
    learn.json     arguments, seconds of each step, average precision in training beside that of the files

All of it is there before the last step, which predicts in the other precision too and counts the detections that have
no counterpart there. `python benchmarks/compare_runs.py` puts several such folders into one table.

Exit status: 0 done; 1 a command failed, or the AP50 of the files is not that of the training within 0.005.
"""

import argparse
import json
import math
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

import cv2
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # the package of this checkout, installed or not

from haksnet_jax import files
from haksnet_jax.cli.file_evaluation import evaluate_files
from haksnet_jax.results import detection_errors, dota, visualize
from haksnet_jax.tools.parity.detectors import ROUNDED_LIMITS, ROUNDED_SCORE
from haksnet_jax.tools.parity.rows import Found, match_boxes

# Training's evaluation looks at many images at once and `predict` at one: in bfloat16 other sums are rounded, and a
# detection at a threshold changes sides. One detection of 240 ships is 0.004.
TOLERANCE = 0.005
SHEET_BYTES = 1_000_000
SHEET_IMAGES, SHEET_COLUMNS, SHEET_CELL = 9, 3, 560


def run(command):
    """Runs a command of the package; ends this program with its status if it fails. Returns: seconds."""
    print("+ python -m " + " ".join(command), flush=True)
    start = time.perf_counter()
    search = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))
    status = subprocess.run([sys.executable, "-m", *command], env={**os.environ, "PYTHONPATH": search}).returncode
    if status:
        sys.exit(f"error: {command[0]} ended with status {status}")
    return round(time.perf_counter() - start, 1)


def run_settings(workdir):
    """What a finished run says of itself.

    Returns:
      dict: "images" and "labels", folders of the validation split; "score", the lowest one; "precision".
    """
    config = json.loads((workdir / "config.json").read_text())
    root, val = pathlib.Path(config["data"]["root"]), config["data"]["val"]
    return {
        "images": root / val["images_dir"],
        "labels": root / val["labels_dir"],
        "score": config["detection"]["score_threshold"],
        "precision": config["model"]["dtype"],
    }


def predict(workdir, settings, precision):
    """Predicts the validation's files as training evaluates them. Returns: (detections.json, seconds)."""
    folder = workdir / f"predictions_{precision}"
    seconds = run(
        ["haksnet_jax", "predict", f"--checkpoint={workdir}", f"--images={settings['images']}", f"--output={folder}"]
        + ["--resize=fit", "--pad=full", f"--precision={precision}", f"--score={settings['score']}", "--no-drawings"]
    )
    return folder / "detections.json", seconds


def compare(trained, scored):
    """Average precision of the training's evaluation beside that of the files.

    Args:
      trained, scored: {name: AP or None}.

    Returns:
      {name: {"training", "files", "difference", "equal_digits"}}: digits behind the point to which the two are equal,
      15 where there is no difference.
    """
    rows = {}
    for name, value in scored.items():
        if value is None or trained.get(name) is None:
            continue
        difference = value - trained[name]
        digits = 15 if difference == 0 else min(15, max(0, math.floor(-math.log10(abs(difference)))))
        rows[name] = {"training": trained[name], "files": value, "difference": difference, "equal_digits": digits}
    return rows


def without_counterpart(first, second, score=ROUNDED_SCORE):
    """Detections of one detections.json that have no counterpart in another, by the report on parity's limits.

    Args:
      first, second: files, of the same images.
      score: lowest score of those of `first` that are looked for.

    Returns:
      {"without_counterpart", "of"}: how many have none, how many were looked for.
    """
    found = []
    for path in (first, second):
        images = json.loads(path.read_text())["images"]
        found.append({image["image"]: image["detections"] for image in images})
    missing = total = 0
    for name, detections in found[0].items():
        ours, theirs = (
            Found(
                boxes=np.array([one["box"] for one in many], np.float64).reshape(-1, 5),
                scores=np.array([one["score"] for one in many]),
                labels=np.array([one["label"] for one in many], str),
            )
            for many in ([one for one in detections if one["score"] >= score], found[1][name])
        )
        missing += len(match_boxes(ours, theirs, ROUNDED_LIMITS)[1])
        total += len(ours.boxes)
    return {"without_counterpart": missing, "of": total}


def write_sheets(out, predictions, settings, class_names):
    """Draws `worst.jpg`, the images with most errors, and `best.jpg`, those with most objects among those with fewest.

    Args:
      out: folder.
      predictions: a detections.json.
      settings: of `run_settings`.
      class_names: the classes.
    """
    detections, labels, *_ = evaluate_files(predictions, settings["labels"], class_names)
    paths = {dota.image_stem(path.name): path for path in settings["images"].iterdir() if dota.is_image_file(path)}
    errors = dict.fromkeys(labels, 0)
    errors |= dict(detection_errors.analyse_errors(detections, labels, class_names).worst_images(len(labels)))
    objects = {name: len(one["labels"]) for name, one in labels.items()}
    nothing = {"boxes": np.zeros((0, 5)), "scores": np.zeros(0), "labels": np.zeros(0, int)}
    worst = sorted(errors, key=lambda name: (-errors[name], -objects[name]))
    best = sorted(errors, key=lambda name: (errors[name], -objects[name]))
    for file_name, names in (("worst.jpg", worst[:SHEET_IMAGES]), ("best.jpg", best[:SHEET_IMAGES])):
        drawn = [
            visualize.draw_comparison(
                cv2.imread(str(paths[name]))[..., ::-1],
                detections.get(name, nothing),
                labels[name],
                class_names,
                side=SHEET_CELL,
            )
            for name in names
        ]
        captions = [f"{name}: {objects[name]} labelled, {errors[name]} errors" for name in names]
        sheet = visualize.contact_sheet(drawn, captions, columns=SHEET_COLUMNS, cell=SHEET_CELL)
        for quality in (85, 70, 55, 40, 25):  # speckle does not compress well
            data = cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
            if len(data) <= SHEET_BYTES:
                break
        (out / file_name).write_bytes(data)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, help="file of configs/ that trains on folders")
    parser.add_argument("--root", required=True, type=pathlib.Path, help="folder that the data's paths are in")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for what is to be kept")
    parser.add_argument("--workdir", type=pathlib.Path, help="folder of the run; default: runs/NAME_OF_OUT")
    arguments, overrides = parser.parse_known_args(argv)
    out, workdir = arguments.out, arguments.workdir or pathlib.Path("runs") / arguments.out.resolve().name
    out.mkdir(parents=True, exist_ok=True)
    report = {"arguments": shlex.join([f"--config={arguments.config}", *overrides]), "seconds": {}}
    seconds = report["seconds"]

    seconds["train"] = run(
        ["haksnet_jax.main", f"--config={arguments.config}", f"--config.data.root={arguments.root}"]
        + [f"--workdir={workdir}", *overrides]
    )
    for name in ("result.json", "result.md", "metrics.jsonl", "curves.png"):
        shutil.copy(workdir / name, out)
    if not (workdir / "best" / "model.json").exists():
        sys.exit("error: the run kept no weights of a best evaluation; is config.eval_every 0?")
    settings = run_settings(workdir)
    predictions, seconds["predict"] = predict(workdir, settings, settings["precision"])
    scores = workdir / "scores"
    seconds["evaluate"] = run(
        ["haksnet_jax", "evaluate", f"--predictions={predictions}", f"--labels={settings['labels']}"]
        + [f"--json={out / 'scores.json'}", f"--output={scores}", "--worst=0"]
    )
    shutil.copy(scores / "precision_recall.png", out)
    best = json.loads((workdir / "best" / "model.json").read_text())
    report |= {"best_step": best["step"], "precision": settings["precision"]}
    report["average_precision"] = compare(best, json.loads((out / "scores.json").read_text())["mean"])
    write_sheets(out, predictions, settings, best["class_names"])
    files.write_text(out / "learn.json", json.dumps(report, indent=2) + "\n")
    for name, row in report["average_precision"].items():
        print(
            f"{name}: training {row['training']:.6f}, files {row['files']:.6f}, equal to {row['equal_digits']} digits"
        )

    other = "float32" if settings["precision"] == "bfloat16" else "bfloat16"
    others, seconds[f"predict_{other}"] = predict(workdir, settings, other)
    report["other_precision"] = {
        settings["precision"]: without_counterpart(predictions, others),
        other: without_counterpart(others, predictions),
    }
    files.write_text(out / "learn.json", json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    difference = report["average_precision"].get("AP50_voc12", {}).get("difference", 0.0)
    if abs(difference) > TOLERANCE:
        sys.exit(f"error: AP50 of the files differs from the training's by {difference:.4f}")


if __name__ == "__main__":
    main()
