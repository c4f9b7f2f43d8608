"""What newcomers type by mistake, and the sentence that answers it. A test for each kind that was seen.

Mistakes that need a training or a long run have their tests beside what answers them: in tests/training another model,
data set or class order when a run is resumed, and Ctrl-C while a step is compiled; in tests/labels and
tests/cli/test_evaluate labels of unknown classes; in tests/inference drawings that an earlier run left.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import mistakes
import pytest
from mistakes import answered

from haksnet_jax.cli import program

ROOT = pathlib.Path(__file__).resolve().parents[2]
PREDICT = ("predict", "--checkpoint=demo", "--images=demo", "--output=found")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder to stand in, see `mistakes.write_files`."""
    monkeypatch.chdir(tmp_path)
    mistakes.write_files(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True, scope="module")
def models(tmp_path_factory):
    """{name: folder of a run} of the other tasks."""
    place = tmp_path_factory.mktemp("models")
    names = {"SEGMENTER": "demo_segmentation", "CHANGE": "demo_change", "CLASSIFIER": "demo_classification"}
    for name, config in names.items():
        mistakes.write_model(place / name, config)
    return place


@pytest.mark.parametrize(
    ("words", "status", "parts"),
    [
        # A checkpoint that is none: where one comes from.
        (("predict", "--checkpoint=NOWHERE", "--images=a.png", "--output=found"), 1,
         ("NOWHERE", "no such checkpoint folder", "runs/NAME", "haksnet convert", "demo")),
        (("predict", "--checkpoint=weights.pth", "--images=a.png", "--output=found"), 1,
         ("weights.pth", "no such file", "haksnet convert --input=FILE --output=DIR")),
        (("predict", "--checkpoint=model.safetensors", "--images=a.png", "--output=found"), 1,
         ("model.safetensors is a file", "haksnet convert --input=model.safetensors --output=DIR")),
        (("evaluate", "--checkpoint=run"), 1, ("run",)),
        (("predict", "--checkpoint=run", "--images=a.png", "--output=found"), 1, ("run",)),
        # Options: before anything is loaded.
        ((*PREDICT, "--scales=0"), 2, ("--scales: expected factors between 0.05 and 20", "'0'")),
        ((*PREDICT, "--score=30"), 2, ("--score: expected a number", "0.3 for 30 %", "'30'")),
        (("predict", "--checkpoint=demo", "--image=a.png", "--output=found"), 2, ("--image", "meant is --images?")),
        ((*PREDICT, "--scales=0.5", "1", "--scale", "2"), 2, ("unknown option --scale", "--scales")),
        (("predict",), 2, ("required: --checkpoint, --output",)),
        # Images that are none.
        (("predict", "--checkpoint=demo", "--images=nowhere.png", "--output=found"), 1, ("nowhere.png",)),
        (("predict", "--checkpoint=demo", "--images=https://host/a.jpg", "--output=found"), 1,
         ("https://host/a.jpg", "download")),
        # Training.
        (("train",), 2, ("--config=demo", "dota_ss_t", "haksnet train --help")),
        (("train", "--config=dmeo"), 1, ("meant is demo?", "there are")),
        (("train", "elsewhere/demo.py"), 1, ("elsewhere/demo.py", "no such file, looked for from")),
        (("train", "--config=demo", "--config.data.image_size=256"), 1, ("data.image_size", "'(192, 192)'", "'256'")),
        (("train", "--config=demo", "--config.optimizer.learningrate=1e-3"), 1, ("meant is optimizer.learning_rate?",)),
        (("train", "--config=demo", "--config.num_stpes=1"), 1, ("meant is num_steps",)),
        (("train", "--config=demo", "--config.model.dtype=bf16"), 1, ("bfloat16", "model.dtype")),
        (("train", "--config=demo", "--config.model.dtype=float16"), 1, ("float32 or bfloat16", "model.dtype")),
        (("train", "--config=demo", "--set", "data.kind"), 2, ("expected KEY=VALUE", "'data.kind'")),
        (("train", "--config=demo", "--set", "data.train=x"), 1, ("data.train: is a group", "data.train.num_scenes")),
        (("train", "--config=demo", "--workdir=/proc/run"), 1, ("--workdir=/proc/run", "cannot be written to")),
        (("train", "--config=demo", "--config=demo", "demo"), 2, ("expected one configuration",)),
        (("train", "--config=demo", "--resume=maybe"), 2, ("--resume", "maybe")),
        (("train", "--config=demo", "--num-hosts=0"), 2, ("--num-hosts: expected a whole number of at least 1",)),
        # Other commands.
        (("submit",), 2, ("required: --predictions, --output", "haksnet submit --help")),
        (("plan", "--config=demo"), 2, ("v5e:16x16", "h100:8")),
        (("plan", "--topology=v5e:2x2"), 2, ("--config=demo",)),
        (("plan", "--config=demo", "--topology=h100"), 1, ("--topology=h100",)),
        (("evaluate",), 2, ("--checkpoint=DIR or --predictions=PATH",)),
        (("evaluate", "--predictions=found"), 2, ("--predictions needs --labels",)),
        (("evaluate", "--predictions=nowhere", "--labels=yolo"), 1, ("nowhere",)),
        (("validate", "--image=images"), 2, ("meant is --images?",)),
        (("validate", "--images=nowhere"), 1, ("nowhere",)),
        (("validate", "--images=images", "--labels=nowhere"), 1, ("nowhere",)),
        (("validate", "--images=images", "--labels=yolo", "--classes=nothing"), 1, ("nothing", "dota10")),
        (("split", "--images=nowhere", "--output=tiles"), 1, ("nowhere",)),
        (("split", "--images=images", "--output=tiles", "--tile=64"), 2, ("--tile above --overlap", "64", "200")),
        (("split", "--images=images", "--output=tiles", "--protocol=multi"), 2, ("multi_scale",)),
        (("build", "--output=records"), 2, ("either --source or --images",)),
        (("build", "--source=nowhere", "--output=records"), 1, ("nowhere",)),
        (("build", "ssdd", "--output=records"), 2, ("expected --source",)),
        (("build", "sdd", "--output=records"), 2, ("ssdd",)),
        (("convert", "--input=nowhere.pth", "--output=x"), 1, ("nowhere.pth",)),
        (("convert", "--input=a.png", "--output=x"), 1, ("a.png", "neither a file of torch.save nor safetensors")),
        (("convert", "--input=a.png"), 2, ("either --output=DIR or --to=FILE",)),
        (("info", "nowhere"), 1, ("nowhere", "no such file or folder")),
        (("info", "notimage.png"), 1, ("notimage.png",)),
        (("parity",), 2, ("required: --goldens",)),
        (("parity", "--goldens=yolo"), 1, ("yolo", "no fixture")),
        (("benchmark", "--batch=0"), 2, ("--batch: expected a whole number of at least 1",)),
        (("doctor", "now"), 2, ("unexpected argument 'now'",)),
        (("detect", "a.png"), 2, ("'detect' is no command", "meant is predict?")),
        # What users of other programs type.
        (("train", "data=data.yaml", "model=best.pt"), 2, ("'model=best.pt'; meant is --set init=DIR?",)),
        (("train", "data=data.yaml"), 2, ("unexpected argument 'data=data.yaml'", "--set data.root=DIR")),
        (("train", "--config=folder", "--set", "data.root=classes.txt"), 1, ("is a file", "unpack", "format=yolo-obb")),
        (("train", "--config=folder", "--data=d.yaml"), 2, ("unknown option --data; meant is --set data.root=DIR?",)),
        (("train", "--config=folder", "--epochs=10"), 2, ("--epochs; meant is --set num_epochs=N?",)),
        (("train", "--config=folder", "--batch-size=4"), 2, ("meant is --set batch_size_per_device=N?",)),
        (("train", "--config=folder", "--lr=1e-3"), 2, ("meant is --set optimizer.learning_rate=X?",)),
        (("train", "--config=folder", "--device=cpu"), 2, ("--device; meant is JAX_PLATFORMS=cpu",)),
        (("train", "--config=folder", "--work-dir=x"), 2, ("--work-dir; meant is --workdir?",)),
        (("train", "--config=folder", "--cfg-options", "a=1"), 2, ("--cfg-options; meant is --set KEY=VALUE?",)),
        (("train", "--config=folder", "--set", "lr=0.1"), 1, ("meant is optimizer.learning_rate?",)),
        (("train", "--config=folder", "--set", "epochs=3"), 1, ("meant is num_epochs?",)),
        (("train", "--config=folder", "--set", "imgsz=640"), 1, ("meant is data.image_size?",)),
        (("train", "--config=folder", "--set", "batch=4"), 1, ("meant is batch_size_per_device?",)),
        (("predict", "--checkpoint=demo", "--source=images", "--output=o"), 2, ("--source; meant is --images?",)),
        (("predict", "--weights=best.pt", "--images=a.png", "--output=o"), 2, ("--weights; meant is --checkpoint?",)),
        (("predict", "--model=demo", "--images=a.png", "--output=o"), 2, ("--model; meant is --checkpoint?",)),
        ((*PREDICT, "--conf=0.5"), 2, ("--conf; meant is --score?",)),
        ((*PREDICT, "--conf_thres=0.5"), 2, ("--conf_thres; meant is --score?",)),
        ((*PREDICT, "--imgsz=640"), 2, ("--imgsz; meant is --tile?",)),
        ((*PREDICT, "--half"), 2, ("--half; meant is --precision=bfloat16?",)),
        ((*PREDICT, "--device=cuda:0"), 2, ("--device; meant is JAX_PLATFORMS=cpu or CUDA_VISIBLE_DEVICES=0",)),
        (("predict", "--checkpoint=demo", "--images=images", "--save-dir=o"), 2, ("meant is --output?",)),
        (("predict", "source=images"), 2, ("required: --checkpoint, --output",)),
        ((*PREDICT, "--save-txt"), 2, ("--save-txt; meant is --format=labels?",)),
        (("evaluate", "--checkpoint=demo", "--data=d.yaml"), 2, ("--data; meant is --images and --labels?",)),
        (("validate", "--data=d.yaml"), 2, ("--data; meant is --images and --labels?",)),
        ((*PREDICT, "--data=d.yaml"), 2, ("--data; meant is --images?",)),
        (("convert", "--input=a.pth", "--format=onnx"), 2, ("--format; meant is haksnet export --to?",)),
        (("convert", "--weights=a.pth", "--output=x"), 2, ("--weights; meant is --input?",)),
        (("convert", "--ckpt=a.pth", "--output=x"), 2, ("--ckpt; meant is --input?",)),
        (("export", "--checkpoint=demo", "--output=m.onnx", "--half"), 2, ("the precision of the checkpoint",)),
        (("benchmark", "--half"), 2, ("--half; meant is --dtype=bfloat16?",)),
        (("validate", "--images=images", "--labels=yolo", "--format=yolo"), 1, ("meant is yolo-obb?",)),
        (("validate", "--images=classes"), 1, ("Found no images in classes", "some in classes/ship")),
        (("export", "--checkpoint=demo", "--output=m.onnx", "--format=onnx"), 2, ("--format; meant is --to?",)),
        (("export", "--checkpoint=demo", "--output=m.onnx", "--imgsz=640"), 2, ("--imgsz; meant is --size?",)),
        (("export", "--checkpoint=demo", "--output=m.engine"), 1, ("m.engine: .engine is not written", "TensorRT")),
        (("export", "--checkpoint=demo", "--output=m.tflite"), 1, (".tflite is not written", ".onnx")),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_it_is_answered_in_a_sentence(words, status, parts, capsys):
    answered(capsys, words, status, *parts)


@pytest.mark.parametrize("command", ["evaluate", "report", "validate", "split"])
def test_the_format_of_labels_is_not_taken_for_that_of_predictions(command, capsys):
    """`--save-txt` is predict's; --format of these says how label files are read."""
    assert program.main([command, "--save-txt"]) == 2
    assert "--format=labels" not in capsys.readouterr().err


E = "--images=empty"
OUT = "--output=found"
SEGMENTER, CHANGE, CLASSIFIER = "--checkpoint=SEGMENTER", "--checkpoint=CHANGE", "--checkpoint=CLASSIFIER"
OF_DETECTOR = ("evaluate", "--checkpoint=demo", "--images=images", "--labels=labelTxt")


@pytest.mark.parametrize(
    ("words", "status", "parts"),
    [
        # Predicting.
        ((*PREDICT[:2], OUT), 2, ("a detector takes --images=PATH",)),
        (("predict", "--images=demo", OUT), 2, ("required: --checkpoint",)),
        ((*PREDICT[:2], E, OUT), 1, ("no images in empty", ".png", ".tif")),
        ((*PREDICT[:2], "--images=empty.png", OUT), 1, ("none of 1 image",)),
        ((*PREDICT[:2], "--images=yolo", OUT), 1, ("no images in yolo",)),
        ((*PREDICT[:3], "--output=a.png"), 1, ("--output=a.png", "a file has this name", "name a folder")),
        ((*PREDICT[:3], "--output=a.png/found"), 1, ("--output=a.png/found", "a file has this name")),
        ((*PREDICT[:3], "--output=/proc/found"), 1, ("--output=/proc/found", "name a folder on a disk")),
        (("predict", "--checkpoint=a.png", "--images=a.png", OUT), 1, ("a.png is a file", "a run's folder")),
        (("predict", "--checkpoint=SEGMENTER/config.json", "--images=a.png", OUT), 1,
         ("config.json is a file", "meant is", "SEGMENTER")),
        (("predict", "--checkpoint=empty", "--images=a.png", OUT), 1, ("empty: expected a run's folder",)),
        ((*PREDICT, "--precision=float16"), 2, ("'float16'", "'float32', 'bfloat16'")),
        ((*PREDICT, "--classes=car"), 1, ("car is not among the model's classes", "plane, ship")),
        ((*PREDICT, "--score=high"), 2, ("--score: expected a number above 0 and at most 1", "'high'")),
        ((*PREDICT, "--iou=1.5"), 2, ("--iou", "at most 1", "'1.5'")),
        ((*PREDICT, "--tile=256", "--overlap=300"), 1, ("overlap: expected less than the tile of 256, got 300",)),
        ((*PREDICT, "--tile=100"), 1, ("tile: expected a multiple of 32, got 100",)),
        ((*PREDICT, "--tile=0"), 2, ("--tile: expected a whole number of at least 1",)),
        ((*PREDICT, "--batch-size=two"), 2, ("--batch-size: expected a whole number", "'two'")),
        ((*PREDICT, "--format=shapefile"), 1, ("task1, geojson, gpkg", "shapefile")),
        ((*PREDICT, "--resize=crop"), 2, ("'auto', 'fit', 'tile'", "'crop'")),
        ((*PREDICT, "--bands=4,3,2"), 1, ("none of 4 images",)),
        ((*PREDICT, "--bands=0,1,2"), 1, ("bands: expected numbers from 1", "'0'")),
        ((*PREDICT, "--bands=red"), 1, ("--bands names 1 band and the model was trained on 3",)),
        ((*PREDICT, "--before=A", "--after=B"), 2, ("--before and --after are for change detectors",)),
        # Predicting with models of the other tasks.
        (("predict", SEGMENTER, "--before=A", "--after=B", OUT), 1, ("segments single images", "--images=PATH")),
        (("predict", SEGMENTER, OUT), 1, ("segments single images", "--images=PATH")),
        (("predict", SEGMENTER, E, OUT), 1, ("no images in empty",)),
        (("predict", SEGMENTER, "--images=notimage.png", OUT), 1, ("none of 1 image", "no result")),
        (("predict", SEGMENTER, "--images=nowhere", OUT), 1, ("nowhere is neither a file, nor a folder",)),
        (("predict", SEGMENTER, "--images=a.png", OUT, "--tile=100"), 1, ("tile: expected a multiple of 32, 64",)),
        (("predict", SEGMENTER, "--images=a.png", OUT, "--overlap=500"), 1, ("overlap: expected 0 to 96", "500")),
        (("predict", SEGMENTER, "--images=a.png", "--output=a.png"), 1, ("--output=a.png", "a file has this name")),
        (("predict", CHANGE, "--images=a.png", OUT), 1, ("--before=PATH and --after=PATH",)),
        (("predict", CHANGE, "--before=A", OUT), 1, ("--before=PATH and --after=PATH",)),
        (("predict", CHANGE, "--before=A", "--after=B", OUT), 1, ("2 images of A and B without a partner", "one in A")),
        (("predict", CHANGE, "--before=A", "--after=B/two.png", OUT), 1, ("expected two files or two folders",)),
        (("predict", CHANGE, "--before=A/one.png", "--after=no.png", OUT), 1, ("no.png: there is no such file",)),
        (("predict", CHANGE, "--before=empty", "--after=empty", OUT), 1, ("no images in empty",)),
        (("predict", CLASSIFIER, OUT), 1, ("classifies images: name them with --images=PATH",)),
        (("predict", CLASSIFIER, "--images=notimage.png", OUT), 1, ("none of 1 image", "no result")),
        (("predict", CLASSIFIER, "--images=a.png", "--output=a.png"), 1, ("--output=a.png", "a file has this name")),
        # Evaluating.
        (("evaluate", "--checkpoint=demo"), 1, ("does not say what it was validated on", "--images and --labels")),
        (("evaluate", "--checkpoint=demo", "--images=demo"), 1, ("expected both --images and --labels",)),
        (("evaluate", "--checkpoint=demo", E, "--labels=labelTxt"), 1, ("no images in empty",)),
        (("evaluate", "--checkpoint=demo", "--images=images", "--labels=empty"), 1,
         ("empty holds no labels for any of the 1 image of images", ".txt")),
        ((*OF_DETECTOR, "--format=coco"), 1, ("labelTxt: expected coco labels in files .json",)),
        ((*OF_DETECTOR, "--format=voc"), 1, ("rolabelimg", "'voc'")),
        ((*OF_DETECTOR[:3], "--labels=yolo"), 1, ("look like YOLO-OBB lines", "--format=yolo-obb")),
        ((*OF_DETECTOR[:3], "--masks=masks"), 2, ("--masks", "a detector is scored with --labels")),
        ((*OF_DETECTOR, "--split=tset"), 2, ("--split belongs to --dataset",)),
        ((*OF_DETECTOR, "--json=/proc/x.json"), 1, ("--json=/proc/x.json cannot be written",)),
        ((*OF_DETECTOR, "--json=images"), 1, ("--json=images is a folder: name a file",)),
        ((*OF_DETECTOR, "--output=a.png"), 1, ("--output=a.png", "a file has this name")),
        ((*OF_DETECTOR[:2], "--dataset=images"), 1, ("no prepared data set 'images'", "dataset_info.json")),
        (("evaluate", "--checkpoint=demo", "--predictions=found"), 2, ("either --checkpoint=DIR or --predictions",)),
        (("evaluate", "--predictions=broken.json", "--labels=labelTxt"), 1, ("broken.json:1: not valid JSON",)),
        (("evaluate", "--predictions=list.json", "--labels=labelTxt"), 1, ("list of 0", "`haksnet predict` writes it")),
        (("evaluate", "--predictions=empty", "--labels=labelTxt"), 1, ("neither a detections.json nor a folder",)),
        (("evaluate", "--predictions=a.png", "--labels=labelTxt"), 1, ("a.png is not valid JSON",)),
        (("evaluate", SEGMENTER, "--images=images"), 1,
         ("a model of segmentation: expected --images=DIR and --masks=DIR", "got --images")),
        (("evaluate", SEGMENTER, "--images=images", "--labels=labelTxt"), 1, ("got --images, --labels",)),
        (("evaluate", SEGMENTER, "--images=images", "--masks=empty"), 1, ("empty holds no file of masks",)),
        (("evaluate", SEGMENTER, "--images=images", "--masks=nowhere"), 1, ("nowhere does not exist, looked for",)),
        (("evaluate", SEGMENTER, "--images=images", "--masks=masks"), 1,
         ("36864 pixels have values that are no class: 77", "data.mask_values")),
        (("evaluate", SEGMENTER, "--split=test"), 1, ("the splits train and val, got 'test'",)),
        (("evaluate", SEGMENTER, "--scales=0"), 2, ("--scales: expected factors between 0.05 and 20",)),
        (("evaluate", SEGMENTER, "--overlap=4000"), 1, ("overlap: expected 0 to 96",)),
        (("evaluate", CHANGE, "--before=A", "--after=B", "--masks=masks"), 1, ("/A has a mask of its name in",)),
        (("evaluate", CHANGE, "--before=A", "--after=B"), 1, ("--masks=DIR", "got --before, --after")),
        (("evaluate", CLASSIFIER, "--images=images"), 1, ("one folder of images for each class",)),
        (("evaluate", CLASSIFIER, "--images=images", "--labels=labelTxt"), 1, ("one folder a class",)),
        (("evaluate", CLASSIFIER, "--images=classes"), 1, ("no folder for 'building', 'storage-tank', 'vehicle'",)),
        (("evaluate", CLASSIFIER, "--masks=masks"), 1, ("a classifier's labels are the folders",)),
        # Reports.
        (("report",), 2, ("either --checkpoint=DIR or --predictions=PATH",)),
        (("report", "--predictions=found"), 2, ("--predictions needs --labels",)),
        (("report", "--checkpoint=nowhere"), 1, ("nowhere: no such checkpoint folder",)),
        (("report", "--checkpoint=demo", "--compare=SEGMENTER"), 1, ("of detection", "of segmentation", "one task")),
        (("report", SEGMENTER, "--labels=labelTxt"), 1, ("a model of segmentation, whose examples are --images=DIR",)),
        (("report", SEGMENTER, "--output=images"), 1, ("--output=images is a folder: name a file",)),
        (("report", CHANGE, "--split=tests"), 1, ("train and val, got 'tests'",)),
        (("report", "--checkpoint=demo", "--score=30"), 2, ("--score", "0.3 for 30 %")),
        (("report", "--checkpoint=demo", "--masks=masks"), 1, ("--masks", "--labels=DIR")),
        (("report", "--checkpoint=demo", "--num-images=-1"), 2, ("--num-images: expected a whole number",)),
    ],
    ids=lambda value: " ".join(value)[:70] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_a_model_that_is_used_wrongly_is_answered_in_a_sentence(words, status, parts, capsys, models):
    placed = [re.sub("=(SEGMENTER|CHANGE|CLASSIFIER)", rf"={models}/\1", word) for word in words]
    answered(capsys, placed, status, *parts)


DEMO = ("train", "--config=demo", "--set")


@pytest.mark.parametrize(
    ("words", "status", "parts"),
    [
        (("train", "--config=folder", "--set", "data.root=nowhere"), 1, ("data.root=nowhere: there is no such",)),
        (("train", "--config=folder", "--set", "data.root=a.png"), 1, ("data.root=a.png: is a file",)),
        (("train", "--config=folder", "--set", "data.root=images"), 1, ("images/classes.txt", "data.class_names")),
        (("train", "--config=segmentation_folder", "--set", "data.root=images"), 1, ("palette.txt", "classes.txt")),
        (("train", "--config=change_folder", "--set", "data.root=images"), 1,
         ("folder of images images/train/A does not exist", "data.root")),
        (("train", "--config=classification_folder", "--set", "data.root=images"), 1, ("images/train", "each class")),
        (("train", "--config=bad.py"), 1, ("--config=bad.py: line 1 is no Python",)),
        (("train", "--config=none.py"), 1, ("--config=none.py: expected a function get_config()", "folder.py")),
        (("train", "--config=raises.py"), 1, ("--config=raises.py: it fails in line 2", "ZeroDivisionError")),
        (("train", "--config=classes.txt"), 1, ("such as folder, or a Python file, FILE.py", "--set data.root=DIR")),
        (("train", "--config=imagenet"), 1, ("meant is imagenet_",)),
        (("train", "--confg=demo"), 2, ("unknown option --confg; meant is --config?",)),
        (("train", "--config=demo", "--host=3"), 1, ("--coordinator=ADDRESS:PORT", "--host=0..N-1")),
        (("train", "--config=demo", "--workdir=a.png"), 1, ("--workdir=a.png cannot be written to",)),
        (("train", "--config=demo", "--workdir"), 2, ("--workdir: expected one argument",)),
        (("train", "--config=demo", "--set"), 2, ("--set: expected at least one argument",)),
        ((*DEMO, "=3"), 1, ("--set: expected KEY=VALUE, got '=3'",)),
        ((*DEMO, "num_steps="), 1, ("num_steps: expected a whole number, got ''",)),
        ((*DEMO, "num_steps=many"), 1, ("num_steps: expected a whole number, got 'many'",)),
        ((*DEMO, "num_steps=1.5"), 1, ("num_steps: expected a whole number, got '1.5'",)),
        ((*DEMO, "num_steps=-1"), 1, ("num_steps: expected a number above 0, got -1",)),
        ((*DEMO, "batch_size_per_device=0"), 1, ("batch_size_per_device: expected at least 1",)),
        ((*DEMO, "data.kind=folders"), 1, ("data.kind: expected folder or tfds or scenes", "meant is folder?")),
        ((*DEMO, "task=detect"), 1, ("detection, segmentation, change, classification", "'detect'")),
        ((*DEMO, "model.backbone=resnet51"), 1, ("model.backbone", "resnet_50", "'resnet51'")),
        ((*DEMO, "pretrained=nowhere"), 1, ("nowhere: no such checkpoint folder",)),
        ((*DEMO, "optimizer.learning_rate=fast"), 1, ("optimizer.learning_rate: expected a number, got 'fast'",)),
        ((*DEMO, "optimizer.schedule=cosin"), 1, ("meant is cosine?",)),
        ((*DEMO, "optimizer.lr_scaling=square"), 1, ("linear or sqrt or none",)),
        ((*DEMO, "data.image_size=(250,250)"), 1, ("expected multiples of 32 above 0, got (250, 250)",)),
        ((*DEMO, "data.image_size=(0,0)"), 1, ("expected multiples of 32 above 0, got (0, 0)",)),
        ((*DEMO, "mesh.fsdp=3"), 1, ("mesh.fsdp: expected a divisor of the", "got 3")),
        ((*DEMO, "data.stall_seconds=0"), 1, ("data.stall_seconds: expected a time above 0",)),
        ((*DEMO, "log_every=0"), 1, ("log_every: expected at least 1",)),
        ((*DEMO, "eval_every=-5"), 1, ("eval_every: expected a number of steps, or 0 for never",)),
        (("train", "--config=demo_segmentation", "--set", "model.decoder=unet"), 1, ("unetformer, upernet", "'unet'")),
        (("train", "--config=demo_segmentation", "--set", "evaluation.overlap=500"), 1, ("evaluation.tile=192", "500")),
        (("train", "--config=demo_segmentation", "--set", "data.image_size=(100,100)"), 1, ("multiples of 32, 64 or",)),
        (("train", "--config=demo_segmentation", "--set", "evaluation.scales=()"), 1, ("at least one factor",)),
        (("train", "--config=demo_segmentation", "--set", "evaluation.left_out=sea"), 1, ("sea not among",)),
        (("train", "--config=demo_segmentation", "--set", "augment.horizontal_flip=2"), 1, ("a probability, got 2",)),
        (("train", "--config=demo_change", "--set", "model.head=siamese"), 1, ("difference, exchange", "'siamese'")),
        (("train", "--config=demo_change", "--set", "augment.exchange=2"), 1, ("augment.exchange: expected a prob",)),
        (("train", "--config=demo_classification", "--set", "data.image_size=(16,16)"), 1, ("at least 32 pixels",)),
        (("train", "--config=demo_classification", "--set", "evaluation.num_views=3"), 1, ("expected 1, 2 or 8",)),
        (("train", "--config=demo_classification", "--set", "augment.crop_scale=(0.9,0.1)"), 1, ("0 < from <= to",)),
    ],
    ids=lambda value: " ".join(value)[:70] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_a_training_that_cannot_begin_says_why(words, status, parts, capsys):
    answered(capsys, words, status, *parts)


@pytest.mark.parametrize(
    ("words", "status", "parts"),
    [
        (("validate",), 2, ("expected --images=DIR, or --before=DIR",)),
        (("validate", E), 1, ("no images in empty",)),
        (("validate", "--images=a.png"), 1, ("a folder of images at a.png, found a file",)),
        (("validate", "--images=images", "--labels=labelTxt", "--format=pascal"), 1, ("labelme", "'pascal'")),
        (("validate", "--images=images", "--labels=a.png"), 1, ("a.png: expected a folder with a label file",)),
        (("validate", "--images=images", "--labels=labelTxt", "--classes=twice.txt"), 1, ("ship is there twice",)),
        (("validate", "--images=images", "--labels=labelTxt", "--classes=blank.txt"), 1, ("it names none",)),
        (("validate", "--images=images", "--labels=labelTxt", "--masks=masks"), 2, ("--labels and --masks",)),
        (("validate", "--images=images", "--masks=empty"), 1, ("empty holds no file ending in",)),
        (("validate", "--images=images", "--masks=nowhere"), 1, ("nowhere: there is no such folder",)),
        (("validate", "--before=A", "--after=B"), 2, ("--masks=DIR",)),
        (("validate", "--before=A", "--after=B", "--masks=masks"), 1, ("no mask in masks has the name of an image",)),
        (("validate", "--images=images", "--sheet=sheet.doc"), 1, ("--sheet=sheet.doc", ".png or .jpg")),
        (("validate", "--images=images", "--sheet=/proc/s.png"), 1, ("--sheet=/proc/s.png cannot be written",)),
        (("validate", "--images=images", "--what=x"), 2, ("unknown option --what (haksnet validate --help",)),
        (("split",), 2, ("required: --images, --output",)),
        (("split", "--images=a.png", "--output=tiles"), 1, ("a folder of images at a.png",)),
        (("split", "--images=images", "--output=a.png"), 1, ("--output=a.png", "a file has this name")),
        (("split", "--images=images", "--output=images"), 2, ("--output=images is the folder of the images",)),
        (("split", "--images=images", "--labels=nowhere", "--output=tiles"), 1, ("labels at nowhere, found nothing",)),
        (("split", "--images=images", "--output=tiles", "--tile=big"), 2, ("--tile: expected a whole number", "'big'")),
        (("build",), 2, ("expected --output, the folder to write to",)),
        (("build", "dota", "--output=records"), 2, ("'dota'", "`haksnet split`")),
        (("build", "--source=empty", "--output=records"), 1, ("empty/train/images", "found none")),
        (("convert", "--input=text.pth", "--output=x"), 1, ("neither a file of torch.save nor safetensors",)),
        (("convert", "--input=empty.png", "--output=x"), 1, ("empty.png is empty",)),
        (("convert", "--input=images", "--output=x"), 1, ("images is a folder", "--to=FILE")),
        (("convert", "--input=demo", "--to=x.onnx"), 1, ("x.onnx", ".safetensors, .pth or .pt")),
        (("info",), 2, ("required: PATH",)),
        (("info", "empty"), 1, ("empty: expected a run, a model", "it holds nothing")),
        (("info", "empty.png"), 1, ("empty.png: the file is empty",)),
        (("info", "broken.json"), 1, ("broken.json: not recognised as labels", "coco")),
        (("info", "text.pth"), 1, ("text.pth cannot be used as a checkpoint",)),
        (("plan", "--config=demo", "--topology=v9:2x2"), 1, ("v5e, v5p, v6e, a100", "h100:8")),
        (("plan", "--config=demo", "--topology=h100:0"), 1, ("--topology=h100:0",)),
        (("plan", "--config=demo", "--topology=h100:8", "--set", "num_stps=1"), 1, ("meant is num_steps?",)),
        (("benchmark", "--config=demo"), 2, ("unknown option --config",)),
        (("submit", "--predictions=broken.json", "--output=s.zip"), 1, ("broken.json:1: not valid JSON",)),
        (("submit", "--predictions=empty", "--output=s.zip"), 1, ("neither a detections.json nor a folder",)),
        (("submit", "--predictions=empty", "--output=s.zip", "--classes=dota11"), 1, ("dota10", "dota11")),
        (("parity", "--goldens=images", "--platform=npu"), 2, ("'cpu', 'cuda', 'tpu'", "'npu'")),
        (("version", "now"), 2, ("unexpected argument 'now'",)),
        (("vresion",), 2, ("meant is version?",)),
    ],
    ids=lambda value: " ".join(value)[:70] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_a_tool_that_is_used_wrongly_is_answered_in_a_sentence(words, status, parts, capsys):
    answered(capsys, words, status, *parts)


def test_labels_of_another_format_are_named(capsys):
    assert program.main(["validate", "--images=images", "--labels=yolo"]) == 1
    assert "--format=yolo-obb" in capsys.readouterr().out


def test_where_no_image_can_be_used_the_last_line_says_so(capsys):
    words = ["predict", "--checkpoint=demo", "--images=notimage.png", "--output=found"]
    err = answered(capsys, words, 1, "none of 1 image", "no result")
    assert "notimage.png: expected a PNG, JPEG, BMP or TIFF file" in err


@pytest.mark.parametrize(
    ("module", "meant"),
    [
        ("haksnet_jax.train", "haksnet train"),
        ("haksnet_jax.detector", "haksnet predict"),
        ("haksnet_jax.predict", "haksnet predict"),
        ("haksnet_jax.cli.evaluate", "haksnet evaluate"),
        ("haksnet_jax.training.loop", "haksnet train"),
        ("haksnet_jax.preparation.splitting", "haksnet split"),
        ("haksnet_jax.anything", "haksnet --help"),
    ],
)
def test_a_module_that_is_no_command_says_which_one_is_meant(module, meant):
    command = [sys.executable, "-m", module, "--config=demo"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and f"{module} is no command" in done.stderr and meant in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_copy_of_a_configuration_trains_from_any_folder(folder, capsys):
    shutil.copy(ROOT / "configs" / "folder.py", folder / "mine.py")
    # It is read, and what it wants is looked for.
    err = answered(capsys, ["train", "--config=mine.py", "--workdir=run2"], 1, "mydata")
    assert "No module named" not in err


def test_python_names_the_option_that_is_meant():
    import haksnet_jax
    from haksnet_jax.errors import UserError

    detector = haksnet_jax.load("demo")
    with pytest.raises(UserError, match=r"'scores'.*\bscore\b"):
        detector("a.png", scores=0.3)
    with pytest.raises(UserError, match="download"):
        detector("https://host/a.jpg")
