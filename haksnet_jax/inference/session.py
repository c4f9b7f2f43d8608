"""A trained detector on its devices: one compiled program for each shape of input, with the caps of the model."""

import contextlib
import math

import jax
import numpy as np
from flax import nnx

from haksnet_jax.distributed import mesh as devices
from haksnet_jax.errors import UserError
from haksnet_jax.inference.views import ModelInput
from haksnet_jax.models import architecture
from haksnet_jax.weights import model_folder
from haksnet_jax.weights.errors import CheckpointError

PRECISIONS = ("float32", "bfloat16")
# Candidates of an image in the first attempt. Where there are more, that image is done again with all of them.
_MAX_CANDIDATES = 4096
# Upstream's, for models that do not say.
_PROPOSALS = {"candidates_per_level": 2000, "max_proposals": 2000, "iou_threshold": 0.8}
_DETECTIONS = {"iou_threshold": 0.1, "max_detections": 2000}


def make_step(graph, mesh, *, proposal_caps, detection_caps):
    """Compiles (at its first call, and for each new shape) the detector.

    Args:
      graph: graph definition of the model.
      mesh: the batch is split over all its devices.
      proposal_caps, detection_caps: see `OrientedRCNN.detect`; a score threshold in them is not used.

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
            proposal_caps=proposal_caps,
            detection_caps={**detection_caps, "score_threshold": score},
        )

    return jax.jit(detect, out_shardings=devices.replicated(mesh), compiler_options=devices.detection_options(mesh))


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
      proposal_caps, detection_caps: how many proposals and detections a view has at most, and above which overlap the
        network leaves them out; those given, else those of the model, else upstream's. Where `detection_caps` has no
        `max_candidates`, a view with more than fit the first attempt is done again with all of them.
      graph, variables: graph definition, and {"params", "batch_stats"} of numpy arrays.
      num_devices: how many devices batches are spread over.
      num_shapes: how many shapes of input were compiled so far.

    Raises:
      CheckpointError: the model's description is not usable, or the arrays do not fit it.
      UserError: an unknown precision.
    """

    def __init__(
        self, arrays, model_info, *, precision="float32", accelerators=None, proposal_caps=None, detection_caps=None
    ):
        if precision not in PRECISIONS:
            raise UserError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.model_info = model_info
        try:
            _check_detector(model_info)
            self.class_names = tuple(model_info["class_names"])
            self.input = ModelInput(
                tuple(int(side) for side in model_info["input_size"]),
                math.lcm(32, int(model_info["padding_divisor"])),
                bool(model_info["keep_ratio"]),
            )
            self.proposal_caps = _PROPOSALS | model_info.get("proposals", {}) | (proposal_caps or {})
            self.detection_caps = _DETECTIONS | model_info.get("detections", {}) | (detection_caps or {})
            self.graph, params, stats = architecture.abstract(model_info, dtype=precision)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"model.json does not describe a model: {error!r}") from error
        self.variables = {
            name: model_folder.fill(nnx.as_pure(state), arrays, what="the checkpoint")
            for name, state in (("params", params), ("batch_stats", stats))
        }
        self._exact = precision == "float32"
        chosen = jax.local_devices() if accelerators is None else list(accelerators)
        self.num_devices, self.platform = len(chosen), chosen[0].platform
        self._meshes = {False: devices.data_mesh(chosen[:1]), True: devices.data_mesh(chosen)}
        self._placed, self._steps = {}, {}
        self._shapes = set()

    @property
    def num_shapes(self):
        return len(self._shapes)

    def arrays(self):
        """{"a.b.c": numpy array} parameters and batch statistics, as given."""
        return model_folder.flatten(self.variables["params"]) | model_folder.flatten(self.variables["batch_stats"])

    def arithmetic(self):
        """Context in which products are as exact as `precision` says."""
        return jax.default_matmul_precision("highest") if self._exact else contextlib.nullcontext()

    def detect(self, images, image_size, scale, *, score, spread=False, all_candidates=False):
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
                self._placed[mesh.devices.size] = jax.device_put(self.variables, devices.replicated(mesh))
            if key not in self._steps:
                self._steps[key] = make_step(
                    self.graph,
                    mesh,
                    proposal_caps=self.proposal_caps,
                    detection_caps={"max_candidates": self._num_candidates(all_candidates)} | self.detection_caps,
                )
            self._shapes.add((key, images.shape))
            batch = devices.place_batch(mesh, {"images": images, "image_size": image_size, "scale": scale})
            variables = self._placed[mesh.devices.size]
            return self._steps[key](variables, batch["images"], batch["image_size"], batch["scale"], np.float32(score))

    def complete(self, output, images, image_size, scale, *, score):
        """Waits for a batch, and does those of its views again that had more candidates than the first attempt takes.

        Args:
          output: of `detect`.
          images, image_size, scale, score: as they were given to it.

        Returns:
          structures.PaddedDetections of numpy arrays; `num_cut` counts what the model's own caps left out.
        """
        output = jax.device_get(output)
        if "max_candidates" in self.detection_caps or not output.num_cut.any():
            return output
        output = output._replace(**{name: np.array(field) for name, field in output._asdict().items()})
        for row in np.flatnonzero(output.num_cut).tolist():
            rows = slice(row, row + 1)
            again = self.detect(images[rows], image_size[rows], scale[rows], score=score, all_candidates=True)
            for field, new in zip(output, jax.device_get(again), strict=True):
                field[row] = new[0]
        return output

    def _num_candidates(self, all_candidates):
        every = self.proposal_caps["max_proposals"] * len(self.class_names)
        return every if all_candidates else _MAX_CANDIDATES


def _check_detector(model_info):
    """Raises CheckpointError where a description is not one of a whole detector; KeyError, TypeError where none."""
    architecture = model_info["architecture"]
    unknown = {
        *(model_info.get("proposals", {}).keys() - _PROPOSALS),
        *(model_info.get("detections", {}).keys() - _DETECTIONS),
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
