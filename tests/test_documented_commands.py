"""The commands of README and the guides: run here on small data, or named with what tests lack to run them."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import test_documentation

from haksnet_jax.cli import demo_files

ROOT = pathlib.Path(__file__).resolve().parents[1]
RUN = ("README.md", "docs/first_hour.md", "docs/own_data.md")  # pages whose commands are run, in their order
# Of the others, and of those pages: what a command's text has, and what is needed for it or which tests run its like.
NEEDS = {
    r"dota|tiles|records|submission|--protocol": "DOTA's archive; tests/cli and tests/preparation run their like",
    r"ssdd|hrsc|dior|fair1m|hrsid|ucas|levir|dubai|eurosat|imagenet|resisc": "a data set's release; tests/data",
    r"backbone|\.pth|pretrained|--init|init=|released|haks": "upstream's weights; tests/weights runs their like",
    r"--goldens": "the recordings of the reference; tests/tools/test_parity.py",
    r"^plan ": "the TPU compiler; tests/tools/test_plan.py",
    r"^benchmark": "minutes; tests/tools",
    r"^export": "minutes of compilation; tests/tools/test_export.py",
    r"--topology|BUCKET|srun|--coordinator|/shared": "several hosts or a bucket; tests/distributed",
    r"=DIR|=FILE|=PREPARED|=IMAGES|=LABELS|=RUN|=WORKDIR|[A-Z]{3,}_[A-Z]+": "what a reader has; tests/cli",
}
# Of runs that only show that a command works.
_MODEL = "model.channels=8,8,8,8 model.depths=1,1,1,1 model.mlp_ratios=2,2,2,2 model.fpn_channels=8 model.hidden=16"
_SMALL = (
    f"{_MODEL} model.dtype=float32 init= num_steps=2 log_every=1 batch_size_per_device=1 data.image_size=64,64 "
    "data.num_workers=0 rpn.candidates_per_level=16 rpn.max_proposals=16 evaluation.batch_size_per_device=1"
)
_OF_SCENES = "data.train.size=64 data.val.size=64 data.train.num_scenes=8 data.val.num_scenes=2"


def needed(words):
    """What tests lack to run a command, or None where they run it."""
    text = " ".join(words)
    return next((reason for pattern, reason in NEEDS.items() if re.search(pattern, text)), None)


@pytest.mark.parametrize("path", test_documentation.PAGES, ids=lambda path: path.name)
def test_every_command_is_run_or_named_as_one_that_is_not(path):
    if str(path.relative_to(ROOT)) in RUN:
        return
    others = [words for words in test_documentation.commands(path.read_text()) if words and not needed(words)]
    run = {words[0] for page in RUN for words in test_documentation.commands((ROOT / page).read_text()) if words}
    unknown = [words for words in others if words[0] not in run and words[0] in test_documentation.program.COMMANDS]
    assert not unknown, "neither run nor named: " + "; ".join(map(shlex.join, unknown))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as a reader has it: mydata/, and scenes of which one is georeferenced."""
    folder = tmp_path_factory.mktemp("reader")
    images, labels = demo_files.write_scenes(folder / "made", 6)
    for number, image in enumerate(sorted(images.iterdir())):
        split = folder / "mydata" / ("val" if number < 2 else "train")
        for name, path in (("images", image), ("labelTxt", labels / f"{image.stem}.txt")):
            (split / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, split / name)
    names = sorted({line.split()[8] for path in labels.iterdir() for line in path.read_text().splitlines()})
    (folder / "mydata" / "classes.txt").write_text("\n".join(names) + "\n")
    _write_yolo(folder / "mydata", folder / "yolo", names)
    rasterio = pytest.importorskip("rasterio")
    (folder / "scenes").mkdir()
    with rasterio.open(sorted(images.iterdir())[0]) as source:
        pixels = source.read()
    with rasterio.open(
        folder / "scenes" / "scene.tif", "w", driver="GTiff", count=3, height=192, width=192, dtype="uint8",
        crs="EPSG:32632", transform=rasterio.transform.from_origin(500000, 5000000, 1, 1),
    ) as file:  # fmt: skip
        file.write(pixels)
    return folder


def _write_yolo(source, target, names):
    """The same data as Ultralytics lays them out."""
    for path in sorted(source.glob("*/images/*")):
        split = path.parts[-3]
        for kind in ("images", "labels"):
            (target / kind / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / "images" / split)
        lines = []
        for line in (path.parents[1] / "labelTxt" / f"{path.stem}.txt").read_text().splitlines():
            words = line.split()
            shares = (f"{min(max(float(word) / 192, 0), 1):.6f}" for word in words[:8])
            lines.append(f"{names.index(words[8])} {' '.join(shares)}\n")
        (target / "labels" / split / f"{path.stem}.txt").write_text("".join(lines))
    (target / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\nnames: {json.dumps(names)}\n")


@pytest.mark.slow
@pytest.mark.documented
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_work_one_after_the_other(page, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "jax")
    ran = 0
    for words in test_documentation.commands((ROOT / page).read_text()):
        if not words or words[0] not in test_documentation.program.COMMANDS or needed(words):
            continue
        if words[0] == "train":
            words = [*words, "--set", *_SMALL.split(), *(_OF_SCENES.split() if "--config=demo" in words else ())]
        command = [sys.executable, "-m", "haksnet_jax", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=900)
        allowed = (0, 1) if words[0] == "doctor" else (0,)  # of a machine with problems
        assert done.returncode in allowed, f"{shlex.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        ran += 1
    assert ran


@pytest.mark.slow
@pytest.mark.documented
def test_the_notebook_runs(tmp_path):
    pytest.importorskip("rasterio")
    notebook = json.loads((ROOT / "examples" / "image_to_geojson.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "jax")
    command = [sys.executable, "-c", "\n".join(cells)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "objects on the ground" in done.stdout and (tmp_path / "found.png").stat().st_size > 1000
