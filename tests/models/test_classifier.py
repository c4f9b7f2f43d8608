"""The classifier against the recorded backbone, and what happens to a batch on the device against its definitions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from reference_weights import make_input, make_state_dict

from haksnet_jax.models import classification_loss
from haksnet_jax.models.backbones.haksnet import BackboneSize, HAKSNet
from haksnet_jax.models.classification_loss import Mixing
from haksnet_jax.models.classifier import Classifier
from haksnet_jax.weights import model_folder
from haksnet_jax.weights.state_dicts import select_state_dict
from haksnet_jax.weights.torch_reader import read_checkpoint
from haksnet_jax.weights.torch_weights import from_torch, read_architecture

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
NARROW = BackboneSize(channels=(8, 8, 8, 8), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2))


def _classifier(size, num_classes, *, in_channels=3, mean=MEAN, std=STD):
    backbone = HAKSNet(size, in_channels=in_channels, drop_path_rate=0.0, rngs=nnx.Rngs(0))
    return Classifier(backbone, num_classes, pixel_mean=mean, pixel_std=std, rngs=nnx.Rngs(1))


def test_logits_are_those_of_the_reference_backbone_with_mean_and_linear(golden, golden_file):
    # Stage 4 of the reference's tiny backbone is recorded whole; the head is the one of the recorded pre-training.
    fixture = golden("backbone_full")
    stored, _ = select_state_dict(read_checkpoint(golden_file("tiny_pretrain.pth.tar")).tree)
    weight, bias = (stored[f"head.{name}"].numpy() for name in ("weight", "bias"))
    expected = fixture["tiny_random/stage4"].mean(axis=(2, 3)) @ weight.T + bias

    state_dict = make_state_dict(json.loads(golden_file("state_dict_tiny.json").read_text())["entries"])
    state_dict = {name: value for name, value in state_dict.items() if name.startswith("backbone.")}
    architecture = read_architecture(state_dict)
    arrays, _ = from_torch(state_dict, architecture)
    arrays |= {"head.kernel": weight.T, "head.bias": bias}
    size = BackboneSize(*(tuple(architecture[name]) for name in ("channels", "depths", "mlp_ratios")))
    graph, params, stats = nnx.split(_classifier(size, 10), nnx.Param, nnx.BatchStat)
    model = nnx.merge(graph, *(model_folder.fill(nnx.as_pure(s), arrays, what="reference") for s in (params, stats)))

    images = make_input(fixture.manifest["cases"]["tiny_random"]["input"]["seed"], (2, 3, 256, 256))
    logits = jax.jit(lambda x: model.logits(x))(jnp.asarray(np.moveaxis(images, 1, -1)))
    np.testing.assert_allclose(logits, expected, atol=1e-4)  # the reference itself: 4e-6 between float32 and float64


def test_a_classifier_takes_any_number_of_bands_and_any_size():
    model = _classifier(NARROW, 4, in_channels=5, mean=(0.0,) * 5, std=(1.0,) * 5)
    images = np.random.default_rng(0).integers(0, 255, (2, 47, 66, 5), np.uint8)
    scores = jax.jit(lambda x: model.classify(x))(images)
    assert scores.shape == (2, 4)
    np.testing.assert_allclose(np.asarray(scores).sum(axis=1), 1.0, atol=1e-6)


def test_targets_are_smoothed_as_defined():
    targets = classification_loss.smoothed(jnp.array([2, 0]), 4, 0.1)
    np.testing.assert_allclose(targets, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]], rtol=1e-6)


def test_erased_rectangles_have_the_sizes_of_their_definition():
    height, width = 150, 200
    masks = np.asarray(classification_loss.erasing_masks(jax.random.key(0), 2000, (height, width), 0.25))
    erased = masks.any(axis=(1, 2))
    # Of 2000 images a quarter: five standard deviations are 97.
    assert abs(erased.sum() - 500) < 97
    areas, ratios = [], []
    for mask in masks[erased]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        h, w = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert mask.sum() == h * w  # one whole rectangle
        areas.append(h * w / (height * width))
        ratios.append(h / w)
    # Sides are rounded to whole pixels: of the shortest, 13, that is 4 %.
    assert 0.95 * 0.02 < min(areas) < 0.03 and 0.25 < max(areas) < 1 / 3 * 1.02
    assert 0.95 * 0.3 < min(ratios) < 0.45 and 2.2 < max(ratios) < 1.05 / 0.3
    assert masks.any(axis=(0, 2)).all() and masks.any(axis=(0, 1)).all()  # every row and column is reached


def test_noise_of_erasing_is_normal_and_the_rest_stays():
    images = jnp.full((64, 48, 48, 3), 7.0)
    erased = np.asarray(classification_loss.erase(images, jax.random.key(1), 1.0))
    noise = erased[erased != 7.0]
    assert 0.02 < len(noise) / images.size < 1 / 3
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


@pytest.mark.parametrize("alpha", [0.8, 1.0, 0.2])
def test_shares_follow_the_beta_distribution(alpha):
    draw = jax.jit(jax.vmap(lambda key: classification_loss._symmetric_beta(key, alpha)))
    shares = np.asarray(draw(jax.random.split(jax.random.key(3), 4000)))
    assert scipy.stats.kstest(shares, scipy.stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_cutmix_takes_a_rectangle_of_the_wanted_share_and_counts_what_it_took():
    for seed, share in enumerate((0.0, 0.3, 0.75, 1.0)):
        mask, kept = classification_loss.cutmix_rectangle(jax.random.key(seed), jnp.float32(share), (40, 64))
        assert float(kept) == pytest.approx(1 - float(mask.mean()), abs=1e-6)
        assert float(mask.sum()) <= 40 * 64 * (1 - share) + 1e-3  # the image's edges only cut it smaller
    inside = [
        classification_loss.cutmix_rectangle(jax.random.key(seed), jnp.float32(0.75), (40, 64)) for seed in range(40)
    ]
    largest = max(float(mask.sum()) for mask, _ in inside)
    assert largest == 20 * 32  # sides sqrt(1 - 0.75) of the image's, where it fits


def _mixed(settings, seed):
    images = jnp.stack([jnp.full((8, 8, 1), float(i)) for i in range(4)])
    targets = jnp.eye(4)
    return classification_loss.mix(images, targets, jax.random.key(seed), settings)


def test_mixup_blends_the_batch_with_its_reverse_in_images_and_targets_alike():
    for seed in range(5):
        images, targets = _mixed(Mixing(mixup=0.8, cutmix=0.0), seed)
        share = float(targets[0, 0])
        assert 0 <= share <= 1 and float(targets[0, 3]) == pytest.approx(1 - share, abs=1e-6)
        np.testing.assert_allclose(images[0], 3.0 * (1 - share), atol=1e-5)
        np.testing.assert_allclose(images[1], share + 2.0 * (1 - share), atol=1e-5)


def test_cutmix_pastes_and_its_targets_are_the_shares_of_the_pixels():
    for seed in range(5):
        images, targets = _mixed(Mixing(mixup=0.0, cutmix=1.0), seed)
        pasted = float((images[0] == 3.0).mean())
        assert set(np.unique(images[0])) <= {0.0, 3.0}
        assert float(targets[0, 3]) == pytest.approx(pasted, abs=1e-6)


def test_half_of_the_batches_are_cut_and_half_are_blended():
    mixed = jax.jit(lambda key: classification_loss.mix(
        jnp.arange(2.0).reshape(2, 1, 1, 1) * jnp.ones((2, 8, 8, 1)), jnp.eye(2), key, Mixing())[0])  # fmt: skip
    blended = sum(len(np.unique(mixed(jax.random.key(seed))[0])) == 1 for seed in range(200))
    # A blend has one value; a cut has two, or one where its rectangle is empty or the whole image (about 1 in 8 here).
    assert 75 < blended < 150


def test_without_mixing_the_loss_is_the_cross_entropy_of_the_labels():
    model = _classifier(NARROW, 4)
    images = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), np.uint8)
    labels = jnp.array([0, 1, 2, 3, 0, 1])
    plain = Mixing(mixup=0.0, cutmix=0.0, erasing=0.0, label_smoothing=0.0)

    graph, *state = nnx.split(model, nnx.Param, nnx.BatchStat)

    @jax.jit
    def both(params, stats, images, labels):
        model = nnx.merge(graph, params, stats)
        loss, metrics = classification_loss.classification_loss(model, images, labels, jax.random.key(0), mixing=plain)
        model = nnx.merge(graph, params, stats)
        return loss, metrics, model.logits(model.normalize(images), train=True)

    loss, metrics, logits = both(*map(nnx.as_pure, state), images, labels)
    logits = np.asarray(logits, np.float64)
    expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(6), labels]
    assert float(loss) == pytest.approx(expected.mean(), rel=1e-5)
    assert float(metrics["top1"]) == pytest.approx((logits.argmax(axis=1) == labels).mean())
