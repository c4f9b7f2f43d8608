"""The command that evaluates: checkpoints on splits, and predictions in files."""

import json
import os

import cv2
import jax
import ml_collections
import numpy as np
import pytest
from bright_objects import CLASS_NAMES, save_tiny, scene, use_bright_objects

from haksnet_jax.cli import checkpoint_evaluation, evaluation, program, submission
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.errors import UserError
from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.labels.classes import CLASSES
from haksnet_jax.labels.dota import format_label_line
from haksnet_jax.results import dota, predictions
from haksnet_jax.weights import model_folder

OBJECTS = {
    "small": [(40, 40, 30, 10, 20), (80, 100, 24, 12, 0)],
    "large": [(40, 40, 30, 10, 20), (170, 60, 24, 12, 0), (128, 20, 20, 8, 90)],
}
SIZES = {"small": (128, 110), "large": (200, 240)}
FIGURES = ["AP50_voc07", "AP50_voc12", "AP75_voc12", "AP50:95"]


def polygons(objects):
    boxes = np.array(objects, np.float64)
    boxes[:, 4] = np.deg2rad(boxes[:, 4])
    return boxes_to_corners(boxes)


def write_labels(path, objects, *, class_name="plane", difficulty=0):
    lines = [format_label_line(polygon, class_name, difficulty) for polygon in polygons(objects)] if objects else []
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def data(tmp_path):
    """A folder with images/ and labels/."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name, objects in OBJECTS.items():
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), scene(*SIZES[name], objects))
        write_labels(tmp_path / "labels" / f"{name}.txt", objects)
    return tmp_path


def write_predictions(folder, objects_by_image, class_names=CLASS_NAMES):
    detections = {
        name: {
            "polygons": polygons(objects),
            "scores": np.linspace(0.9, 0.5, len(objects)),
            "labels": np.zeros(len(objects), int),
        }
        for name, objects in objects_by_image.items()
    }
    return dota.write_task1(folder, detections, class_names)


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of the command."""
    capsys.readouterr()
    status = program.main(["evaluate", *arguments])
    return (status, *capsys.readouterr())


# ----------------------------------------------------------------------------------------- files


def test_perfect_predictions_score_one(data, capsys):
    write_predictions(data / "task1", OBJECTS)
    status, out, _ = run(
        capsys, f"--predictions={data / 'task1'}", f"--labels={data / 'labels'}", f"--json={data / 'made' / 'r.json'}"
    )
    assert status == 0 and "plane" in out
    result = json.loads((data / "made" / "r.json").read_text())
    assert list(result) == ["mean", "classes"] and list(result["mean"]) == FIGURES
    assert list(result["classes"]) == list(CLASS_NAMES)
    assert list(result["classes"]["plane"]) == [*FIGURES, "num_gts", "num_detections"]
    # Coordinates in the files have one or two decimals, so that overlaps above 0.95 are not in doubt.
    assert all(result["mean"][name] == pytest.approx(1) for name in FIGURES)
    assert (result["classes"]["plane"]["num_gts"], result["classes"]["plane"]["num_detections"]) == (5, 5)
    assert result["classes"]["ship"]["AP50_voc12"] is None and result["classes"]["ship"]["num_gts"] == 0


def test_a_detections_json_is_read_too(data, capsys):
    box = [40, 40, 30, 10, float(np.deg2rad(20))]
    entry = {
        "image": "small.png",
        "width": 110,
        "height": 128,
        "detections": [{"label": "plane", "score": 0.5, "box": box}],
    }
    (data / "detections.json").write_text(json.dumps({"images": [entry]}))
    for source in (data / "detections.json", data):
        status, _, err = run(
            capsys, f"--predictions={source}", f"--labels={data / 'labels'}", f"--json={data / 'r.json'}"
        )
        assert status == 0 and "no predictions for 1 of 2 labelled images" in err
        # One of five objects: a recall of 0.2 at a precision of 1.
        assert json.loads((data / "r.json").read_text())["mean"]["AP50_voc12"] == pytest.approx(0.2)


