"""The released pre-training checkpoint's layout becomes a classifier that classifies, and goes back by its names."""

import cv2
import jax
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from haksnet_jax.inference import classification_predictor
from haksnet_jax.models import architecture
from haksnet_jax.weights import convert, model_folder
from haksnet_jax.weights.state_dicts import select_state_dict
from haksnet_jax.weights.torch_reader import read_checkpoint


def test_a_pretraining_checkpoint_converts_whole_and_classifies(golden_file, tmp_path):
    path = golden_file("tiny_pretrain.pth.tar")
    converted = convert.convert(str(path), tmp_path / "model", ema=True)
    assert not converted.report.missing and not converted.report.unexpected
    stored, _ = select_state_dict(read_checkpoint(path).tree, ema=True)

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 224, 224, 3), np.uint8)
    for index, image in enumerate(images):
        cv2.imwrite(str(tmp_path / f"{index}.png"), image[..., ::-1])
    classifier = classification_predictor.load(tmp_path / "model")
    found = list(classifier([tmp_path / "0.png", tmp_path / "1.png"]))

    # By hand: the backbone's last map, its mean, and the file's own head, in numpy.
    arrays, info = model_folder.load_model(tmp_path / "model")
    assert info["task"] == "classification" and len(info["class_names"]) == 10
    row = classification_predictor.EvaluationRow(size=info["input_size"], share=info.get("crop_share", 0.875))
    stored_images = [classification_predictor.StoredImage(pixels=image, name="x") for image in images]
    cropped = np.stack([row({"image": image, "label": 0})["image"] for image in stored_images])
    graph, params, stats = architecture.abstract(info)
    state = [model_folder.fill(nnx.as_pure(part), arrays, what="the checkpoint") for part in (params, stats)]

    def last_map(state, images):
        model = nnx.merge(graph, *state)
        return model.backbone(model.normalize(images))[-1]

    maps = np.asarray(jax.jit(last_map)(state, cropped))
    logits = maps.mean(axis=(1, 2)) @ stored["head.weight"].numpy().T + stored["head.bias"].numpy()
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for one, scores in zip(found, expected, strict=True):
        assert one.class_names[0] == info["class_names"][int(scores.argmax())]
        np.testing.assert_allclose(one.scores, np.sort(scores)[::-1][:5], atol=1e-5)

    convert.export(str(tmp_path / "model"), str(tmp_path / "back.safetensors"))
    back = load_file(tmp_path / "back.safetensors")
    for name in ("head.weight", "head.bias", "norm4.weight"):
        np.testing.assert_array_equal(back[name], stored[name].numpy())
