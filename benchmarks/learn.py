"""Trains, predicts image files with what was trained, scores them: do the commands agree, and how long do they take?

    python benchmarks/learn.py --config=configs/ssdd.py --root=DIR --out=DIR [--config.seed=1 ...]

The root holds `val/images` and `val/labelTxt` in DOTA's format. `--out` receives the run (in `run/`, resumable), the
predictions, the scores, `learn.json` (seconds of each command, both average precisions and their difference), and
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

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # configs/ belongs to the checkout

# Fitted images go through float32 positions twice, and predictions are stored with few digits: a detection at a
# threshold may change sides.
TOLERANCE = 0.005
_TILE = 420  # pixels: side of an image in a sheet


def run(command):
    """Runs a command of the package. Returns: seconds; ends the program with the command's status if it fails."""
    print("+ " + " ".join(command), flush=True)
    start = time.perf_counter()
    status = subprocess.run([sys.executable, "-m", *command]).returncode
    if status:
        sys.exit(status)
    return round(time.perf_counter() - start, 1)


def write_sheet(path, images, columns=4):
    """Draws image files side by side. Args: path, a JPEG; images, at most 16 of them are shown; columns."""
    tiles = []
    for image in images[:16]:
        picture = cv2.imread(str(image))
        scale = _TILE / max(picture.shape[:2])
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        tile = np.full((_TILE, _TILE, 3), 255, np.uint8)
        tile[: picture.shape[0], : picture.shape[1]] = picture
        tiles.append(tile)
    if not tiles:
        return
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    cv2.imwrite(str(path), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 80])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="file of configs/ that trains on folders")
    parser.add_argument("--root", required=True, type=pathlib.Path, help="folder with train/ and val/")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder to write to")
    parser.add_argument("--precision", default="bfloat16", help="of predicting; as in training")
    arguments, overrides = parser.parse_known_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    config = importlib.import_module(".".join(pathlib.Path(arguments.config).with_suffix("").parts)).get_config()
    workdir, predictions, scores = out / "run", out / "predictions", out / "scores"
    images, labels = arguments.root / "val" / "images", arguments.root / "val" / "labelTxt"

    seconds = {}
    seconds["train"] = run(
        ["haksnet_jax.main", f"--config={arguments.config}", f"--config.data.root={arguments.root}"]
        + [f"--workdir={workdir}", *overrides]
    )
    seconds["predict"] = run(
        ["haksnet_jax.predict", f"--checkpoint={workdir}", f"--images={images}", f"--output={predictions}"]
        + ["--resize=fit", "--pad=full", f"--precision={arguments.precision}"]
        + [f"--score={config.detection.score_threshold}"]
    )
    seconds["evaluate"] = run(
        ["haksnet_jax.evaluate", f"--predictions={predictions / 'detections.json'}", f"--labels={labels}"]
        + [f"--images={images}", f"--json={out / 'scores.json'}", f"--output={scores}"]
    )

    trained = json.loads((workdir / "best" / "model.json").read_text())
    scored = json.loads((out / "scores.json").read_text())["mean"]
    differences = {name: scored[name] - trained[name] for name in scored if trained.get(name) is not None}
    report = {"seconds": seconds, "step": trained["step"], "files": scored, "differences": differences}
    (out / "learn.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))

    worst = sorted(path for path in scores.rglob("*") if "worst" in str(path) and path.suffix in (".png", ".jpg"))
    write_sheet(out / "worst.jpg", worst)
    drawn = sorted(path for path in (predictions / "drawings").rglob("*") if path.suffix in (".png", ".jpg"))
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