def test_truncated_objects_are_ignored_on_request_only(data, capsys):
    write_predictions(data / "task1", {"large": OBJECTS["large"]})
    write_labels(data / "labels" / "small.txt", OBJECTS["small"], difficulty=2)
    command = (f"--predictions={data / 'task1'}", f"--labels={data / 'labels'}", f"--json={data / 'r.json'}")
    assert run(capsys, *command)[0] == 0
    assert json.loads((data / "r.json").read_text())["mean"]["AP50_voc12"] == pytest.approx(3 / 5)
    assert run(capsys, *command, "--ignore-truncated")[0] == 0
    assert json.loads((data / "r.json").read_text())["mean"]["AP50_voc12"] == pytest.approx(1)


def test_predictions_for_tiles_are_merged_for_labels_of_images(data, capsys):
    shifted = [(cx - 100, cy - 10, w, h, angle) for cx, cy, w, h, angle in OBJECTS["large"][1:]]
    tiles = {
        "large__128__0___0": OBJECTS["large"][:1],
        "large__128__100___10": shifted,
        "small__128__0___0": OBJECTS["small"],
    }
    write_predictions(data / "task1", tiles)
    status, _, err = run(
        capsys, f"--predictions={data / 'task1'}", f"--labels={data / 'labels'}", f"--json={data / 'r.json'}"
    )
    assert status == 0 and "merged the predictions for 3 tiles into 2 images" in err
    assert json.loads((data / "r.json").read_text())["mean"]["AP50_voc12"] == pytest.approx(1)


def test_classes_are_found_beside_the_predictions_or_among_the_published(data):
    write_predictions(data / "dota20", OBJECTS, CLASSES["dota20"])
    assert predictions.read(data / "dota20").class_names == CLASSES["dota20"]
    (data / "classes.txt").write_text("\n".join(("truck", *CLASSES["dota20"])))
    assert predictions.read(data / "dota20").class_names == ("truck", *CLASSES["dota20"])


def test_without_a_list_the_classes_of_files_and_labels_are_scored(data, capsys):
    write_predictions(data / "own", OBJECTS, ("plane", "Sea Plane"))
    write_labels(data / "labels" / "small.txt", OBJECTS["small"], class_name="tractor")
    command = (f"--predictions={data / 'own'}", f"--labels={data / 'labels'}", f"--json={data / 'r.json'}")
    assert run(capsys, *command)[0] == 0
    classes = json.loads((data / "r.json").read_text())["classes"]
    assert {name: one["num_gts"] for name, one in classes.items()} == {"plane": 3, "tractor": 2, "Sea-Plane": 0}


def test_curves_and_worst_images_are_drawn(data, capsys):
    write_predictions(data / "task1", {"large": OBJECTS["large"], "small": [(60, 60, 30, 10, 0)]})
    command = (f"--predictions={data / 'task1'}", f"--labels={data / 'labels'}", f"--output={data / 'report'}")
    status, _, err = run(capsys, *command)
    assert status == 0 and "1 of the worst images are not drawn: give their folder with --images" in err
    assert run(capsys, *command, f"--images={data / 'images'}")[0] == 0
    assert sorted(path.name for path in (data / "report").iterdir()) == [
        "confusion_matrix.png",
        "errors_by_size.png",
        "precision_recall.png",
        "worst",
    ]
    (worst,) = (data / "report" / "worst").iterdir()
    assert worst.name == "01_small_3_errors.jpg"  # one false, two missed
    assert cv2.imread(str(worst)).shape[1] == 110


def test_outputs_that_cannot_be_written_are_one_sentence(data, capsys):
    write_predictions(data / "task1", OBJECTS)
    (data / "file").write_text("")
    for flag in ("--json", "--output"):
        status, _, err = run(
            capsys, f"--predictions={data / 'task1'}", f"--labels={data / 'labels'}", f"{flag}={data / 'file' / 'x'}"
        )
        assert status == 1 and f"{flag}={data / 'file'}" in err and "a file has this name" in err


def test_a_checkpoints_worst_images_are_drawn(data):
    """What a checkpoint finds holds more than what files hold."""
    from haksnet_jax.results.mean_ap import mean_average_precision

    boxes = np.array(OBJECTS["large"], np.float64) + [60, 0, 0, 0, 0]
    found = {"boxes": boxes, "scores": np.full(3, 0.9), "labels": np.zeros(3, int), "size": (240, 200)}
    truth = {"polygons": polygons(OBJECTS["large"]), "labels": np.zeros(3, int), "difficulty": np.zeros(3, int)}
    detections, labels = {"large": found}, {"large": truth}
    result = mean_average_precision(detections, labels, CLASS_NAMES)
    picture = {"large": scene(*SIZES["large"], OBJECTS["large"])}.get
    assert not evaluation.write_report(
        data / "report", result, detections, labels, CLASS_NAMES, picture, score=0.3, num_worst=4
    )
    (drawn,) = (data / "report" / "worst").iterdir()
    assert drawn.name == "01_large_6_errors.jpg"  # three missed, three where nothing is


