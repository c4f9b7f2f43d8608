"""Prepared data sets (TFDS folders), whose description is checked before TFDS reads it.

TFDS imports the module of every class that a folder's features.json names, so that whoever writes the folder could have
any code run. Only the classes that builders here (and those of plain TFDS data sets of images) write are let through.
"""

import contextlib
import io
import os
import pathlib
import re
from typing import Any

from haksnet_jax import json_files
from haksnet_jax.errors import UserError

_CORE = "tensorflow_datasets.core.features"
FEATURE_CLASSES = (
    f"{_CORE}.features_dict.FeaturesDict",
    f"{_CORE}.sequence_feature.Sequence",
    f"{_CORE}.image_feature.Image",
    f"{_CORE}.text_feature.Text",
    f"{_CORE}.tensor_feature.Tensor",
    f"{_CORE}.scalar.Scalar",
    f"{_CORE}.class_label_feature.ClassLabel",
)


def _object(properties, what, **keywords):
    """A schema of an object with these keys and no others: what is not known here is not handed to TFDS."""
    return {"type": "object", "properties": properties, "additionalProperties": False, "description": what, **keywords}


_NUMBER = {"type": ["string", "integer"], "pattern": r"^-?[0-9]{1,12}$", "description": "a whole number"}
_TEXT = {"type": "string", "maxLength": 10_000, "description": "a text"}
_DTYPE = {
    "type": "string",
    "pattern": r"^(u?int(8|16|32|64)|float(16|32|64)|bfloat16|bool|string|object)$",
    "description": "a dtype",
}
_SHAPE = _object({"dimensions": {"type": "array", "maxItems": 16, "items": _NUMBER}}, "a shape")
_FEATURES = {
    "type": "object",
    "maxProperties": 1000,
    "additionalProperties": {"$ref": "#/$defs/feature"},
    "description": "features by name",
}
_SCHEMA = {
    "$ref": "#/$defs/feature",
    "$defs": {
        "feature": _object(
            {
                "pythonClassName": {
                    "enum": list(FEATURE_CLASSES),
                    "description": "a feature class that the builders of this package write",
                },
                "description": _TEXT,
                "featuresDict": _object({"features": _FEATURES}, "features"),
                "sequence": _object(
                    {"feature": {"$ref": "#/$defs/feature"}, "length": _NUMBER}, "a sequence", required=["feature"]
                ),
                "image": _object(
                    {
                        "dtype": _DTYPE,
                        "encodingFormat": _TEXT,
                        "shape": _SHAPE,
                        "useColormap": {"type": "boolean", "description": "true or false"},
                    },
                    "an image",
                ),
                "text": _object({}, "a text"),
                "classLabel": _object({"numClasses": _NUMBER}, "a class"),
                "tensor": _object(
                    {
                        "dtype": _DTYPE,
                        "encoding": _TEXT,
                        "shape": _SHAPE,
                        "minimum": {"type": "number"},
                        "maximum": {"type": "number"},
                    },
                    "a tensor",
                ),
            },
            "the description of a feature",
            required=["pythonClassName"],
        )
    },
}
_INFO_SCHEMA = {
    "type": "object",
    "description": "the description of a data set",
    "required": ["name", "version", "splits", "fileFormat"],
    "properties": {
        "fileFormat": {"enum": ["array_record"], "description": "array_record, which is read without TensorFlow"},
        "name": {"type": "string", "pattern": r"^\w{1,200}$", "description": "a name of letters, digits and _"},
        "version": {
            "type": "string",
            "pattern": r"^(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){2}$",
            "description": "a version of three numbers",
        },
        "splits": {
            "type": "array",
            "maxItems": 1000,
            "description": "splits",
            "items": {
                "type": "object",
                "description": "a split",
                "required": ["name"],
                "properties": {
                    "name": {
                        "type": "string",
                        "pattern": r"^[\w.-]{1,200}$",
                        "description": "a name of letters and digits",
                    },
                    "numBytes": _NUMBER,
                    "shardLengths": {"type": "array", "maxItems": 100_000, "items": _NUMBER, "description": "numbers"},
                    # Without folders: records lie beside their description.
                    "filepathTemplate": {"type": "string", "pattern": r"^[^/\\]{0,300}$", "description": "a file name"},
                },
            },
        },
    },
}


