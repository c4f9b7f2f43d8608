"""The one description of a model: from a configuration, to and from model.json, built, or as shapes alone.

A description is what model.json holds: {"task", "architecture", "class_names", "pixel_mean", "pixel_std", ...}. Its
"architecture" names the backbone with its sizes, and says what the task's heads need. Descriptions from before there
was a choice lack "task" and "backbone": they are detectors with HAKSNet.

A backbone is a module with `channels` and `strides` of its maps, finest first, and a call (images [B, H, W, bands],
train, key) that gives them. Its file has `BackboneSize` (a NamedTuple), `SIZES` ({name: BackboneSize}) and
`build(size, *, in_channels, dtype, rngs, **options)`. A configuration names one by its family and size
(`model.backbone = "haksnet_t"`), and may give sizes of its own.

A new backbone, or the model of a new task, is one file and one line here.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from haksnet_jax.errors import UserError
from haksnet_jax.models.backbones import Backbone, haksnet
from haksnet_jax.models.oriented_rcnn import OrientedRCNN

BACKBONES = {
    "haksnet": "haksnet_jax.models.backbones.haksnet",
    "resnet": "haksnet_jax.models.backbones.resnet",
}
# Each has build(backbone, architecture, *, pixel_mean, pixel_std, dtype, rngs, **options).
MODELS = {
    "detection": "haksnet_jax.models.oriented_rcnn",
    "classification": "haksnet_jax.models.classifier",
    "segmentation": "haksnet_jax.models.segmenter",
    "change": "haksnet_jax.models.change_detector",
}


def _family(name):
    if name not in BACKBONES:
        raise UserError(f"model.backbone: expected one of {', '.join(known_backbones())}, got {name!r}")
    return importlib.import_module(BACKBONES[name])


def known_backbones() -> list[str]:
    """Names that `model.backbone` may have: families, for sizes of one's own, and families with a size."""
    names = []
    for family, path in BACKBONES.items():
        names += [family, *(f"{family}_{size}" for size in importlib.import_module(path).SIZES)]
    return names


def describe_backbone(model: Any) -> dict[str, Any]:
    """The part of an architecture that describes the backbone.

    Args:
      model: `config.model`: `backbone` ("haksnet_t"; absent: "haksnet"), fields of its BackboneSize where they are not
        those of the named size, `in_channels` (bands of an image; absent: 3).

    Returns:
      {"backbone": family, "in_channels": bands, and the fields of its size}.

    Raises:
      UserError: no such backbone, or a size that is not given or that it does not have.
    """
    name = model.get("backbone", None) or "haksnet"
    family, _, size_name = name.partition("_")
    module = _family(family)
    if size_name and size_name not in module.SIZES:
        raise UserError(f"model.backbone: expected one of {', '.join(known_backbones())}, got {name!r}")
    fields = module.SIZES[size_name]._asdict() if size_name else dict(module.BackboneSize._field_defaults)
    others = {field for path in BACKBONES.values() for field in importlib.import_module(path).BackboneSize._fields}
    for field in sorted(others):
        value = model.get(field, None)
        if value is None or value == () or value == []:  # not given: that of the named size
            continue
        if field not in module.BackboneSize._fields:
            raise UserError(f"model.{field}: {family} has no such size; leave it empty, or name another model.backbone")
        fields[field] = value
    missing = [field for field in module.BackboneSize._fields if field not in fields]
    if missing:
        raise UserError(f"model.{missing[0]}: expected the sizes of {family}, or a model.backbone that names them")
    sizes = {field: list(value) if isinstance(value, list | tuple) else value for field, value in fields.items()}
    return {"backbone": family, "in_channels": model.get("in_channels", None) or 3, **sizes}


def build_backbone(
    architecture: dict[str, Any], *, dtype: Any = jnp.float32, rngs: nnx.Rngs, **options: Any
) -> Backbone:
    """The backbone of an architecture.

    Args:
      architecture: dict, see `describe_backbone`; keys of heads are left alone.
      dtype: of the arithmetic.
      rngs: source of the initial parameters.
      **options: of the backbone's `build`, such as drop_path_rate, momentum and remat.

    Returns:
      nnx.Module with `channels` and `strides`.
    """
    module = _family(architecture.get("backbone", "haksnet"))
    fields = module.BackboneSize._fields
    values = {field: architecture[field] for field in fields if field in architecture}
    sizes = {field: tuple(value) if isinstance(value, list | tuple) else value for field, value in values.items()}
    return module.build(
        module.BackboneSize(**sizes), in_channels=architecture.get("in_channels", 3), dtype=dtype, rngs=rngs, **options
    )


