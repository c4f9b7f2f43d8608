"""Bands of the training images in the configuration and in batches; images that cannot be read."""

import cv2
import detection_batches
import ml_collections
import numpy as np
import pytest

from haksnet_jax.errors import UserError
from haksnet_jax.images import settings as image_settings
from haksnet_jax.images.headers import ImageError
from haksnet_jax.images.settings import ImageSettings
from haksnet_jax.pipeline import bands
from haksnet_jax.pipeline.sources import FolderSource, TfdsSource

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
VALUES = (10, 20, 30, 40, 50)


def write_tiff(path, pixels):
    rows, columns, channels = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=columns, height=rows, count=channels, dtype=pixels.dtype
    ) as file:
        file.write(np.moveaxis(pixels, -1, 0))


@pytest.fixture
def folder(tmp_path):
    """Three images of five bands, band k half VALUES[k] and half VALUES[k] + 10."""
    pixels = np.broadcast_to(np.array(VALUES, np.uint8), (20, 30, 5)).copy()
    pixels[:10] += 10
    for index in range(3):
        write_tiff(tmp_path / f"{index}.tif", pixels)
    return tmp_path


def configuration(**data):
    config = ml_collections.ConfigDict()
    config.data = {"bands": (), "limits": (), "nodata": ml_collections.config_dict.placeholder(float)} | data
    config.model = {"in_channels": 3, "pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}
    return config.lock()


def test_means_of_chosen_bands_are_measured_or_those_kept_beside_the_images(folder):
    config = bands.completed(configuration(bands=(5, 1)), (folder,))
    assert config.model.in_channels == 2
    assert config.model.pixel_mean == (55.0, 15.0)
    assert config.model.pixel_std == (5.0, 5.0)
    assert bands.model_info(config) == {"images": {"bands": [5, 1]}}
    image_settings.write_folder(folder, ImageSettings(bands=(5, 1)), {"mean": [1.0, 2.0], "std": [3.0, 4.0]})
    kept = bands.completed(configuration(), (folder,))
    assert (kept.data.bands, kept.model.pixel_mean, kept.model.pixel_std) == ((5, 1), (1.0, 2.0), (3.0, 4.0))
    assert bands.completed(configuration()).model.pixel_mean == configuration().model.pixel_mean
    with pytest.raises(UserError, match=r"model\.pixel_mean.*each of the 2 bands, got 3"):
        bands.completed(configuration(bands=(5, 1)))
    for wrong, message in (((0,), "from 1"), (tuple(range(1, 18)), "1 to 16"), ((True,), "from 1")):
        with pytest.raises(UserError, match=rf"data\.bands: .*{message}"):
            bands.completed(configuration(bands=wrong))
    with pytest.raises(UserError, match=r"data\.limits: expected two numbers"):
        bands.completed(configuration(limits=(5.0, 5.0)))


def test_records_of_other_bands_are_refused(folder):
    image_settings.write_folder(folder, ImageSettings(bands=(1, 2, 3), limits=(0, 1023)))
    assert bands.completed(configuration(), records=folder).data.limits == (0.0, 1023.0)
    with pytest.raises(UserError, match=r"built with bands \(1, 2, 3\).*asks for bands \(3, 2, 1\)"):
        bands.completed(configuration(bands=(3, 2, 1)), records=folder)


def test_limits_hold_for_all_images_of_a_folder(tmp_path):
    for name, largest in (("dark", 300), ("bright", 2000)):
        write_tiff(tmp_path / f"{name}.tif", np.full((8, 8, 3), largest, np.uint16))
    write_tiff(tmp_path / "low.tif", np.full((8, 8, 3), 77, np.uint8))
    config = bands.completed(configuration(), (tmp_path,))
    assert config.data.limits == (0.0, 2047.0)
    source = FolderSource(tmp_path, None, ("ship",), image_settings=bands.settings_of(config))
    # 300 and 2000 of 2047, and 8 bits as they are
    assert [int(source[index]["image"].max()) for index in range(3)] == [249, 37, 77]


def test_batches_have_the_chosen_bands(folder):
    source = FolderSource(folder, None, ("ship",), image_settings=ImageSettings(bands=(5, 4, 3, 2, 1)))
    batch = next(iter(detection_batches.train_batches(source, batch_size=2, image_size=(32, 32), max_boxes=1, seed=0,
                                           rotation_probability=1.0)))  # fmt: skip
    assert batch["image"].shape == (2, 32, 32, 5)
    assert set(np.unique(batch["image"][..., 0])) >= {50, 60, 115}
    batches = list(detection_batches.evaluation_batches(source, batch_size=2, image_size=(32, 32)))
    assert [one["image"].shape for one in batches] == [(2, 32, 32, 5)] * 2
    assert batches[1]["image_index"].tolist() == [2, -1]


@pytest.fixture
def partly_bad(tmp_path):
    """Ten images: two cut short, one whose middle is damaged."""
    for index in range(10):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 30, 3), np.uint8)
        data = cv2.imencode(".png", pixels)[1].tobytes()
        if index in (3, 4):
            data = data[:-60]
        if index == 5:
            data = data[:60] + bytes(200) + data[260:]
        (tmp_path / f"{index}.png").write_bytes(data)
    return tmp_path


