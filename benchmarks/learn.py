"""Trains, predicts image files with what was trained, scores them: do the commands agree, and how long do they take?

    python benchmarks/learn.py --config=configs/ssdd.py --root=DIR --out=DIR [--config.seed=1 ...]

The root holds `val/images` and `val/labelTxt` in DOTA's format. `--out` receives the run (in `run/`, resumable), the
predictions in bfloat16 and in float32, the scores, `learn.json` (seconds of each command, both average precisions and
their difference, how many detections of one precision have no counterpart in the other), and
`learn.tar.gz` with what one wants to keep of a machine that goes away: cards, curves, figures and two sheets of drawn
images, the worst ones and others. Exit status 1 if a command fails or the two AP50 differ by more than 0.005.
"""

import argparse
import importlib
import json
import pathlib
import subprocess
import sys
import tarfile
import time

import cv2
import numpy as np

from haksnet_jax.parity.rows import Found, Limits, match_boxes
from haksnet_jax.results.visualize import contact_sheet

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # configs/ belongs to the checkout

# Fitted images go through float32 positions twice, and predictions are stored with few digits: a detection at a
# threshold may change sides.
TOLERANCE = 0.005


def run(command):
    """Runs a command of the package. Returns: seconds; ends the program with the command's status if it fails."""
    print("+ " + " ".join(command), flush=True)
    start = time.perf_counter()
    status = subprocess.run([sys.executable, "-m", *command]).returncode
    if status:
        sys.exit(status)
    return round(time.perf_counter() - start, 1)


def without_counterpart(first, second, score=0.3):
    """Detections of one detections.json that have no counterpart in another: IoU above 0.95, scores within 0.02.

    Args:
      first, second: files, of the same images.
      score: lowest score of those of `first` that are looked for.

    Returns:
      (how many have none, how many were looked for).
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
        missing += len(match_boxes(ours, theirs, Limits(score=0.02, iou=0.95, pixels=0.0))[1])
        total += len(ours.boxes)
    return missing, total


def write_sheet(path, files):
    """Draws at most 16 image files side by side. Args: path, a JPEG; files."""
    pictures = [cv2.imread(str(file))[..., ::-1] for file in files[:16]]
    if pictures:
        sheet = contact_sheet(pictures, [file.stem for file in files[:16]], cell=420)
        cv2.imwrite(str(path), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="file of configs/ that trains on folders")
    parser.add_argument("--root", required=True, type=pathlib.Path, help="folder with train/ and val/")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder to write to")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"), help="of training")
    arguments, overrides = parser.parse_known_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    config = importlib.import_module(".".join(pathlib.Path(arguments.config).with_suffix("").parts)).get_config()
    workdir, scores = out / "run", out / "scores"
    images, labels = arguments.root / "val" / "images", arguments.root / "val" / "labelTxt"

    seconds = {}
    seconds["train"] = run(
        ["haksnet_jax.main", f"--config={arguments.config}", f"--config.data.root={arguments.root}"]
        + [f"--workdir={workdir}", *overrides]
    )
    by_precision = {}
    for precision in ("bfloat16", "float32"):
        folder = out / f"predictions_{precision}"
        by_precision[precision] = folder / "detections.json"
        seconds[f"predict_{precision}"] = run(
            ["haksnet_jax.predict", f"--checkpoint={workdir}", f"--images={images}", f"--output={folder}"]
            + ["--resize=fit", "--pad=full", f"--precision={precision}", f"--score={config.detection.score_threshold}"]
        )
    rounding = [
        dict(zip(("without_counterpart", "of"), without_counterpart(*files), strict=True))
        for files in (tuple(by_precision.values()), tuple(by_precision.values())[::-1])
    ]
    seconds["evaluate"] = run(
        ["haksnet_jax.evaluate", f"--predictions={by_precision[arguments.precision]}", f"--labels={labels}"]
        + [f"--images={images}", f"--json={out / 'scores.json'}", f"--output={scores}"]
    )

    trained = json.loads((workdir / "best" / "model.json").read_text())
    scored = json.loads((out / "scores.json").read_text())["mean"]
    differences = {name: scored[name] - trained[name] for name in scored if trained.get(name) is not None}
    report = {"seconds": seconds, "step": trained["step"], "files": scored, "differences": differences}
    report["bfloat16_and_float32"] = rounding
    (out / "learn.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))

    worst = sorted(path for path in scores.rglob("*") if "worst" in str(path) and path.suffix in (".png", ".jpg"))
    write_sheet(out / "worst.jpg", worst)
    drawn = sorted(
        path for path in (out / "predictions_float32" / "drawings").rglob("*") if path.suffix in (".png", ".jpg")
    )
    write_sheet(out / "others.jpg", drawn[:: max(1, len(drawn) // 16)])
    kept = [workdir / name for name in ("result.json", "result.md", "metrics.jsonl", "curves.png", "config.json")]
    kept += [out / name for name in ("scores.json", "learn.json", "worst.jpg", "others.jpg")]
    kept += [path for path in scores.iterdir() if path.is_file() and path.suffix == ".png"]
    with tarfile.open(out / "learn.tar.gz", "w:gz") as archive:
        for path in kept:
            if path.exists():
                archive.add(path, arcname=f"{out.name}/{path.name}")
    if abs(differences["AP50_voc12"]) > TOLERANCE:
        sys.exit(f"AP50 of the files differs from the training's by {differences['AP50_voc12']:.4f}")


if __name__ == "__main__":
    main()
