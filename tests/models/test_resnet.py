"""ResNet against torchvision's recorded outputs (record_resnet.py), its names, and what training leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from resnet_weights import IMAGE_SEED, make_weights

from haksnet_jax.errors import UserError
from haksnet_jax.models import architecture
from haksnet_jax.models.backbones import resnet
from haksnet_jax.weights.model_folder import fill, flatten
from haksnet_jax.weights.state_dicts import upstream_names
from haksnet_jax.weights.torch_weights import from_torch, read_architecture, to_torch


class _Holder(nnx.Module):
    """So that names begin with "backbone.", as in every model."""

    def __init__(self, backbone):
        self.backbone = backbone


def _holder(description, **options):
    return _Holder(architecture.build_backbone(description, rngs=nnx.Rngs(0), **options))


@pytest.fixture(scope="module")
def recorded(golden):
    return golden("resnet")


@pytest.fixture(scope="module")
def weights(recorded):
    return make_weights(recorded.manifest["shapes"])


@pytest.fixture(scope="module")
def image():
    shape = (2, 3, 70, 90)
    return np.random.default_rng(IMAGE_SEED).normal(size=shape).astype(np.float32).transpose(0, 2, 3, 1)


def _read(state_dict):
    """(description of the backbone, its arrays) of torchvision's weights."""
    arrays, report = from_torch(state_dict)
    assert not report.missing and not report.mismatched and not report.unexpected
    assert {name for name in arrays if not name.startswith("backbone.")} == {"head.kernel", "head.bias"}
    return read_architecture(upstream_names(state_dict)[0]), {
        name: array for name, array in arrays.items() if name.startswith("backbone.")
    }


def _loaded(weights, **options):
    description, arrays = _read(weights)
    graph, params, stats = nnx.split(_holder(description, **options), nnx.Param, nnx.BatchStat)
    filled = [fill(nnx.as_pure(state), arrays, what="torchvision") for state in (params, stats)]
    assert len(flatten(params) | flatten(stats)) == len(arrays)
    return graph, *filled


def _nhwc(x):
    return x.transpose(0, 2, 3, 1)


def test_maps_are_those_of_torchvision(recorded, weights, image):
    graph, params, stats = _loaded(weights)
    maps = jax.jit(lambda p, s, x: nnx.merge(graph, p, s).backbone(x))(params, stats, image)
    for number, ours in enumerate(maps):
        expected = _nhwc(recorded[f"eval/stage{number + 1}"])
        # float32 sums in another order, relative to the map's largest value: 2e-6 was seen
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("remat", [False, True])
def test_training_has_the_gradients_and_statistics_of_torchvision(recorded, weights, image, remat):
    graph, params, stats = _loaded(weights, remat=remat)

    @jax.jit
    def step(params, stats):
        def loss_of(params):
            model = nnx.merge(graph, params, stats)
            loss = sum(jnp.square(level).mean() for level in model.backbone(image, train=True))
            return loss, nnx.as_pure(nnx.state(model, nnx.BatchStat))

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    (loss, new_stats), gradients = step(params, stats)
    np.testing.assert_allclose(loss, recorded["train/loss"], rtol=1e-5)
    description, _ = _read(weights)
    theirs = to_torch(flatten(gradients), description, backbone_prefix=False)
    for name in ("conv1.weight", "layer1.0.downsample.0.weight", "layer3.1.bn2.weight", "layer4.0.conv2.weight"):
        expected = recorded[f"train/gradient/{name}"]
        # sums over thousands of positions in another order, and divisions by small variances between them
        np.testing.assert_allclose(theirs[name], expected, rtol=0, atol=2e-4 * np.abs(expected).max(), err_msg=name)
    theirs = to_torch(flatten(new_stats), description, backbone_prefix=False)
    for name in ("bn1.running_mean", "layer2.0.bn3.running_var"):
        np.testing.assert_allclose(theirs[name], recorded[f"train/{name}"], rtol=1e-4, atol=1e-6, err_msg=name)


def test_names_and_shapes_are_those_of_torchvisions_resnet_50(recorded):
    theirs = recorded.manifest["resnet50"]
    counts = {name for name in theirs if "num_batches" in name}
    state_dict = {
        name: np.broadcast_to(np.int64(0) if name in counts else np.float32(0), shape) for name, shape in theirs.items()
    }
    description, arrays = _read(state_dict)
    expected = architecture.describe_backbone({"backbone": "resnet_50"})
    assert {name: description.get(name, 3) for name in expected} == expected  # (three bands go without saying)
    model = nnx.eval_shape(lambda: _holder(description))
    ours = {name: tuple(leaf.shape) for name, leaf in flatten(nnx.state(model, (nnx.Param, nnx.BatchStat))).items()}
    assert {name: array.shape for name, array in arrays.items()} == ours
    back = to_torch(arrays, description, backbone_prefix=False)
    assert [(name, array.shape) for name, array in back.items()] == [
        (name, tuple(shape)) for name, shape in theirs.items() if not name.startswith("fc.")
    ]


def test_frozen_parts_have_no_parameters_and_keep_their_statistics(weights, image):
    graph, params, stats = _loaded(weights, frozen_stages=2, norm_eval=False)
    names = flatten(params)
    assert not any(name.startswith(("backbone.conv1", "backbone.norm1", "backbone.stages.0.")) for name in names)
    assert any(name.startswith("backbone.stages.1.") for name in names)

    @jax.jit
    def statistics(params, stats):
        model = nnx.merge(graph, params, stats)
        model.backbone(image, train=True)
        return nnx.as_pure(nnx.state(model, nnx.BatchStat))

    before, after = flatten(stats), flatten(statistics(params, stats))
    for name, value in before.items():
        is_frozen = name.startswith(("backbone.conv1", "backbone.norm1", "backbone.stages.0."))
        assert np.array_equal(value, after[name]) == is_frozen, name


def test_norm_eval_leaves_all_statistics_and_trains_the_scales(weights, image):
    graph, params, stats = _loaded(weights, norm_eval=True)

    def maps(train):
        model = nnx.merge(graph, params, stats)
        return model.backbone(image, train=train)[-1], nnx.as_pure(nnx.state(model, nnx.BatchStat))

    (trained, after), (evaluated, _) = jax.jit(lambda: (maps(True), maps(False)))()
    np.testing.assert_array_equal(trained, evaluated)
    before, after = flatten(stats), flatten(after)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert "backbone.stages.1.0.norm2.scale" in flatten(params)


def test_a_resnet_refuses_to_drop_paths():
    with pytest.raises(UserError, match=r"model\.drop_path_rate: ResNet drops no paths"):
        resnet.build(resnet.SIZES["50"], in_channels=3, dtype=jnp.float32, rngs=nnx.Rngs(0), drop_path_rate=0.1)