def test_large_worst_images_are_drawn_reduced(data, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "_PICTURE_SIDE", 64)
    write_predictions(data / "task1", {"small": [(60, 60, 30, 10, 0)]})
    command = (f"--predictions={data / 'task1'}", f"--labels={data / 'labels'}", f"--output={data / 'report'}")
    assert run(capsys, *command, f"--images={data / 'images'}")[0] == 0
    assert {cv2.imread(str(path)).shape[1] for path in (data / "report" / "worst").iterdir()} == {64, 55}


def test_what_is_wrong_with_files_is_told_in_a_sentence(data, capsys):
    write_predictions(data / "task1", OBJECTS)
    labels = f"--labels={data / 'labels'}"

    def error(*arguments):
        status, _, err = run(capsys, *arguments)
        assert status == 1 and "Traceback" not in err
        return err

    assert "no label file" in error(f"--predictions={data / 'task1'}", f"--labels={data / 'images'}")
    assert "neither" in error(f"--predictions={data / 'nowhere'}", labels, "--classes=dota10")
    assert "to be one of dota10" in error(f"--predictions={data / 'task1'}", labels, "--classes=dota99")
    assert "not one of the 1 classes" in error(f"--predictions={data / 'task1'}", labels, "--classes=ssdd")
    (data / "labels" / "small.txt").unlink()
    assert "small first" in error(f"--predictions={data / 'task1'}", labels)
    write_labels(data / "labels" / "small.txt", [])
    write_labels(data / "labels" / "large.txt", [])
    assert "nothing to score" in error(f"--predictions={data / 'task1'}", labels)
    with open(data / "task1" / "Task1_plane.txt", "a") as file:
        file.write("small 0.5 1 2 3\n")
    assert "Task1_plane.txt:6" in error(f"--predictions={data / 'task1'}", labels)
    for score in ("1.5", "-0.1", "99.8"):  # percents, for example: `submit` refuses the same
        write_predictions(data / "task1", OBJECTS)
        with open(data / "task1" / "Task1_plane.txt", "a") as file:
            file.write(f"small {score} 1 1 9 1 9 9 1 9\n")
        message = error(f"--predictions={data / 'task1'}", labels)
        assert "Task1_plane.txt:6" in message and f"a score in 0..1, found {score}" in message


def test_a_pipe_among_task1_files_is_named_and_not_waited_for(data, capsys):
    write_predictions(data / "task1", OBJECTS)
    (data / "task1" / "Task1_plane.txt").unlink()
    os.mkfifo(data / "task1" / "Task1_plane.txt")
    status, _, err = run(capsys, f"--predictions={data / 'task1'}", f"--labels={data / 'labels'}")
    assert status == 1 and "Task1_plane.txt" in err and "a pipe or a device" in err


def test_label_lines_that_do_not_count_are_named(data, capsys):
    write_predictions(data / "task1", OBJECTS)
    with open(data / "labels" / "small.txt", "a") as file:
        file.write("1 1 9 1 9 9 1 9 submarine 0\n")
    status, _, err = run(capsys, f"--predictions={data / 'task1'}", f"--labels={data / 'labels'}")
    assert status == 0 and "1 of 6 labels (16.7 %) are left out" in err and "submarine" in err and "small.txt:3" in err


def test_flags_that_do_not_go_together_are_wrong_use(data, capsys):
    for arguments in (
        [],
        ["--checkpoint=a", "--predictions=b"],
        ["--predictions=b"],
        ["--checkpoint=a", "--classes=b"],
    ):
        assert program.main(["evaluate", *arguments]) == 2


# ------------------------------------------------------------------------------------ checkpoints