def open_builder(directory: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None) -> Any:
    """Opens a prepared data set.

    Args:
      directory: its folder (the one with `dataset_info.json`), or a name such as `dota/v1_tiles:1.0.0` to look up.
      data_dir: folder of prepared data sets, for a name; None for TFDS' own.

    Returns:
      A builder of TFDS that only reads.

    Raises:
      UserError: no prepared data set is there, or its description names what the builders here never write; a sentence
        with the file and the place in it.
    """
    folder = _find(directory, data_dir)
    check(folder)
    import tensorflow_datasets as tfds  # here: it takes a second, and only this source needs it

    # (what it prints of TensorFlow, which a damaged description may ask for, concerns nobody)
    with _naming(f"{folder}: its description"), contextlib.redirect_stdout(io.StringIO()):
        return tfds.builder_from_directory(str(folder))


def names_of(features: Any) -> str:
    """Text: the names of a data set's features, for messages. Args: features, of TFDS."""
    names = ", ".join(features) if hasattr(features, "keys") else f"one {type(features).__name__}"
    return json_files.printable(names[:300])


@contextlib.contextmanager
def _naming(what):
    """Makes one sentence of what the libraries of the format raise for a damaged file: whatever they like."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        reason = json_files.printable((str(error).splitlines() or [type(error).__name__])[0])[:200]
        raise UserError(f"{what} cannot be read ({reason}); build the data set again") from error


class Records:
    """The records of a split, by number: what TFDS gives, with one kind of error.

    Args:
      builder: of `open_builder`.
      split: name of the split.

    Raises:
      UserError: a file of records is damaged; so do the calls.
    """

    def __init__(self, builder: Any, split: str) -> None:
        import tensorflow_datasets as tfds

        self._name = f"{builder.data_dir} [{split}]"
        with _naming(f"{self._name}: its files of records"):
            self._source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
            self._length = len(self._source)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        with _naming(f"{self._name}: record {index}"):
            return self._source[int(index)]


def check(folder: pathlib.Path) -> None:
    """Compares the description of a prepared data set with what our builders write. Raises: UserError."""
    info = folder / "dataset_info.json"
    json_files.check(json_files.load(info), _INFO_SCHEMA, where=str(info))
    features = folder / "features.json"
    if not features.exists():
        raise UserError(f"{features} is missing: it describes the records; build the data set again")
    json_files.check(json_files.load(features), _SCHEMA, where=str(features))


def _find(directory, data_dir):
    """The folder of a prepared data set, given itself or by name. (TFDS would import code to look up a name.)"""
    folder = pathlib.Path(directory)
    if (folder / "dataset_info.json").exists():
        return folder
    root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    match = re.fullmatch(r"(\w+(?:/[\w.+-]+)?)(?::(\d+\.\d+\.\d+))?", str(directory))
    if match:
        versions = [match[2]] if match[2] else _versions(root / match[1])
        for version in versions:
            if (root / match[1] / version / "dataset_info.json").exists():
                return root / match[1] / version
    raise UserError(
        f"no prepared data set '{directory}': it is neither a folder with dataset_info.json nor "
        f"a name known in {data_dir or 'the default data folder of TFDS'}"
    )


def _versions(folder):
    """Names of the versions in a folder, newest first."""
    found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    numbered = [name for name in found if re.fullmatch(r"\d+\.\d+\.\d+", name)]
    return sorted(numbered, key=lambda name: [int(part) for part in name.split(".")], reverse=True)