def test_bad_images_are_named_at_the_start_and_refused(partly_bad):
    source = FolderSource(partly_bad, None, ("ship",))
    with pytest.raises(UserError, match=r"2 of 10 images cannot be read.*\n  .*3\.png: .*truncated.*\n.*4\.png"):
        source.check_images(bad_images="refuse")


def test_bad_images_of_a_validation_split_are_passed_over(partly_bad):
    source = FolderSource(partly_bad, None, ("ship",))
    source.check_images(bad_images="leave_out")
    assert source.image_ids == ["0", "1", "2", "5", "6", "7", "8", "9"]
    assert "unreadable_image: 2" in source.summary()
    assert source[7]["image_id"] == "9"


def test_bad_images_are_replaced_and_counted(partly_bad):
    source = FolderSource(partly_bad, None, ("ship",))
    settings = {"batch_size": 1, "image_size": (32, 32), "max_boxes": 1, "seed": 0, "num_epochs": 1}
    with pytest.raises(ImageError, match=r"[345]\.png"):
        list(detection_batches.train_batches(source, **settings))
    batches = list(detection_batches.train_batches(source, replace_bad=True, **settings))
    assert sum(int(one["num_replaced"][0]) for one in batches) == 3
    assert not {int(one["image_index"][0]) for one in batches} & {3, 4, 5}
    again = detection_batches.train_batches(source, replace_bad=True, first_example=4, **settings)
    assert next(again)["image_index"] == batches[4]["image_index"]


@pytest.mark.parametrize("chosen", [None, (5, 4, 1, 2, 3), (4,), (3, 2, 1)])
def test_records_hold_the_pixels_that_the_folder_shows(tmp_path, chosen):
    from haksnet_jax.cli import program

    images, labels = tmp_path / "train/images", tmp_path / "train/labelTxt"
    images.mkdir(parents=True)
    labels.mkdir()
    for index, largest in enumerate((500, 2000)):  # 9 and 11 bits: one choice of 11 for both
        pixels = np.random.default_rng(index).integers(0, largest, (20, 30, 5)).astype(np.uint16)
        write_tiff(images / f"{index}.tif", pixels)
        (labels / f"{index}.txt").write_text("2 2 9 2 9 9 2 9 ship 0\n")
    (tmp_path / "classes.txt").write_text("ship\n")
    options = [] if chosen is None else ["--bands=" + ",".join(map(str, chosen))]
    output = tmp_path / "records"
    assert program.main(["build", f"--source={tmp_path}", f"--classes={tmp_path / 'classes.txt'}",
                         f"--output={output}", *options]) == 0  # fmt: skip
    records = TfdsSource(output, "train")
    folder = FolderSource(images, labels, ("ship",), image_settings=ImageSettings(bands=chosen))
    assert records.image_settings == folder.image_settings == ImageSettings(chosen, (0.0, 2047.0))
    assert sorted(records.image_ids) == ["0", "1"]
    for index, name in enumerate(records.image_ids):
        np.testing.assert_array_equal(records[index]["image"], folder[int(name)]["image"])
    config = bands.completed(configuration(), records=output)
    assert config.model.in_channels == records.num_channels == len(chosen or (1, 2, 3))
    batch = next(iter(detection_batches.train_batches(records, batch_size=1, image_size=(32, 32), max_boxes=1, seed=0)))
    assert batch["image"].shape == (1, 32, 32, records.num_channels)


def test_validate_measures_the_bands_and_training_finds_them(folder, capsys):
    from haksnet_jax.cli import program

    assert program.main(["validate", f"--images={folder}", "--bands=3,2,1", "--keep"]) == 0
    assert "means of the bands: 35.0, 25.0, 15.0" in capsys.readouterr().out
    config = bands.completed(configuration(), (folder,))
    assert (config.data.bands, config.model.pixel_mean) == ((3, 2, 1), (35.0, 25.0, 15.0))
    assert config.model.pixel_std == (5.0, 5.0, 5.0)


BAD_SETTINGS = ("{", "[]", '{"bands": {}}', '{"bands": [1], "mean": ["a"]}', '{"std": [-1]}', '{"limits": [5, 1]}')
BAD_SETTINGS += ("[" * 9999,)


@pytest.mark.parametrize("text", BAD_SETTINGS)
def test_damaged_settings_beside_images_are_one_sentence(folder, text):
    (folder / image_settings.FILE).write_text(text)
    with pytest.raises(UserError, match=r"image_settings\.json"):
        bands.completed(configuration(), (folder,))