@pytest.fixture
def tiny(tmp_path_factory, golden_file, monkeypatch):
    use_bright_objects(monkeypatch)
    monkeypatch.setattr("haksnet_jax.distributed.mesh.enable_compilation_cache", lambda: None)  # tests have their own
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return save_tiny(folder, golden_file("state_dict_tiny.json"), input_size=(128, 128))


def test_a_checkpoint_is_evaluated_on_a_folder(data, tiny, capsys):
    # One image is larger than the input, so windows are used; at a scale of 1 the stand-in's boxes are close.
    status, out, err = run(
        capsys, f"--checkpoint={tiny}", f"--images={data / 'images'}", f"--labels={data / 'labels'}",
        f"--json={data / 'r.json'}", f"--output={data / 'report'}",
    )  # fmt: skip
    assert status == 0, err
    plane = json.loads((data / "r.json").read_text())["classes"]["plane"]
    assert plane["AP50_voc12"] == pytest.approx(1) and plane["num_detections"] == 5
    # The same figures come out of the files that it wrote.
    again = run(capsys, f"--predictions={data / 'report' / 'task1'}", f"--labels={data / 'labels'}")[1]
    assert out.startswith(again)


def test_images_are_fitted_on_request(data, tiny, capsys):
    (data / "images" / "small.png").unlink()
    (data / "labels" / "small.txt").unlink()
    status, out, err = run(
        capsys, f"--checkpoint={tiny}", f"--images={data / 'images'}", f"--labels={data / 'labels'}", "--resize=fit"
    )
    assert status == 0, err
    # Reduced by 128 / 240 the stand-in's boxes are off by up to two pixels of the image: found at IoU 0.5 at best.
    assert "mean" in out


def test_fitted_images_are_padded_to_the_input_or_as_upstream_does(data, tmp_path, monkeypatch, capsys, golden_file):
    stand_in = use_bright_objects(monkeypatch)
    save_tiny(tmp_path / "square", golden_file("state_dict_tiny.json"), input_size=(128, 128))
    save_tiny(tmp_path / "oblong", golden_file("state_dict_tiny.json"), input_size=(64, 128))
    command = (f"--images={data / 'images'}", f"--labels={data / 'labels'}", "--resize=fit")
    # Images of 128 x 110 and 200 x 240: fitted into 128 x 128 they have 128 x 110 and 107 x 128 pixels, into an input
    # of 64 x 128, which stands where the image does, 74 x 64 and 64 x 77.
    for model, more, shapes in (
        ("square", (), {(128, 128)}),
        ("square", ("--pad=least",), {(128, 128)}),
        ("oblong", (), {(128, 64), (64, 128)}),
        ("oblong", ("--pad=least",), {(96, 64), (64, 96)}),
    ):
        stand_in.shapes.clear()
        assert run(capsys, f"--checkpoint={tmp_path / model}", *command, *more)[0] == 0
        assert {shape[1:3] for shape in stand_in.shapes} == shapes, (model, more)


def test_a_run_is_evaluated_on_its_own_split(data, tiny, capsys, tmp_path):
    workdir = tmp_path / "run"
    config = ml_collections.ConfigDict(
        {
            "data": {
                "kind": "folder",
                "root": str(data),
                "filter_empty": False,
                "min_side": 2.0,
                "train": {"images_dir": "nowhere", "labels_dir": "nowhere"},
                "val": {"images_dir": "images", "labels_dir": "labels"},
            },
            "rpn": {"candidates_per_level": 100, "max_proposals": 100, "iou_threshold": 0.8},
            "detection": {"score_threshold": 0.05, "iou_threshold": 0.1, "max_candidates": 512, "max_detections": 50},
        }
    )
    arrays, info = model_folder.load_model(tiny)
    workdir.mkdir()
    (workdir / "config.json").write_text(config.to_json())
    (workdir / "model.json").write_text(json.dumps(info))
    model_folder.save_model(workdir / "best", arrays, info)
    for folder in (workdir, workdir / "best"):
        status, out, err = run(capsys, f"--checkpoint={folder}")
        assert status == 0, err
        assert "2 images, 5 objects" in err and "plane" in out
    status, _, err = run(capsys, f"--checkpoint={workdir}", "--split=test")
    assert status == 1 and "train and val" in err
    status, _, err = run(capsys, f"--checkpoint={workdir}", "--split=train")
    assert status == 1 and "nowhere" in err


