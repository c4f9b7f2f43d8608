"""Tiles: windows, objects, coordinates, restarts, and everything that can be wrong with the input."""

import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib

import cv2
import numpy as np
import pytest
import shapely

from haksnet_jax.cli import program
from haksnet_jax.errors import UserError
from haksnet_jax.images import reader
from haksnet_jax.images import settings as image_settings
from haksnet_jax.images.headers import Header, read_header
from haksnet_jax.images.reader import ImageFile
from haksnet_jax.labels.classes import CLASSES
from haksnet_jax.pipeline import sources
from haksnet_jax.preparation import splitting, tiling, validation
from haksnet_jax.results import detections, formats, geojson

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = splitting.Parameters(tile=64, overlap=16)


def write_scene(folder, name, pixels, lines=None):
    """Writes an image and, unless None, its label lines; returns (folder of images, folder of labels)."""
    images, annotations = folder / "images", folder / "labelTxt"
    images.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(images / name), pixels)
    if lines is not None:
        annotations.mkdir(exist_ok=True)
        (annotations / f"{pathlib.Path(name).stem}.txt").write_text("".join(f"{line}\n" for line in lines))
    return images, annotations


def split(folder, output, parameters=SMALL, with_labels=True, **kwargs):
    """Cuts folder/images into output, in this process."""
    annotations = [folder / "labelTxt"] if with_labels else []
    return splitting.split([folder / "images"], annotations, output, parameters, num_workers=0, **kwargs)


def noise(rows, columns, channels=3, dtype=np.uint8, seed=0):
    high = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, high, (rows, columns, channels), dtype=dtype, endpoint=True)


@pytest.mark.parametrize("protocol, key", [("single_scale", "ss"), ("multi_scale", "ms")])
def test_tiles_and_labels_are_the_references(golden, tmp_path, protocol, key):
    fixture = golden("image_split").manifest
    for name, (width, height) in fixture["image_sizes_wh"].items():
        _, annotations = write_scene(tmp_path / "in", f"{name}.png", np.zeros((height, width), np.uint8), [])
        (annotations / f"{name}.txt").write_text(fixture["labels"][name])
    overlap, rates = splitting.PROTOCOLS[protocol]
    split(tmp_path / "in", tmp_path / "out", splitting.Parameters(overlap=overlap, rates=rates))
    windows = [window for found in fixture["expected"][key]["windows"].values() for window in found]
    assert {path.stem for path in (tmp_path / "out/images").iterdir()} == {window["id"] for window in windows}
    num_differ = 0
    for window in windows:
        lines = (tmp_path / f"out/labelTxt/{window['id']}.txt").read_text().splitlines()
        assert len(lines) == len(window["lines"]), window["id"]
        for ours, theirs, inside in zip(lines, window["lines"], window["inside_fraction"], strict=True):
            *our_numbers, our_class, our_difficulty = ours.split()
            *their_numbers, their_class, their_difficulty = theirs.split()
            # 1e-3: the reference writes float32, whose spacing at coordinates of thousands of pixels is 2e-4
            np.testing.assert_allclose(np.array(our_numbers, float), np.array(their_numbers, float), atol=1e-3)
            assert our_class == their_class
            if our_difficulty != their_difficulty:
                # the only difference: complete objects that the reference marks as truncated, through rounding
                num_differ += 1
                assert their_difficulty == "2"
                assert inside > 1 - 1e-6
    assert num_differ == fixture["expected"][key]["of_these_marked_2"]


