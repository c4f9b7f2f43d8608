"""Plans: figures of a training step compiled for TPUs that are not here, the search for the batch, mistakes of use."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from configs import demo, demo_classification
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.models import architecture
from haksnet_jax.tools import compiled_cost, compiled_step, plan
from haksnet_jax.tools import topology as topologies

ROOT = pathlib.Path(__file__).resolve().parents[2]
SLICE = topologies.parse_topology("v5e:2x2")


def _tiny_config():
    config = demo.get_config()
    with config.unlocked():
        config.model.dtype = "bfloat16"
        config.model.channels = (4, 4, 8, 8)
        config.model.depths = (2, 1, 1, 1)  # one stage whose blocks are scanned
        config.model.fpn_channels = 8
        config.model.hidden = 16
        config.data.image_size = (64, 64)
        config.data.max_boxes = 8
        config.rpn.num_samples = 32
        config.rpn.candidates_per_level = 32
        config.rpn.max_proposals = 32
        config.roi.num_samples = 16
    return config


@pytest.fixture(scope="module")
def slice_mesh():
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed (pip install libtpu)")
    before = jax.config.jax_optimization_level
    # Compiled sooner; how good the program is, is no matter here.
    jax.config.update("jax_optimization_level", "O1")
    yield topologies.topology_mesh(SLICE)
    jax.config.update("jax_optimization_level", before)


def _classifier_config():
    """Of the smallest classifier: the TPU compiler takes two minutes for the tiny detector, and seconds for this."""
    config = demo_classification.get_config()
    with config.unlocked():
        config.model.backbone = "meannet_one"
        config.model.channels = config.model.depths = config.model.mlp_ratios = None
        config.model.dtype = "bfloat16"
    return config


@pytest.fixture(scope="module", params=["classifier", pytest.param("detector", marks=pytest.mark.slow)])
def step_of(request, slice_mesh):
    """(configuration, its training step compiled for a slice at 4 images a chip)."""
    with jax.default_matmul_precision("default"), pytest.MonkeyPatch.context() as patch:
        # As in a run; the products of six parts that the other tests ask for take twice as long to compile.
        patch.setitem(architecture.BACKBONES, "meannet", "dummy_backbone")
        config = _classifier_config() if request.param == "classifier" else _tiny_config()
        return config, compiled_step.compile_step(config, slice_mesh, 4)


@pytest.mark.slow
@pytest.mark.parametrize("step_of", ["detector"], indirect=True)
def test_memory_grows_with_the_batch_and_the_state_does_not(slice_mesh, step_of):
    config, step = step_of
    with jax.default_matmul_precision("default"):
        single = compiled_step.compile_step(config, slice_mesh, 1)
    assert single.state == step.state
    # The batch's own arrays at the least: pixels alone are 12,288 bytes an image.
    assert step.memory - single.memory > 3 * 64 * 64 * 3
    assert step.cost.vector > 2 * single.cost.vector
    # What is exchanged is of parameters, not of images.
    exchanged = [sum(one.num_bytes * one.times for one in each.cost.collectives) for each in (single, step)]
    assert exchanged[1] < 1.1 * exchanged[0]


def test_devices_exchange_the_gradients_once_and_little_else(step_of):
    _, step = step_of
    assert step.memory > step.state > 3 * step.params  # weights and two moments
    exchanged = sum(one.num_bytes * one.times for one in step.cost.collectives)
    # All gradients; beside them statistics of the batch, and padding of small arrays to whole tiles.
    assert step.params <= exchanged < 8 * step.params + 2**20


def test_figures_agree_with_one_another(step_of):
    config, step = step_of
    found = plan.figures(config, SLICE, step, num_images=1000)
    assert found["fits"] and found["global_batch"] == 4 * 4 and found["steps_per_epoch"] == 63
    assert found["step_seconds_at_least"] == max(found["seconds"].values())
    assert found["seconds"]["memory"] == step.cost.num_bytes / 819e9
    assert found["epoch_seconds_at_least"] == pytest.approx(63 * found["step_seconds_at_least"])
    # The demonstration's length is given in steps; its warm-up is not longer than a share of it.
    assert found["warmup_steps"] == min(
        config.optimizer.warmup_steps, int(config.optimizer.max_warmup_fraction * config.num_steps)
    )
    json.dumps(found)
    text = plan.table(found)
    assert "16" in text and "DOES NOT FIT" not in text and "ESTIMATE" not in text


@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_what_the_compiler_refuses_tells_what_it_would_need_and_the_limit_is_ours(slice_mesh, name):
    topology = topologies.parse_topology(name)
    whole = devices.replicated(topologies.topology_mesh(topology))
    size = jax.ShapeDtypeStruct((2**15, 2**21), jnp.float32, sharding=whole)  # 256 GiB, in and out
    program = jax.jit(lambda x: x[::-1] * 2 + x).lower(size)
    needed, cost, _ = compiled_step.compile_lowered(program)
    assert cost is None and needed >= 512 * 2**30
    with pytest.raises(Exception, match=r"exceeds available HBM|of [\d.]+G hbm") as refused:
        program.compile()
    limit = float(re.search(r"(?:available HBM \(|of )([\d.]+)G", str(refused.value))[1])
    # Releases of the compiler keep some MB more or less for themselves; ours is the least that was seen.
    assert limit * 0.99 <= topology.chip.memory / 2**30 <= limit


def _fake_step(batch, memory, limit):
    cost = compiled_cost.Cost(1.0, 1.0, 1.0, 0.0, [], 0) if memory <= limit else None
    return compiled_step.Step(batch, memory, 10.0, 3.0, cost, {}, 0.0)


@pytest.mark.parametrize(
    ("per_image", "bend", "expected"),
    [(7.0, 0.0, 12), (100.0, 0.0, None), (90.0, 0.0, 1), (1.0, 0.0, 90), (7.0, 0.05, 11)],
)
def test_the_largest_batch_that_fits_is_found_from_few_compilations(per_image, bend, expected):
    # Of 100 the state takes 10; at 7 an image 12 fit (94) and 13 do not (101). With a bend the line misleads: what is
    # found must fit and come close (10 + 70 + 5 for 10 images, 10 + 77 + 6.05 for 11, over 100 for 12).
    seen = []

    def compile_at(batch):
        seen.append(batch)
        return _fake_step(batch, 10.0 + per_image * batch + bend * batch**2, 100.0)

    step, shown = compiled_step.largest_fitting(compile_at, 100.0, 2)
    assert len(seen) == len(set(seen)) <= 5
    if expected is None:
        assert step.cost is None and step.batch_per_device == 1 and shown
    elif bend:
        assert step.cost is not None and step.memory > 85
    else:
        assert (step.batch_per_device, shown) == (expected, True)


def test_an_exchange_is_charged_its_bytes_and_its_hops():
    cost = compiled_cost.Cost(0.0, 0.0, 0.0, 0.0, [compiled_cost.Collective("all-reduce", 200e6, 2)], 0)
    seconds = plan.times(cost, topologies.parse_topology("v5e:16x16"))
    # Twice 200 MB, sent twice but for a 256th, at 200 GB/s; and twice 30 hops there and back of a microsecond.
    assert seconds["links"] == pytest.approx(2 * (2 * 200e6 * 255 / 256 / 200e9 + 2 * 30e-6))
    assert plan.times(cost, topologies.parse_topology("h100:1"))["links"] == 0


@pytest.mark.parametrize("name", ["", "v5e", "v7x:2x2", "v5e:0x4", "v5e:2x", "h100:eight"])
def test_a_topology_that_is_none_is_refused_with_the_kinds_there_are(name):
    with pytest.raises(topologies.PlanError, match=r"expected KIND:SHAPE with one of the kinds v5e, v5p, v6e"):
        topologies.parse_topology(name)


def test_a_slice_that_does_not_exist_is_refused(slice_mesh):
    with pytest.raises(topologies.PlanError, match="the TPU compiler knows no such slice"):
        topologies.topology_mesh(topologies.parse_topology("v5e:3x3x3"))


def test_without_the_compiler_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(topologies.PlanError, match=r"pip install .jax\[tpu\]"):
        topologies.topology_mesh(SLICE)


def test_the_command_ends_with_one_sentence_and_status_1():
    command = [sys.executable, "-m", "haksnet_jax", "plan", "--config=configs/demo.py", "--topology=v5e"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: --topology=v5e: expected KIND:SHAPE")
    assert "Traceback" not in done.stderr


def test_the_status_is_1_where_the_step_does_not_fit(tmp_path):
    found = plan.figures(_tiny_config(), SLICE, _fake_step(2, 2.0**40, 2.0**30))
    assert not found["fits"] and "seconds" not in found
    assert "1024.00 GiB of 15.75 GiB" in plan.table(found) and "DOES NOT FIT" in plan.table(found)
    script = tmp_path / "unfit.py"
    script.write_text(
        "import json, sys\nfrom haksnet_jax.cli import program\nfrom haksnet_jax.tools import plan\n"
        f"plan.make_plan = lambda *_, **__: json.loads({json.dumps(json.dumps(found))})\n"
        "sys.exit(program.main(['plan', *sys.argv[1:]]))\n"
    )
    command = [sys.executable, str(script), "--config=configs/demo.py", "--topology=v5e:2x2"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1 and "DOES NOT FIT" in done.stdout


def test_micro_batches_count_in_the_images_of_a_step():
    config = _tiny_config()
    with config.unlocked():
        config.accumulate_steps = 3
    found = plan.figures(config, SLICE, _fake_step(2, 1.0, 2.0), num_images=1000)
    assert found["batch_per_device"] == 2 and found["global_batch"] == 2 * 4 * 3
    assert found["steps_per_epoch"] == 42  # 1000 / 24, rounded up
