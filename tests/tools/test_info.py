"""What `info` says of each kind of path."""

import json

import numpy as np
import pytest

from haksnet_jax import demo
from haksnet_jax.cli import program
from haksnet_jax.errors import UserError
from haksnet_jax.tools import info


def test_a_model(capsys):
    assert program.main(["info", "demo"]) == 0
    out = capsys.readouterr().out
    assert "339,766" in out and "storage-tank" in out and "[192, 192]" in out  # as the run's result card says


def test_images_and_their_labels():
    facts = info.describe(demo.IMAGES)
    assert facts["what"] == "folder of 4 images" and facts["kinds"] == {"PNG, 3 bands of 8 bits": 4}
    facts = info.describe(next(demo.IMAGES.glob("*.png")))
    assert facts["size"].startswith("192 x 192") and facts["read as"] == "red, green, blue"
    facts = info.describe(demo.LABELS)
    lines = [line for path in demo.LABELS.glob("*.txt") for line in path.read_text().splitlines()]
    assert facts["objects"] == len(lines) and facts["classes"]["vehicle"] == sum("vehicle" in line for line in lines)


def test_a_georeferenced_image_has_its_place(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=4, height=8, width=16, dtype="uint16", nodata=0, crs="EPSG:32632",
        transform=rasterio.transform.from_origin(500000, 5000000, 10, 10),
    ) as file:  # fmt: skip
        file.write(np.ones((4, 8, 16), np.uint16))
    facts = info.describe(path)
    assert facts["coordinate system"] == "EPSG:32632" and facts["pixel"] == "10 x 10"
    assert facts["bits"].startswith("16") and facts["nodata"] == "0.0"
    assert facts["extent"] == "500000, 4.99992e+06, 500160, 5e+06"


def test_weights_of_pytorch(golden_file, capsys):
    path = golden_file("tiny_backbone_half.pth")
    assert program.main(["info", path, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["HAKSNet"] == "backbone alone" and facts["architecture"]["channels"] == "[8, 16, 24, 32]"
    assert "haksnet convert" in facts["next"]


@pytest.mark.parametrize("name", ["nowhere", "a.docx", "empty"])
def test_what_is_none_of_these_is_said(name, tmp_path):
    (tmp_path / "a.docx").write_text("a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name):
        info.describe(tmp_path / name)