def test_a_tile_is_the_window_of_the_image_padded_at_right_and_bottom(tmp_path):
    scene = noise(100, 50)
    write_scene(tmp_path, "a.png", scene, [])
    split(tmp_path, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out/images").iterdir())
    assert names == ["a__64__0___0.png", "a__64__0___36.png"]
    tile = cv2.imread(str(tmp_path / "out/images/a__64__0___36.png"))
    np.testing.assert_array_equal(tile[:, :50], scene[36:])
    np.testing.assert_array_equal(tile[:, 50:], np.broadcast_to(tiling.PADDING[::-1], (64, 14, 3)))
    assert (tmp_path / "out/labelTxt/a__64__0___0.txt").read_bytes() == b""


def test_inside_fractions_agree_with_shapely_one_by_one():
    rng = np.random.default_rng(3)
    centers, sizes = rng.uniform(0, 200, (40, 1, 2)), rng.uniform(2, 60, (40, 1, 2))
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    polygons = centers + corners * sizes + rng.uniform(-1, 1, (40, 4, 2))
    windows = np.array([[0, 0, 100, 100], [50, 50, 150, 150], [180, 0, 280, 100]])
    ours = tiling.inside_fractions(polygons, windows)
    for row, window in enumerate(windows.tolist()):
        for column, polygon in enumerate(polygons):
            shape = shapely.Polygon(polygon)
            expected = shape.intersection(shapely.box(*window)).area / shape.area
            # 1e-12: the same float64 areas, in another order of operations
            assert ours[row, column] == pytest.approx(expected, abs=1e-12)


def test_an_object_is_truncated_only_when_a_corner_is_outside(tmp_path):
    lines = [
        "0 0 64 0 64 64 0 64 plane 0",  # fills the tile exactly
        "10 10 66 10 66 20 10 20 ship 0",  # 54 of 56 columns are inside
        "20 30 84 30 84 40 20 40 ship 1",  # 44 and 36 of 64 columns: in neither tile
        "0.1 0.1 30.3 0.2 30.2 10.7 0.3 10.1 bridge 1",  # fractional, complete: keeps its difficulty
    ]
    write_scene(tmp_path, "a.png", noise(64, 112), lines)
    summary = split(tmp_path, tmp_path / "out")
    written = (tmp_path / "out/labelTxt/a__64__0___0.txt").read_text().splitlines()
    assert [line.split()[8:] for line in written] == [["plane", "0"], ["ship", "2"], ["bridge", "1"]]
    assert summary.num_truncated == 1
    assert [(p.reason, p.line) for p in summary.problems] == [("in_no_tile", 3)]
    assert not summary.lost


def test_resized_tiles_and_their_labels_have_the_side_of_a_tile(tmp_path):
    write_scene(tmp_path, "a.png", noise(128, 128), ["8 16 72 16 72 48 8 48 plane 0"])
    split(tmp_path, tmp_path / "out", splitting.Parameters(tile=64, overlap=16, rates=(0.5, 2.0), resize=True))
    for path in (tmp_path / "out/images").iterdir():
        assert cv2.imread(str(path)).shape == (64, 64, 3)
    # rate 0.5: the window is 128 wide, so half the coordinates
    assert (tmp_path / "out/labelTxt/a__128__0___0.txt").read_text() == "4 8 36 8 36 24 4 24 plane 0\n"


@pytest.mark.parametrize("channels, dtype", [(1, "uint8"), (4, "uint8"), (3, "uint16"), (1, "uint16")])
def test_channels_and_bits_stay(tmp_path, channels, dtype):
    scene = noise(40, 40, channels, np.dtype(dtype))
    write_scene(tmp_path, "a.png", scene)
    split(tmp_path, tmp_path / "out", with_labels=False)
    tile = cv2.imread(str(tmp_path / "out/images/a__64__0___0.png"), cv2.IMREAD_UNCHANGED).reshape(64, 64, channels)
    assert tile.dtype == scene.dtype
    np.testing.assert_array_equal(tile[:40, :40], scene)
    assert not tile[40:].any()  # zeros where the image is not of three 8-bit channels
    assert not (tmp_path / "out/labelTxt").exists()


@pytest.mark.parametrize("channels, dtype", [(2, "uint8"), (8, "uint16"), (3, "float32")])
def test_other_images_become_tiff_tiles(tmp_path, channels, dtype):
    rasterio = pytest.importorskip("rasterio")
    scene = noise(80, 64, channels).astype(dtype)
    (tmp_path / "images").mkdir()
    profile = {"driver": "GTiff", "height": 80, "width": 64, "count": channels, "dtype": dtype}
    with rasterio.open(tmp_path / "images/a.tif", "w", **profile) as file:
        file.write(np.moveaxis(scene, -1, 0))
    limits = image_settings.ImageSettings(limits=(0, 255)) if dtype == "float32" else image_settings.DEFAULT
    split(tmp_path, tmp_path / "out", SMALL._replace(images=limits), with_labels=False)
    with rasterio.open(tmp_path / "out/images/a__64__0___16.tif") as file:
        np.testing.assert_array_equal(np.moveaxis(file.read(), 0, -1), scene[16:])


def test_a_large_tiff_is_read_window_by_window(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    scene = noise(300, 200)
    profile = {"driver": "GTiff", "height": 300, "width": 200, "count": 3, "dtype": "uint8", "photometric": "rgb"}
    with rasterio.open(
        tmp_path / "a.tif", "w", BIGTIFF="YES", tiled=True, blockxsize=64, blockysize=64, **profile
    ) as f:
        f.write(np.moveaxis(scene, -1, 0))
    with ImageFile(tmp_path / "a.tif", whole_up_to=0) as image:
        assert image.header == Header("TIFF", 200, 300, 3, 8)
        assert (image.height, image.width) == (300, 200)
        np.testing.assert_array_equal(image.read(30, 40, 150, 260), scene[40:260, 30:150])


# What EXIF's definitions of 1 to 8 say of the stored rows, in words of numpy.
TURNS = (
    lambda a: a,
    np.fliplr,
    lambda a: np.rot90(a, 2),
    np.flipud,
    lambda a: a.swapaxes(0, 1),
    lambda a: np.rot90(a, -1),
    lambda a: np.rot90(a, 2).swapaxes(0, 1),
    np.rot90,
)


def oriented_file(path, pixels, orientation):
    """Writes BGR pixels, as stored, with an orientation tag."""
    tag = struct.pack("<HHIHH", 274, 3, 1, orientation, 0)
    exif = b"II*\0" + struct.pack("<IH", 8, 1) + tag + struct.pack("<I", 0)
    if path.suffix == ".tif":
        rows, columns = pixels.shape[:2]
        tags = [(256, columns), (257, rows), (258, 8), (259, 1), (262, 2), (273, 8), (274, orientation), (277, 3)]
        tags += [(278, rows), (279, pixels.size)]
        directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        data = b"II*\0" + struct.pack("<I", 8 + pixels.size) + pixels[..., ::-1].tobytes()
        path.write_bytes(data + struct.pack("<H", len(tags)) + directory + struct.pack("<I", 0))
        return
    data = cv2.imencode(path.suffix, pixels)[1].tobytes()
    if path.suffix == ".jpg":
        exif = b"Exif\0\0" + exif
        path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    else:
        chunk = b"eXIf" + exif
        chunk = struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(data[:33] + chunk + data[33:])  # after the header


@pytest.mark.parametrize("extension", [".jpg", ".png", ".tif"])
def test_orientation_tags_mean_the_same_when_cutting_training_and_predicting(tmp_path, extension):
    stored = cv2.resize(noise(5, 7, seed=3), (70, 50))  # smooth: JPEG changes it little
    (tmp_path / "images").mkdir()
    for orientation, turn in enumerate(TURNS, start=1):
        path = tmp_path / "images" / f"{orientation}{extension}"
        oriented_file(path, stored, orientation)
        turned = turn(stored)
        header = read_header(path)
        assert (header.height, header.width, header.orientation) == (*turned.shape[:2], orientation)
        training = reader.read(path)[..., ::-1]
        np.testing.assert_allclose(training, turned, atol=40 if extension == ".jpg" else 0)  # a wrong turn: 200
        for whole_up_to in (2**31, 0):
            with ImageFile(path, whole_up_to=whole_up_to) as image:
                np.testing.assert_array_equal(image.read(3, 5, 23, 31)[..., ::-1], training[5:31, 3:23])
    split(tmp_path, tmp_path / "out", with_labels=False)
    tile = cv2.imread(str(tmp_path / "out/images/6__64__0___6.png"))
    rotated = reader.read(tmp_path / f"images/6{extension}")[..., ::-1]
    np.testing.assert_array_equal(tile[:, :50], rotated[6:])
    report = validation.validate(tmp_path / "images")
    assert [problem.reason for problem in report.problems] == ["turned_image"] * 7 and not report.lost


def test_class_names_with_blanks_labels_without_difficulty_and_extra_columns_pass(tmp_path):
    lines = [
        "imagesource:GoogleEarth\r",
        "gsd:0.14\r",
        "1 1 20 1 20 20 1 20 Small Car 1\r",
        "1 1 20 1 20 30 1 30 ship\r",
        "1 1 20 1 20 40 1 40 plane 0 0.98 x\r",
    ]
    write_scene(tmp_path, "a.png", noise(64, 64), lines)
    summary = split(tmp_path, tmp_path / "out")
    expected = ["1 1 20 1 20 20 1 20 Small-Car 1", "1 1 20 1 20 30 1 30 ship 0", "1 1 20 1 20 40 1 40 plane 0"]
    assert (tmp_path / "out/labelTxt/a__64__0___0.txt").read_text().splitlines() == expected
    assert [(problem.line, problem.reason) for problem in summary.problems] == [(4, "no_difficulty")]


def test_bad_lines_and_files_are_named_and_the_rest_is_cut(tmp_path):
    images, annotations = write_scene(
        tmp_path,
        "good.jpg",
        noise(64, 64),
        [
            "1 1 20 1 20 20 1 20 ship 0",
            "1 1 20 1 20 twenty 1 20 ship 0",
            "5 5 5 5 5 5 5 5 ship 0",
            "1 1 20 20 20 1 1 20 ship 0",  # crossed
            "1 1 1 20 20 20 20 1 ship 0",  # the other way round
            "1 1 20 1 20 20 1 20 ship 0",  # duplicate
        ],
    )
    write_scene(tmp_path, "half.png", noise(64, 64), [])
    data = (images / "half.png").read_bytes()
    (images / "half.png").write_bytes(data[: len(data) // 2])
    write_scene(tmp_path, "text.png", noise(8, 8), [])
    (images / "text.png").write_text("no image")
    (images / "empty.png").write_bytes(b"")
    (annotations / "empty.txt").touch()
    write_scene(tmp_path, "unlabelled.png", noise(64, 64))
    (annotations / "orphan.txt").touch()
    (images / "wrong.png").write_bytes((images / "good.jpg").read_bytes())  # a JPEG by another name is no trouble
    (annotations / "wrong.txt").touch()
    summary = split(tmp_path, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out/images").iterdir()) == [
        "good__64__0___0.png",
        "wrong__64__0___0.png",
    ]
    found = {(pathlib.Path(p.path).name, p.line, p.reason) for p in summary.problems}
    assert found == {
        ("good.txt", 2, "bad_number"),
        ("good.txt", 3, "zero_area"),
        ("good.txt", 4, "crossed"),
        ("good.txt", 6, "duplicate"),
        ("half.png", 0, "truncated_image"),
        ("text.png", 0, "not_an_image"),
        ("empty.png", 0, "empty_image"),
        ("unlabelled.png", 0, "image_without_labels"),
        ("orphan.txt", 0, "labels_without_image"),
    }
    assert len(summary.lost) == 7  # all but the crossed and the duplicate one
    assert len((tmp_path / "out/labelTxt/good__64__0___0.txt").read_text().splitlines()) == 4
    assert (tmp_path / "out/split_problems.txt").read_text().count("\n") == len(summary.problems)


def test_windows_without_content_are_counted_and_left_out_by_choice(tmp_path):
    scene = np.zeros((64, 160, 3), np.uint8)  # windows at columns 0, 48 and 96
    scene[:, :64] = noise(64, 64)
    write_scene(tmp_path, "a.png", scene, ["10 10 20 10 20 20 10 20 ship 0"])
    write_scene(tmp_path, "b.png", scene, ["150 10 160 10 160 20 150 20 ship 0"])  # an object where nothing is seen
    summary = split(tmp_path, tmp_path / "all")
    assert (summary.num_tiles, summary.num_blank) == (6, 2)
    summary = split(tmp_path, tmp_path / "some", SMALL._replace(skip_blank=True))
    assert (summary.num_tiles, summary.num_blank, summary.num_written) == (5, 2, 2)


def test_a_second_start_does_only_what_is_missing(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        write_scene(tmp_path, f"{name}.png", noise(64, 64), ["1 1 20 1 20 20 1 20 ship 0"])
    cut = splitting.cut_image
    started = []

    def interrupted(job, *args):
        if len(started) == 2:
            raise KeyboardInterrupt
        started.append(job)
        return cut(job, *args)

    monkeypatch.setattr(splitting, "cut_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        split(tmp_path, tmp_path / "out")
    with open(tmp_path / "out/split_done.jsonl", "a") as file:
        file.write('{"image": "c.pn')  # as a crash leaves it
    (tmp_path / "out/images/.c__64__0___0.png.tmp").write_bytes(b"half")
    started.clear()
    summary = split(tmp_path, tmp_path / "out")
    assert len(started) == 1
    assert (summary.num_images, summary.num_tiles, summary.num_written) == (3, 3, 3)
    started.clear()
    # an image whose labels have changed is done again, the others are not
    (tmp_path / "labelTxt/b.txt").write_text("")
    summary = split(tmp_path, tmp_path / "out")
    assert [pathlib.Path(job.image).name for job in started] == ["b.png"]
    assert summary.num_written == 2
    assert sorted(os.listdir(tmp_path / "out/images")) == [f"{name}__64__0___0.png" for name in "abc"]


def test_a_log_gets_no_line_for_every_image(tmp_path, capsys):
    for name in "abc":
        write_scene(tmp_path, f"{name}.png", noise(40, 40), [])
    command = [f"--images={tmp_path / 'images'}", f"--output={tmp_path / 'out'}", "--tile=64", "--overlap=8"]
    assert program.main(["split", *command, "--workers=0", "--rates", "0.5,1", "2"]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 1
    parameters = json.loads((tmp_path / "out" / "split.json").read_text())
    assert parameters["rates"] == [0.5, 1, 2]
    assert program.main(["split", *command, "--rates=a"]) == 2
    assert "expected numbers separated by commas, got 'a'" in capsys.readouterr().err


def test_other_parameters_in_the_same_folder_are_refused(tmp_path):
    write_scene(tmp_path, "a.png", noise(64, 64), [])
    split(tmp_path, tmp_path / "out")
    with pytest.raises(splitting.SplitError, match="overlap was 16, is 8"):
        split(tmp_path, tmp_path / "out", SMALL._replace(overlap=8))


def test_an_output_folder_that_cannot_be_made_is_one_sentence(tmp_path, capsys):
    write_scene(tmp_path, "a.png", noise(64, 64))
    (tmp_path / "file").touch()
    arguments = ["--images", str(tmp_path / "images"), "--output", str(tmp_path / "file" / "out"), "--workers", "0"]
    assert program.main(["split", *arguments]) == 1
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: --output=")
    assert "\n" not in message


def test_a_full_disk_ends_the_run_and_leaves_no_half_files(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_scene(tmp_path, f"{name}.png", noise(64, 64), [])
    replace, calls = os.replace, []

    def full(source, target):
        calls.append(target)
        if len(calls) == 5:  # manifest, labels and image of the first, labels of the second, and then no space
            raise OSError(28, "No space left on device", str(target))
        return replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(splitting.SplitError, match=r"No space left on device\. 1 of 2 images are finished"):
        split(tmp_path, tmp_path / "out")
    assert len(os.listdir(tmp_path / "out/images")) == 1
    assert not list((tmp_path / "out").rglob("*.tmp"))
    monkeypatch.undo()
    assert split(tmp_path, tmp_path / "out").num_images == 2


def test_two_images_of_one_name_are_refused(tmp_path):
    write_scene(tmp_path, "a.png", noise(8, 8))
    write_scene(tmp_path, "a.jpg", noise(8, 8))
    with pytest.raises(splitting.SplitError, match="tiles of the same names"):
        split(tmp_path, tmp_path / "out", with_labels=False)


def test_worker_processes_write_what_one_process_writes_and_ctrl_c_is_resumed(tmp_path):
    for index in range(6):
        write_scene(tmp_path, f"{index}.png", noise(500, 500, seed=index), ["1 1 20 1 20 20 1 20 ship 0"])
    command = [sys.executable, "-m", "data.dota.split", "--images", tmp_path / "images", "--labels"]
    command += [tmp_path / "labelTxt", "--output", tmp_path / "out", "--tile=64", "--overlap=32", "--workers=2"]
    run = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **run)
    done = tmp_path / "out/split_done.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (done.exists() and done.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to every process
    output = process.communicate(timeout=60)[0]
    if process.returncode != 0:  # 0: a very fast machine had finished
        assert process.returncode == 130, output
        assert "the same command goes on" in output
        assert "Traceback" not in output
    finished = subprocess.run(command, timeout=120, **run)
    assert finished.returncode == 0, finished.stdout
    split(tmp_path, tmp_path / "single", SMALL._replace(overlap=32))
    for folder in ("images", "labelTxt"):
        one, other = tmp_path / "out" / folder, tmp_path / "single" / folder
        assert sorted(os.listdir(one)) == sorted(os.listdir(other))
        assert all((one / name).read_bytes() == (other / name).read_bytes() for name in os.listdir(one))
    entries = [json.loads(line) for line in done.read_text().splitlines()]
    assert sorted(entry["image"] for entry in entries) == [f"{index}.png" for index in range(6)]


def test_ctrl_c_does_not_break_into_the_start_of_workers(monkeypatch, tmp_path):
    """Another thread takes the signal, as those of numpy do: the mask of the main thread does not keep it off."""
    for index in range(3):
        write_scene(tmp_path, f"{index}.png", noise(80, 80, seed=index))
    started = []

    class Executor:  # starts nothing: a Ctrl-C comes while each job is handed over
        def __init__(self, *_, **__):
            pass

        def submit(self, *_):
            os.kill(os.getpid(), signal.SIGINT)
            taken.recv(1)  # a thread has it; Python runs the handler in this one next
            started.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
            return len(started)

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(splitting.concurrent.futures, "ProcessPoolExecutor", Executor)
    found, over = signal.signal(signal.SIGINT, signal.default_int_handler), threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    taken, wakes = socket.socketpair()
    taken.settimeout(30)  # (on a busy machine a thread may wait for its turn)
    wakes.setblocking(False)
    descriptor = signal.set_wakeup_fd(wakes.fileno())
    try:
        with pytest.raises(KeyboardInterrupt):
            splitting.split([tmp_path / "images"], [], tmp_path / "out", SMALL, num_workers=2)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, found)
        signal.set_wakeup_fd(descriptor)
        taken.close()
        wakes.close()
        over.set()
        thread.join()
    assert len(started) == 3  # all, and only then the interrupt
    assert all(signal.SIGINT in mask for mask in started)  # which workers inherit
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_tiles_bring_their_classes_along(tmp_path):
    write_scene(tmp_path / "train", "a.png", noise(64, 64), ["1 1 20 1 20 20 1 20 Small Car 0"])
    split(tmp_path / "train", tmp_path / "found")
    assert (tmp_path / "found/classes.txt").read_text() == "Small Car\n"
    (tmp_path / "classes.txt").write_text("plane\nSmall Car\n")
    split(tmp_path / "train", tmp_path / "listed")
    assert (tmp_path / "listed/classes.txt").read_text() == "plane\nSmall Car\n"
    split(tmp_path / "train", tmp_path / "named", classes_from="dota10")
    assert (tmp_path / "named/classes.txt").read_text().splitlines()[0] == "plane"
    # a class beyond the list passes, and training names it
    assert (tmp_path / "named/labelTxt/a__64__0___0.txt").read_text().split()[8] == "Small-Car"


def test_a_class_that_no_list_may_hold_is_named_and_not_written(tmp_path):
    write_scene(tmp_path, "a.png", noise(64, 64), ["1 1 20 1 20 20 1 20 sh\x07ip 0", "1 1 20 1 20 20 1 20 boat 0"])
    summary = split(tmp_path, tmp_path / "out")
    assert (tmp_path / "out/classes.txt").read_text() == "boat\n"  # every later command reads it
    assert [problem.reason for problem in summary.lost] == ["unknown_class"]


def test_published_classes_that_are_all_there_keep_their_order(tmp_path):
    lines = [f"{i} 1 {i + 9} 1 {i + 9} 9 {i} 9 {name} 0" for i, name in enumerate(sorted(CLASSES["dota10"]))]
    write_scene(tmp_path / "train", "a.png", noise(64, 64), lines)
    split(tmp_path / "train", tmp_path / "out")
    assert tuple((tmp_path / "out/classes.txt").read_text().splitlines()) == CLASSES["dota10"]


def test_other_label_formats_are_cut_alike(tmp_path):
    images, annotations = write_scene(tmp_path, "a.png", noise(100, 100), ["10 20 60 20 60 40 10 40 ship 0"])
    (tmp_path / "yolo").mkdir()
    (tmp_path / "yolo/a.txt").write_text("0 0.1 0.2 0.6 0.2 0.6 0.4 0.1 0.4\n")
    (tmp_path / "yolo/classes.txt").write_text("ship\n")
    outline = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [[10, 20, 60, 20, 60, 40, 10, 40]]}
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [outline]}
    (tmp_path / "coco.json").write_text(json.dumps(content | {"categories": [{"id": 3, "name": "ship"}]}))
    for format, labels in (("dota", annotations), ("yolo-obb", tmp_path / "yolo"), ("coco", tmp_path / "coco.json")):
        summary = splitting.split([images], [labels], tmp_path / format, SMALL, format=format, num_workers=0)
        assert (summary.num_objects, summary.lost) == (1, [])
        assert (tmp_path / format / "classes.txt").read_text() == "ship\n"
        for path in (tmp_path / "dota/labelTxt").iterdir():
            assert (tmp_path / format / "labelTxt" / path.name).read_text() == path.read_text()


def test_tiles_of_a_geotiff_keep_its_place(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    (tmp_path / "images").mkdir()
    profile = {"driver": "GTiff", "height": 100, "width": 80, "count": 3, "dtype": "uint8", "photometric": "rgb"}
    transform = rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000)
    with rasterio.open(tmp_path / "images/a.tif", "w", crs="EPSG:32632", transform=transform, **profile) as file:
        file.write(np.moveaxis(noise(100, 80), -1, 0))
    write_scene(tmp_path, "b.png", noise(64, 64))
    split(tmp_path, tmp_path / "out", with_labels=False)
    places = geojson.read_places(tmp_path / "out/images")
    assert list(places) == ["a"]
    assert places["a"].transform == (0.5, 0, 400_000, 0, -0.5, 5_000_000)
    assert places["a"].crs == rasterio.crs.CRS.from_epsg(32632)
    (tmp_path / "out/images/georeference.json").write_text('{"a": {"transform": [1, 2], "crs": null}}')
    with pytest.raises(UserError, match=r"georeference\.json is damaged"):
        geojson.read_places(tmp_path / "out/images")
    for crs in ("http://127.0.0.1:9/crs", str(tmp_path / "crs"), "EPSG:999999"):  # nothing that it names is opened
        text = json.dumps({"a": {"transform": [1, 0, 0, 0, 1, 0], "crs": crs}})
        (tmp_path / "out/images/georeference.json").write_text(text + " " * len(crs))
        with pytest.raises(UserError, match=r"georeference\.json: the coordinate system"):
            geojson.read_places(tmp_path / "out/images")


def test_unfinished_tiles_are_refused_until_the_same_command_completed_them(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_scene(tmp_path, f"{name}.png", noise(64, 64), ["1 1 20 1 20 20 1 20 ship 0"])
    cut = splitting.cut_image

    def stopped(job, *args):
        if job.image.endswith("b.png"):
            raise KeyboardInterrupt
        return cut(job, *args)

    monkeypatch.setattr(splitting, "cut_image", stopped)
    with pytest.raises(KeyboardInterrupt):
        split(tmp_path, tmp_path / "out")
    tiles = (tmp_path / "out/images", tmp_path / "out/labelTxt")
    for use in (
        lambda: validation.validate(*tiles),
        lambda: sources.FolderSource(*tiles, ("ship",)),
        lambda: splitting.split([tiles[0]], [tiles[1]], tmp_path / "again", SMALL, num_workers=0),
    ):
        with pytest.raises(UserError, match="these tiles are not complete"):
            use()
    monkeypatch.undo()
    split(tmp_path, tmp_path / "out")
    assert not validation.validate(*tiles).lost


def test_a_split_takes_no_label_for_a_file_of_another_image_and_names_case_and_hidden_files_alike(tmp_path):
    _, annotations = write_scene(tmp_path, "a.png", noise(64, 64), ["1 1 20 1 20 20 1 20 ship 0"])
    (annotations / "a.txt").rename(annotations / "a.TXT")
    (annotations / "._a.txt").write_bytes(b"\0\5\x16")
    (annotations / "classes.txt").write_text("ship\n")
    summary = split(tmp_path, tmp_path / "out")
    assert (summary.num_written, summary.problems) == (1, [])


def test_detections_on_tiles_of_a_geotiff_are_merged_into_the_geojson_of_the_scene(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    (tmp_path / "images").mkdir()
    profile = {"driver": "GTiff", "height": 128, "width": 128, "count": 3, "dtype": "uint8", "photometric": "rgb"}
    transform = rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000)
    with rasterio.open(tmp_path / "images/a.tif", "w", crs="EPSG:32632", transform=transform, **profile) as file:
        file.write(np.moveaxis(noise(128, 128), -1, 0))
    for name, resize in (("plain", False), ("resized", True)):
        parameters = SMALL._replace(rates=(0.5, 1.0), resize=resize)
        split(tmp_path, tmp_path / name, parameters, with_labels=False)
        boxes, images = {}, []
        for path in sorted((tmp_path / name / "images").glob("*.png")):
            window, x, y = (int(part) for part in path.stem.replace("___", "__").split("__")[1:])
            scale = 64 / window if resize else 1.0
            side = 64 if resize else window
            inside = x <= 50 <= x + window and y <= 60 <= y + window
            boxes[path] = np.array([[(50 - x) * scale, (60 - y) * scale, 20 * scale, 8 * scale, 0.3]][: int(inside)])
            scores, labels = np.full(int(inside), 0.9, np.float32), np.zeros(int(inside), np.int32)
            about = {"image": path.stem, "path": path, "size": (side, side)}
            images.append(detections.Detections(boxes[path].reshape(-1, 5), scores, labels, ("ship",), **about))
        assert sum(map(len, boxes.values())) > 1  # windows overlap: it is seen more than once
        (tmp_path / name / "found").mkdir()
        written = formats.write_geojson(tmp_path / name / "found", images, ("ship",))
        assert sorted(path.name for path in written.paths) == ["a.geojson", "a.wgs84.geojson"]
        (feature,) = json.loads((tmp_path / name / "found/geojson/a.geojson").read_text())["features"]
        middle = np.mean(feature["geometry"]["coordinates"][0][:4], axis=0)
        # 1e-3 m: boxes are float32, of 100 px
        np.testing.assert_allclose(middle, [400_000 + 0.5 * 50, 5_000_000 - 0.5 * 60], atol=1e-3)
        for path, found in boxes.items():
            place = geojson.read_georeference(path)[0]
            if len(found):
                ground = geojson.to_ground(found[:, None, :2], place)[0, 0]
                np.testing.assert_allclose(ground, middle, atol=1e-3)


def test_an_image_whose_labels_cannot_be_read_has_no_tiles_and_no_record(tmp_path):
    write_scene(tmp_path / "in/train", "good.png", noise(64, 64), ["1 1 20 1 20 20 1 20 ship 0"])
    _, annotations = write_scene(tmp_path / "in/train", "bad.png", noise(64, 64), [])
    (annotations / "bad.txt").write_bytes("1 1 20 1 20 20 1 20 ship 0".encode("utf-16"))
    summary = split(tmp_path / "in/train", tmp_path / "tiles")
    assert [problem.reason for problem in summary.lost] == ["bad_encoding"]
    assert os.listdir(tmp_path / "tiles/images") == ["good__64__0___0.png"]
    for options in ([], ["--as-dota"]):
        arguments = [
            "build",
            f"--source={tmp_path / 'in'}",
            f"--output={tmp_path / 'out'}",
            "--classes=dota10",
            *options,
        ]
        assert program.main(arguments) == 1
        assert program.main([*arguments, "--lossy"]) == 0
        if options:
            assert os.listdir(tmp_path / "out/train/images") == ["good.png"]
        else:
            assert sources.TfdsSource(tmp_path / "out", "train").image_ids == ["good"]
        shutil.rmtree(tmp_path / "out")