def test_a_checkpoint_without_labels_leads_to_a_submission(data, tiny, capsys):
    status, _, err = run(capsys, f"--checkpoint={tiny}", f"--images={data / 'images'}")
    assert status == 1 and "haksnet submit" in err
    status, _, err = run(capsys, f"--checkpoint={tiny}")
    assert status == 1 and "--images and --labels" in err
    status, _, err = run(capsys, f"--checkpoint={data / 'nowhere'}")
    assert status == 1 and "no such checkpoint" in err


def test_a_split_without_labels_gives_predictions_and_never_a_score_of_0(data, tiny, capsys, tmp_path):
    for path in (data / "labels").glob("*.txt"):
        path.write_text("")
    images = data / "images"
    records = tmp_path / "records"
    assert program.main(["build", f"--images={images}", "--split=test", "--classes=dota10", f"--output={records}"]) == 0
    split = (f"--checkpoint={tiny}", f"--dataset={records}", "--split=test")
    status, out, err = run(capsys, *split)
    assert status == 1 and "add --output=DIR" in err and "AP" not in out
    status, out, _ = run(capsys, *split, f"--output={tmp_path / 'out'}")
    assert status == 0 and "there is no score" in out and "AP" not in out
    zipped = tmp_path / "submission.zip"
    assert submission.submit(
        tmp_path / "out", zipped, CLASS_NAMES, test_images=[path.stem for path in images.iterdir()]
    )
    entries = json.loads((tmp_path / "out/detections.json").read_text())["images"]
    sizes = {one["image"]: (one["width"], one["height"]) for one in entries}
    assert sizes == {path.stem: cv2.imread(str(path)).shape[1::-1] for path in images.iterdir()}


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_scored(data, tiny, capsys):
    (data / "images" / "small.png").write_bytes(b"no image")
    status, out, err = run(capsys, f"--checkpoint={tiny}", f"--images={data / 'images'}", f"--labels={data / 'labels'}")
    assert status == 1 and "small.png: expected a PNG" in err
    assert err.splitlines()[-1] == "error: 1 image could not be read and not scored: small"
    assert "       3           3" in out  # the objects and detections of the other image


@pytest.mark.parametrize("resize", ["fit", "tile"])
def test_an_image_damaged_in_its_middle_is_named_and_the_others_are_scored(data, tiny, capsys, resize):
    path = data / "images" / "small.png"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF  # a byte of the compressed pixels: headers and end are as they were
    path.write_bytes(whole)
    command = (f"--checkpoint={tiny}", f"--images={data / 'images'}", f"--labels={data / 'labels'}")
    status, out, err = run(capsys, *command, f"--resize={resize}")
    assert status == 1 and "small.png" in err and "1 image could not be read and not scored: small" in err
    assert "       3           3" in out


def test_the_options_for_gpus_are_ones_that_this_release_of_jax_knows(monkeypatch):
    all_options = devices.detection_options, devices.training_options
    mesh = devices.data_mesh(jax.devices()[:1])
    assert [options(mesh) for options in all_options] == [None, None]  # on the CPUs of the tests
    monkeypatch.setattr(devices, "_platform", lambda mesh: "gpu")
    for options in all_options:
        # The CPU compiler takes the names and values of the other compilers' options, too, and refuses unknown ones.
        assert jax.jit(lambda x: x + 1, compiler_options=options(mesh))(1) == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c["detection"].update(score_threshold="0.05"), r"detection\.score_threshold is '0\.05', expected"),
        (lambda c: c["detection"].pop("max_detections"), r"detection\.max_detections is missing"),
        (lambda c: c["rpn"].update(max_proposals=0), r"rpn\.max_proposals is 0, expected a whole number"),
        (lambda c: c.update(data=[1]), r"data is a list of 1, expected an object"),
    ],
)
def test_a_configuration_of_a_run_that_cannot_be_one_is_one_sentence(change, expected, tmp_path):
    settings = {
        "detection": {"score_threshold": 0.05, "iou_threshold": 0.1, "max_detections": 100},
        "rpn": {"candidates_per_level": 200, "max_proposals": 200, "iou_threshold": 0.8},
        "data": {},
    }
    change(settings)
    (tmp_path / "best").mkdir()
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=rf"config\.json: {expected}"):
        checkpoint_evaluation.run_settings(tmp_path / "best")
