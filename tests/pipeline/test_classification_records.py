"""Labelled images from prepared records, laid out as TFDS lays out ImageNet, read without TensorFlow."""

import cv2
import numpy as np
import pytest

from haksnet_jax.errors import UserError
from haksnet_jax.pipeline import loader
from haksnet_jax.pipeline.classification_sources import TfdsClassificationSource
from haksnet_jax.pipeline.classification_transforms import Augment, EvaluationRow, TrainingRow

tfds = pytest.importorskip("tensorflow_datasets")
NAMES = ["n01440764", "n01443537"]


def _jpeg(label):
    image = np.full((300, 400, 3), 60 + 100 * label, np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


class Imagenet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("5.1.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=NAMES),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "validation": self._generate_examples(3)}

    def _generate_examples(self, count):
        for index in range(count):
            yield index, {"image": _jpeg(index % 2), "label": index % 2, "file_name": f"{index}.JPEG"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    builder = Imagenet(data_dir=str(tmp_path_factory.mktemp("data")), file_format="array_record")
    builder.download_and_prepare()
    return builder.data_dir


def test_records_give_images_and_labels_in_training_and_evaluation(folder):
    source = TfdsClassificationSource(folder, "train", NAMES)
    assert len(source) == 6 and source.class_names == tuple(NAMES) and len(set(source.image_ids)) == 6
    assert source[0]["image"].size == (300, 400)
    (batch, *_) = loader.stream_batches(
        source, TrainingRow(size=(64, 64), augment=Augment()), batch_size=6, seed=0, num_epochs=1
    )
    brightness = batch["image"].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(brightness, 60 + 100 * batch["label"], atol=2)  # JPEG's rounding
    assert sorted(batch["label"].tolist()) == [0, 0, 0, 1, 1, 1]
    row = EvaluationRow(size=(64, 64), share=0.875)
    (batch,) = loader.ordered_batches(TfdsClassificationSource(folder, "validation"), row, row.filler, batch_size=4)
    assert batch["label"][:3].tolist() != [0, 0, 0] and batch["image_index"].tolist() == [0, 1, 2, -1]


def test_other_classes_splits_and_places_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="no split 'val'"):
        TfdsClassificationSource(folder, "val")
    with pytest.raises(UserError, match=r"data.class_names 2 \(cat, dog"):
        TfdsClassificationSource(folder, "train", ("cat", "dog"))
    with pytest.raises(UserError, match="no prepared data set"):
        TfdsClassificationSource(tmp_path / "imagenet2012", "train")