def backbone_options(model: Any) -> dict[str, Any]:
    """Keyword arguments of `build_backbone` that a configuration holds.

    Args:
      model: `config.model`: `drop_path_rate`, `remat`; where it has them `batch_norm_momentum`, and for backbones with
        weights that training leaves alone `frozen_stages` and `norm_eval`.
    """
    names = {
        "drop_path_rate": "drop_path_rate",
        "remat": "remat",
        "batch_norm_momentum": "momentum",
        "frozen_stages": "frozen_stages",
        "norm_eval": "norm_eval",
    }
    return {option: model[name] for name, option in names.items() if model.get(name, None) is not None}


def _model(info):
    task = info.get("task", "detection")
    if task not in MODELS:
        raise UserError(f"task: expected one of {', '.join(MODELS)}, got {task!r}")
    return importlib.import_module(MODELS[task])


def build(
    info: dict[str, Any],
    *,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
    backbone_options: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """The model of a description.

    Args:
      info: as model.json holds it.
      dtype: of the arithmetic; parameters and statistics are float32.
      rngs: source of the initial parameters.
      backbone_options: keyword arguments of `build_backbone`.
      **options: of the model's own `build`.

    Returns:
      nnx.Module.

    Raises:
      UserError: no such task or backbone.
      KeyError, TypeError: the description lacks something.
    """
    module = _model(info)
    backbone = build_backbone(info["architecture"], dtype=dtype, rngs=rngs, **(backbone_options or {}))
    return module.build(
        backbone,
        info["architecture"],
        pixel_mean=tuple(info["pixel_mean"]),
        pixel_std=tuple(info["pixel_std"]),
        dtype=dtype,
        rngs=rngs,
        **options,
    )


def haksnet_detector(
    size: haksnet.BackboneSize,
    num_classes: int,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
    drop_path_rate: float = 0.1,
    unroll: bool | None = None,
    remat: bool = False,
    **options: Any,
) -> OrientedRCNN:
    """Oriented R-CNN with HAKSNet, where there is no description: for tests and measurements.

    Args:
      size: `haksnet.BackboneSize`.
      num_classes: K.
      dtype, rngs: as of `build`.
      drop_path_rate, unroll, remat: of HAKSNet.
      **options: of OrientedRCNN.
    """
    backbone = haksnet.HAKSNet(size, drop_path_rate=drop_path_rate, dtype=dtype, unroll=unroll, remat=remat, rngs=rngs)
    return OrientedRCNN(backbone, num_classes, dtype=dtype, rngs=rngs, **options)


def abstract(info: dict[str, Any], *, dtype: Any = jnp.float32) -> tuple[Any, nnx.State, nnx.State]:
    """The model of a description by its shapes alone.

    Args:
      info: as model.json holds it.
      dtype: of the arithmetic.

    Returns:
      (graph definition, parameters, batch statistics), the last two nnx.State of jax.ShapeDtypeStruct.
    """
    _model(info)  # what is not there is named before tracing
    _family(info["architecture"].get("backbone", "haksnet"))
    needed = {name: info[name] for name in ("task", "architecture", "pixel_mean", "pixel_std") if name in info}
    return _abstract(_frozen(needed), jnp.dtype(dtype))


def _frozen(value):
    """Dicts and lists as tuples that can be hashed."""
    if isinstance(value, dict):
        return ("dict", tuple((name, _frozen(below)) for name, below in sorted(value.items())))
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _thawed(value):
    if isinstance(value, tuple) and len(value) == 2 and value[0] == "dict":
        return {name: _thawed(below) for name, below in value[1]}
    return value


@functools.lru_cache(maxsize=8)  # tracing takes a second for each model
def _abstract(frozen, dtype):
    model = without_values(lambda rngs: build(_thawed(frozen), dtype=dtype, rngs=rngs))
    return nnx.split(model, nnx.Param, nnx.BatchStat)


def without_values(build_model: Callable[[nnx.Rngs], Any]) -> Any:
    """A model whose arrays are jax.ShapeDtypeStruct. Args: build_model, a function of nnx.Rngs that gives the model."""
    return nnx.eval_shape(lambda: build_model(cast(nnx.Rngs, _SameKey())))


class _SameKey:
    """nnx.Rngs that always gives the same key, for models without values.

    While tracing, nnx.Rngs takes time with the square of the keys drawn: its counter is stored anew for each, whereupon
    JAX looks through all that was traced (1.8 of 2.6 s for T with jax 0.10).
    """

    def __init__(self):
        self._key = jax.random.key(0)

    def __call__(self):
        return self._key

    def __getattr__(self, stream):
        if stream.startswith("_"):
            raise AttributeError(stream)
        return self
