"""A trained detector on its devices: one compiled program for each shape of input, with the caps of the model."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from haksnet_jax.distributed import mesh as devices
from haksnet_jax.inference import precision as precisions
from haksnet_jax.inference.views import ModelInput
from haksnet_jax.models import architecture
from haksnet_jax.models.oriented_rcnn import ROUNDED_LAYERS
from haksnet_jax.models.roi_head import DetectionSettings
from haksnet_jax.models.rpn import ProposalSettings
from haksnet_jax.structures import PaddedDetections
from haksnet_jax.weights import model_folder
from haksnet_jax.weights.errors import CheckpointError

# What model.json may say of detections; the score is asked for, and candidates are as many as there are.
_DETECTIONS = ("iou_threshold", "max_detections")


def make_step(
    graph: nnx.GraphDef, mesh: jax.sharding.Mesh, *, proposal_settings: Any, detection_settings: Any
) -> Callable[..., Any]:
    """Compiles (at its first call, and for each new shape) the detector.

    Args:
      graph: graph definition of the model.
      mesh: the batch is split over all its devices.
      proposal_settings, detection_settings: see `OrientedRCNN.detect`; the latter's score threshold is not used.

    Returns:
      (variables, images [B, H, W, 3], image_size [B, 2], scale [B, 2], score) -> PaddedDetections, where variables
      is {"params", "batch_stats"}. The lowest score is an argument, so that another one is no other program to compile.
    """

    def detect(variables, images, image_size, scale, score):
        model = nnx.merge(graph, variables["params"], variables["batch_stats"])
        return model.detect(
            images,
            image_size,
            scale,
            proposal_settings=proposal_settings,
            detection_settings=detection_settings._replace(score_threshold=score),
        )

    return jax.jit(detect, out_shardings=devices.replicated(mesh), compiler_options=devices.detection_options(mesh))


def placed(variables: Mapping[str, Any], mesh: jax.sharding.Mesh, dtype: jax.typing.DTypeLike) -> Any:
    """Puts a detector's variables on devices, large kernels in the type that the network rounds them to in any case.

    Rounding the 13 million numbers of the box head's first layer anew for each image takes as long as a layer of the
    backbone.

    Args:
      variables: {"params", "batch_stats"}, as of `Session.variables`.
      mesh: every device gets all of them.
      dtype: of the arithmetic.

    Returns:
      The variables, for a step of `make_step`.
    """

    def rounded(path, leaf):
        *layer, name = (str(getattr(key, "key", key)) for key in path)
        fits = name == "kernel" and any(layer[: len(start)] == [*start] for start in ROUNDED_LAYERS)
        return leaf.astype(dtype) if fits else leaf

    params = jax.tree_util.tree_map_with_path(rounded, variables["params"])
    return jax.device_put({**variables, "params": params}, devices.replicated(mesh))


class Session:
    """A model, ready to look at batches.

    Args:
      arrays: {"a.b.c": array} parameters and batch statistics.
      model_info: dict, see `model.json`.
      precision: "float32" with exact products, or "bfloat16".
      accelerators: devices to use; None for all of this host. Batches are spread over them, single images use the
        first.
      proposal_caps, detection_caps: replace single caps of the model, for example by those of the run that it is from.

    Attributes:
      model_info: as given.
      class_names: names of the classes, by label.
      input: ModelInput.
      proposal_settings, detection_settings: how many proposals and detections a view has at most, and above which
        overlap the network leaves them out; those given, else those of the model, else the defaults.
      caps_candidates: whether `max_candidates` was given. Where not, it is of a view's first attempt, and a view with
        more is done again with all of them.
      graph, variables: graph definition, and {"params", "batch_stats"} of numpy arrays.
      num_devices: how many devices batches are spread over.
      num_shapes: how many shapes of input were compiled so far.

    Raises:
      CheckpointError: the model's description is not usable, or the arrays do not fit it.
      UserError: an unknown precision.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        model_info: dict[str, Any],
        *,
        precision: str = "float32",
        accelerators: Sequence[jax.Device] | None = None,
        proposal_caps: dict[str, Any] | None = None,
        detection_caps: dict[str, Any] | None = None,
    ) -> None:
        self.precision = precisions.checked(precision)
        self.model_info = model_info
        try:
            _check_detector(model_info)
            self.class_names = tuple(model_info["class_names"])
            self.input = ModelInput(
                tuple(int(side) for side in model_info["input_size"]),  # type: ignore[arg-type]  # (two, by the schema)
                math.lcm(32, int(model_info["padding_divisor"])),
                bool(model_info["keep_ratio"]),
            )
            self.proposal_settings = ProposalSettings(**model_info.get("proposals", {}) | (proposal_caps or {}))
            detections = model_info.get("detections", {}) | (detection_caps or {})
            self.detection_settings, self.caps_candidates = (
                DetectionSettings(**detections),
                "max_candidates" in detections,
            )
            self.graph, params, stats = architecture.abstract(model_info, dtype=precision)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"model.json does not describe a model: {error!r}") from error
        self.variables = model_folder.variables_of(params, stats, arrays)
        chosen = jax.local_devices() if accelerators is None else list(accelerators)
        self.num_devices, self.platform = len(chosen), chosen[0].platform
        self._meshes = {False: devices.data_mesh(chosen[:1]), True: devices.data_mesh(chosen)}
        self._placed: dict[int, Any] = {}
        self._steps: dict[Any, Any] = {}
        self._shapes: set[Any] = set()

    @property
    def num_shapes(self) -> int:
        return len(self._shapes)

    def arrays(self) -> Mapping[str, np.ndarray]:
        """{"a.b.c": numpy array} parameters and batch statistics, as given."""
        return model_folder.flatten(self.variables["params"]) | model_folder.flatten(self.variables["batch_stats"])

    def arithmetic(self) -> contextlib.AbstractContextManager:
        """Context in which products are as exact as `precision` says."""
        return precisions.arithmetic(self.precision)

    def detect(
        self,
        images: np.ndarray,
        image_size: np.ndarray,
        scale: np.ndarray,
        *,
        score: float,
        spread: bool = False,
        all_candidates: bool = False,
    ) -> Any:
        """Starts the detector on a batch.

        Args:
          images: [B, H, W, 3] uint8 RGB, H and W multiples of 32, padded at right and bottom.
          image_size: [B, 2] int32 rows and columns of content.
          scale: [B, 2] float32 factors of x and y by which the content was resized.
          score: lowest score of a detection.
          spread: over all devices, of which B is a multiple; else on the first alone.
          all_candidates: no (box, class) pair above the score is left out before the suppression.

        Returns:
          structures.PaddedDetections [B, ...] in pixels before the resizing, perhaps still being computed.
        """
        mesh = self._meshes[spread]
        key = (mesh.devices.size, all_candidates)
        with jax.set_mesh(mesh), self.arithmetic():
            if mesh.devices.size not in self._placed:
                self._placed[mesh.devices.size] = placed(self.variables, mesh, self.precision)
            if key not in self._steps:
                self._steps[key] = make_step(
                    self.graph,
                    mesh,
                    proposal_settings=self.proposal_settings,
                    detection_settings=self._settings_with(all_candidates),
                )
            self._shapes.add((key, images.shape))
            batch = devices.place_batch(mesh, {"images": images, "image_size": image_size, "scale": scale})
            variables = self._placed[mesh.devices.size]
            return self._steps[key](variables, batch["images"], batch["image_size"], batch["scale"], np.float32(score))

    def complete(
        self, output: Any, images: np.ndarray, image_size: np.ndarray, scale: np.ndarray, *, score: float
    ) -> PaddedDetections:
        """Waits for a batch, and does those of its views again that had more candidates than the first attempt takes.

        Args:
          output: of `detect`.
          images, image_size, scale, score: as they were given to it.

        Returns:
          structures.PaddedDetections of numpy arrays; `num_cut` counts what the model's own caps left out.
        """
        output = jax.device_get(output)
        if self.caps_candidates or not output.num_cut.any():
            return output
        output = output._replace(**{name: np.array(field) for name, field in output._asdict().items()})
        for row in np.flatnonzero(output.num_cut).tolist():
            rows = slice(row, row + 1)
            again = self.detect(images[rows], image_size[rows], scale[rows], score=score, all_candidates=True)
            for field, new in zip(output, jax.device_get(again), strict=True):
                field[row] = new[0]
        return output

    def _settings_with(self, all_candidates):
        if not all_candidates:
            return self.detection_settings
        every = self.proposal_settings.max_proposals * len(self.class_names)
        return self.detection_settings._replace(max_candidates=every)


def _check_detector(model_info):
    """Raises CheckpointError where a description is not one of a whole detector; KeyError, TypeError where none."""
    architecture = model_info["architecture"]
    unknown = {
        *(model_info.get("proposals", {}).keys() - set(ProposalSettings._fields)),
        *(model_info.get("detections", {}).keys() - set(_DETECTIONS)),
    }
    if unknown:
        raise CheckpointError(f"model.json has settings that this version does not know: {', '.join(sorted(unknown))}")
    wanting = model_info.get("without_value", ())
    if wanting and architecture.get("fpn_channels") is not None:
        shown = ", ".join(wanting[:3]) + (f" and {len(wanting) - 3} more" if len(wanting) > 3 else "")
        raise CheckpointError(
            f"{len(wanting)} of its parameters have no value (it was converted with --allow-missing): {shown}; "
            "train it first, with --config.init"
        )
    if not architecture["num_classes"] or architecture.get("fpn_channels") is None:
        raise CheckpointError("it holds a backbone without a detector's heads; convert or train a whole detector")
    if len(model_info["class_names"]) != architecture["num_classes"]:
        raise CheckpointError(
            f"model.json names {len(model_info['class_names'])} classes, the model has {architecture['num_classes']}"
        )
