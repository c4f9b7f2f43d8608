"""Learning rate, clipping and AdamW against the reference's recorded values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference_weights import make_input

from haksnet_jax.distributed import mesh as devices
from haksnet_jax.training import optimizer
from haksnet_jax.training.optimizer import OptimizerSettings


@pytest.mark.parametrize("run", ["130", "700"])
def test_learning_rate_follows_the_recorded_schedule(golden, run):
    manifest = golden("lr_schedule").manifest
    recorded = manifest["runs"][run]
    settings = OptimizerSettings(
        drop_epochs=manifest["lr_config"]["step"],
        warmup_steps=manifest["lr_config"]["warmup_iters"],
        warmup_ratio=manifest["lr_config"]["warmup_ratio"],
        max_warmup_fraction=1.0,  # the reference knows no such limit
    )
    rate, warmup = optimizer.learning_rate_schedule(
        settings,
        manifest["base_lr"],
        num_steps=recorded["iters_per_epoch"] * recorded["epochs"],
        steps_per_epoch=recorded["iters_per_epoch"],
    )
    assert warmup == 500
    steps = np.array([int(step) for step in recorded["lr"]])
    # rtol 1e-6 is the manifest's; the schedule is float32
    np.testing.assert_allclose([float(rate(step)) for step in steps], list(recorded["lr"].values()), rtol=1e-6)


def test_warm_up_is_shortened_in_a_short_run():
    _, warmup = optimizer.learning_rate_schedule(
        OptimizerSettings(schedule="cosine"), 1.0, num_steps=100, steps_per_epoch=10
    )
    assert warmup == 10


def test_cosine_schedule_ends_at_its_final_ratio():
    settings = OptimizerSettings(schedule="cosine", warmup_steps=0, final_ratio=0.25)
    rate, _ = optimizer.learning_rate_schedule(settings, 2.0, num_steps=100, steps_per_epoch=10)
    np.testing.assert_allclose([float(rate(0)), float(rate(50)), float(rate(100))], [2.0, 1.25, 0.5], rtol=1e-6)


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match=r"optimizer\.schedule: expected step or cosine, got 'poly'"):
        optimizer.learning_rate_schedule(OptimizerSettings(schedule="poly"), 1.0, num_steps=10, steps_per_epoch=1)


@pytest.mark.parametrize(("scaling", "expected"), [("linear", 2e-4), ("sqrt", 1e-4 * 2**0.5), ("none", 1e-4)])
def test_learning_rate_scales_with_the_batch(scaling, expected):
    rate = optimizer.scaled_learning_rate(1e-4, global_batch=32, reference_batch=16, scaling=scaling, ceiling=1e-3)
    assert rate == pytest.approx(expected)


def test_scaled_learning_rate_is_held_at_the_ceiling():
    rate = optimizer.scaled_learning_rate(1e-4, global_batch=512, reference_batch=16, scaling="linear", ceiling=1e-3)
    assert rate == 1e-3


def test_eight_steps_equal_the_recorded_ones(golden):
    fixture = golden("optimizer_adamw")
    manifest = fixture.manifest
    tx = optimizer.make_optimizer(OptimizerSettings())
    params = [jnp.asarray(fixture[f"start/{i}"]) for i in range(3)]
    state = tx.init(params)
    for step, scale in enumerate(manifest["scale"]):
        gradients = [
            jnp.asarray(make_input(manifest["grad_seed"] + 10 * step + i, shape, scale))
            for i, shape in enumerate(manifest["shapes"])
        ]
        # rtol 1e-5 as in the manifest: one float32 sum of squares in another order
        np.testing.assert_allclose(
            optax.tree.norm(gradients), manifest["grad_norm_before_clip"][step], rtol=1e-5, atol=0
        )
        updates, state = tx.update(gradients, state, params)
        params = [p - manifest["lrs"][step] * u for p, u in zip(params, updates, strict=True)]
        for i, value in enumerate(params):
            np.testing.assert_allclose(value, fixture[f"step{step}/{i}"], rtol=1e-5)


@pytest.mark.parametrize("sizes", [((3,), (5, 7), (), (256, 256), (4, 2, 2**14)), ((3,),), ((256, 256),)])
def test_the_norm_over_small_arrays_as_one_is_that_over_all(monkeypatch, sizes):
    rng = np.random.default_rng(0)
    gradients = {f"{i}": rng.normal(size=size).astype(np.float32) for i, size in enumerate(sizes)}
    mesh = devices.data_mesh(jax.devices()[:4], fsdp=2)
    shardings = devices.state_sharding(mesh, gradients)
    large = [not shardings[name].is_fully_replicated for name in gradients]
    assert large == [np.prod(size) >= 2**16 for size in sizes]
    monkeypatch.setattr(optimizer, "platform", lambda: "gpu")
    norm = jax.jit(optimizer.global_norm)
    # Up to 200,000 float32 terms in another order.
    for tree in (gradients, devices.place(gradients, shardings)):
        np.testing.assert_allclose(norm(tree), optax.tree.norm(gradients), rtol=1e-5)
    # The norm as above, and the 1e-6 beside it.
    clipped, _ = optimizer.clip_by_global_norm(0.5).update(gradients, optax.EmptyState())
    np.testing.assert_allclose(optax.tree.norm(clipped), 0.5, rtol=1e-5)
