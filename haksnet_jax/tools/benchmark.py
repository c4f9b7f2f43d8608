"""Speed of every part beside the limit of the hardware it runs on. A command:

    python -m haksnet_jax benchmark [--only=NAME*] [--image=1024] [--batch=8] [--json=FILE]
    python -m haksnet_jax benchmark --profile --only='train_t/8'        where the time of one part goes

The inputs are random; each part is compiled, run until warm, and timed many times with the devices synchronised; the
median counts. The floor of a part is the larger of two times, neither of which any form of it can beat: the bytes that
must pass through device memory over the bandwidth that a large copy reached, and the operations over the rates that a
large matrix product (convolutions, dense layers) and a chain of multiply-adds (everything else) reached, all measured
first in the same process. Only what no fusion can avoid is counted as bytes: inputs, outputs and weights of each block.
On CPUs without --image and --batch a small size is taken, to show that all parts run.
Exit status: 0 done; 1 not possible, with a sentence; 2 wrong use.
"""

import collections
import fnmatch
import functools
import json
import pathlib
import re
import statistics
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from haksnet_jax import files
from haksnet_jax.configs import imagenet_t
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.errors import UserError
from haksnet_jax.geometry import matching, nms, rotated_iou
from haksnet_jax.geometry.anchors import STRIDES, anchor_grid, inside_image
from haksnet_jax.geometry.boxes import boxes_to_hboxes
from haksnet_jax.inference.session import make_step
from haksnet_jax.kernels import roi_align
from haksnet_jax.kernels.depthwise import depthwise_conv
from haksnet_jax.labels.classes import CLASSES
from haksnet_jax.models.architecture import haksnet_detector
from haksnet_jax.models.backbones.haksnet import SIZES, HAKSNet
from haksnet_jax.models.detection_loss import detection_loss
from haksnet_jax.models.rpn import select_proposals
from haksnet_jax.pipeline.loader import train_batches
from haksnet_jax.pipeline.sources import FolderSource, SceneSource, write_dota_folder
from haksnet_jax.results.card import code_version
from haksnet_jax.structures import GroundTruth
from haksnet_jax.tasks import classification
from haksnet_jax.training import optimizer
from haksnet_jax.training.state import TrainState, create_state
from haksnet_jax.training.step import make_train_step

NUM_CLASSES = 15
OBJECTS = 60  # an image
UPSTREAM_BATCH = {"t": 2, "s": 1}  # images a GPU


class Work(NamedTuple):
    """What a part must do at least.

    Attributes:
      num_bytes: through device memory.
      matrix: operations of products and convolutions over channels.
      vector: float32 operations of everything else that counts.
    """

    num_bytes: float = 0.0
    matrix: float = 0.0
    vector: float = 0.0

    def __add__(self, other):
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor):
        """The same work `factor` times."""
        return Work(*(factor * value for value in self))


class Ceilings(NamedTuple):
    """What the device was measured to reach: bytes and operations a second."""

    bandwidth: float
    matrix: float
    vector: float

    def floor(self, work):
        """Seconds that `work` takes at least; matrix and vector units can work at the same time."""
        return max(work.num_bytes / self.bandwidth, work.matrix / self.matrix, work.vector / self.vector)


class Part(NamedTuple):
    """Something to time.

    Attributes:
      name: of the part, e.g. "train_t/8".
      function: jitted, of `arguments`.
      arguments: a tuple of arrays and pytrees.
      images: that one call handles.
      work: Work of one call.
      state: whether the function's first result takes the place of its first argument, whose memory it reuses.
    """

    name: str
    function: Any
    arguments: tuple
    images: int
    work: Work
    state: bool = False


class Row(NamedTuple):
    """The figures of a part."""

    part: str
    milliseconds: float
    images_per_second: float
    memory_gib: float
    compile_seconds: float
    floor_milliseconds: float

    @property
    def ratio(self):
        """How many times its floor the part takes; None where no floor is known."""
        return self.floor_milliseconds and self.milliseconds / self.floor_milliseconds


def measure_ceilings():
    """Bandwidth, matrix and vector rate of the first device: the best of several sizes and types. Returns: Ceilings."""
    small = jax.default_backend() == "cpu"
    key = jax.random.key(0)
    # An H200 copies 4 GiB of float32 a third faster than 1 GiB of bfloat16.
    lengths = {jnp.bfloat16: 2**22 if small else 2**29, jnp.float32: 2**22 if small else 2**30}
    bandwidth = 0.0
    for dtype, length in lengths.items():
        x = jax.random.bits(key, (length,), jnp.uint32).astype(dtype)
        seconds = time_calls(jax.jit(lambda x: x + x.dtype.type(1)), (x,))[0]
        bandwidth = max(bandwidth, 2 * x.nbytes / seconds)
        del x
    matrix = 0.0
    for side in (1024,) if small else (8192, 16384):
        a = jax.random.normal(key, (side, side), jnp.bfloat16)
        for product in (lambda a: a @ a, lambda a: a @ a.T):
            matrix = max(matrix, 2 * side**3 / time_calls(jax.jit(product), (a,))[0])
    v = jax.random.normal(key, (2**22,), jnp.float32)

    def chain(v):
        # Four independent chains: enough work in flight for each core.
        parts = [v + float(i) for i in range(4)]
        for _ in range(128):
            parts = [part * v + np.float32(0.5) for part in parts]
        return sum(parts)

    vector = 2 * 4 * 128 * v.size / time_calls(jax.jit(chain), (v,))[0]
    return Ceilings(bandwidth, matrix, vector)


def time_calls(function, arguments, *, state=False, seconds=0.6):
    """Median time of a call, warm and synchronised.

    Args:
      function: compiled, of the arguments.
      arguments: tuple.
      state: see `Part`.
      seconds: to measure for, about; at least 5 samples are taken.

    Returns:
      (seconds a call, the arguments for a next call).
    """

    def call(arguments):
        result = function(*arguments)
        return result, ((result[0], *arguments[1:]) if state else arguments)

    for _ in range(2):
        result, arguments = call(arguments)
        jax.block_until_ready(result)
    start = time.perf_counter()
    result, arguments = call(arguments)
    jax.block_until_ready(result)
    once = time.perf_counter() - start
    # Short calls are timed several at a time, or waiting for the device would count as their work; so are steps of
    # training, which follow one another without waiting.
    group = max(5 if state else 1, min(50, int(0.005 / once)))
    samples = []
    until = time.perf_counter() + seconds
    while len(samples) < 5 or (time.perf_counter() < until and len(samples) < 200):
        start = time.perf_counter()
        for _ in range(group):
            result, arguments = call(arguments)
        jax.block_until_ready(result)
        samples.append((time.perf_counter() - start) / group)
    return statistics.median(samples), arguments


def compile_part(part, **options):
    """Compiles a part ahead of its calls.

    Args:
      part: Part.
      **options: of the compiler.

    Returns:
      (compiled function, seconds that it took, GiB of device memory that it needs).
    """
    start = time.perf_counter()
    compiled = part.function.lower(*part.arguments).compile(options or None)
    seconds = time.perf_counter() - start
    needs = compiled.memory_analysis()
    memory = (
        needs.argument_size_in_bytes + needs.output_size_in_bytes + needs.temp_size_in_bytes - needs.alias_size_in_bytes
    )
    return compiled, seconds, memory / 2**30


def measure(part, ceilings):
    """Compiles and times a part. Returns: Row."""
    compiled, seconds, memory = compile_part(part)
    median, _ = time_calls(compiled, part.arguments, state=part.state)
    return Row(part.name, 1e3 * median, part.images / median, memory, seconds, 1e3 * ceilings.floor(part.work))


# What the parts must do at least.


def _maps(image, batch):
    """[B, H, W] positions of the maps at strides 4, 8, 16, 32, 64."""
    return [batch * (image // stride) ** 2 for stride in STRIDES]


def backbone_work(size, image, batch, *, bytes_each=2):
    """Forward pass of the backbone: each block reads its input and writes its output once."""
    total = Work()
    channels_in, taps = 3, 49
    for positions, c, depth, ratio in zip(
        _maps(image, batch), size.channels, size.depths, size.mlp_ratios, strict=False
    ):
        embedding = Work(0.0, 2 * positions * taps * channels_in * c)
        hidden = ratio * c
        block = Work(
            2 * positions * c * bytes_each,
            2 * positions * (9 * (c // 4) ** 2 + c * 2 * hidden + hidden * c),
            2 * positions * (c * (9 + 25 + 49 + 81 + 2 * 9) + 16 * 49 + hidden * 9),
        )
        output = Work(positions * c * bytes_each)
        total = total + embedding + block.times(depth) + output
        channels_in, taps = c, 9
    return total


def neck_and_heads_work(size, image, batch, rois, *, channels=256, hidden=1024, bytes_each=2):
    """Forward pass of pyramid, RPN and RoI head: each map is written and read once."""
    total = Work()
    for positions, c in zip(_maps(image, batch), (*size.channels, 0), strict=True):
        total += Work(3 * positions * channels * bytes_each, 2 * positions * channels * (c + 9 * channels))  # pyramid
        total += Work(positions * 21 * 4, 2 * positions * channels * (9 * channels + 21))  # RPN
    pooled = batch * rois * 49 * channels
    weights = 49 * channels * hidden + hidden * hidden
    return total + Work(2 * pooled * bytes_each + weights * bytes_each, 2 * batch * rois * weights)


# The parts: each function makes one.


def random_ground_truth(batch, image, objects=OBJECTS, seed=0):
    """GroundTruth of random boxes between 12 and 200 pixels. Args: batch; image, side in pixels; objects an image."""
    generator = np.random.default_rng(seed)
    boxes = random_boxes(batch * objects, image, seed=seed).reshape(batch, objects, 5)
    return GroundTruth(
        boxes=jnp.asarray(boxes),
        labels=jnp.asarray(generator.integers(0, NUM_CLASSES, (batch, objects)), jnp.int32),
        valid=jnp.ones((batch, objects), bool),
        image_size=jnp.full((batch, 2), image, jnp.int32),
    )


def random_boxes(count, image, seed=0):
    """[count, 5] float32 oriented boxes within a square image."""
    generator = np.random.default_rng(seed)
    long = np.exp(generator.uniform(np.log(12), np.log(200), count)) * image / 1024
    short = long * generator.uniform(0.2, 1.0, count)
    centre = generator.uniform(0, image, (2, count))
    return np.stack([*centre, long, short, generator.uniform(-np.pi / 2, np.pi / 2, count)], axis=-1).astype(np.float32)


def random_images(batch, image, seed=0):
    """[batch, image, image, 3] uint8 on the device."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, (batch, image, image, 3), np.uint8))


def backbone(name, image, batch, dtype, *, gradient=False):
    """Part: the backbone's forward pass, or forward and backward."""
    size = SIZES[name]
    graph, variables = nnx.split(HAKSNet(size, dtype=dtype, rngs=nnx.Rngs(0)))
    variables = jax.device_put(nnx.as_pure(variables))
    images = jax.random.normal(jax.random.key(1), (batch, image, image, 3), dtype)

    def forward(variables, images):
        return nnx.merge(graph, variables)(images)

    def loss(variables, images):
        maps = nnx.merge(graph, variables)(images, train=True, key=jax.random.key(0))
        return sum(jnp.square(level.astype(jnp.float32)).mean() for level in maps)

    work = backbone_work(size, image, batch)
    if gradient:
        # The backward pass has twice the products of the forward pass, and reads and writes twice as much.
        name = f"backbone_gradient_{name}/{batch}"
        return Part(name, jax.jit(jax.grad(loss)), (variables, images), batch, work.times(3))
    function = jax.jit(forward, compiler_options=devices.detection_options())
    return Part(f"backbone_{name}/{batch}", function, (variables, images), batch, work)


def _detector(name, dtype, mesh):
    """(graph definition, parameters, batch statistics) of a detector with random weights, on the devices of a mesh."""
    model = haksnet_detector(SIZES[name], NUM_CLASSES, dtype=dtype, rngs=nnx.Rngs(0))
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, *jax.device_put((nnx.as_pure(params), nnx.as_pure(stats)), devices.replicated(mesh))


def _mesh():
    return devices.data_mesh(jax.local_devices()[:1])


def detector(name, image, batch, dtype):
    """Part: detection, the last suppression included."""
    graph, params, stats = _detector(name, dtype, _mesh())
    variables = {"params": params, "batch_stats": stats}
    sizes, scale = jnp.full((batch, 2), image, jnp.int32), jnp.ones((batch, 2), jnp.float32)
    arguments = (variables, random_images(batch, image), sizes, scale, np.float32(0.05))
    step = make_step(graph, _mesh(), proposal_caps={}, detection_caps={})
    work = backbone_work(SIZES[name], image, batch) + neck_and_heads_work(SIZES[name], image, batch, 2000)
    return Part(f"detect_{name}/{batch}", step, arguments, batch, work)


def training(name, image, batch, dtype, *, mesh=None):
    """Part: a whole training step, the optimiser included, on a mesh's devices (default: the first device)."""
    mesh = mesh or _mesh()
    graph, params, stats = _detector(name, dtype, mesh)
    tx = optimizer.make_optimizer(weight_decay=0.05, betas=(0.9, 0.999), clip_norm=35.0)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    zero = np.zeros((), np.int32)
    random = jax.random.key_data(jax.random.key(0))
    state = TrainState(zero, params, stats, tx.init(params), {}, random, zero, zero)
    arrays = {"image": random_images(batch, image)} | random_ground_truth(batch, image)._asdict()
    state = jax.device_put(state, devices.replicated(mesh))
    arrays = jax.device_put(arrays, devices.batch_sharding(mesh))

    def loss(model, batch, key):
        truth = GroundTruth(batch["boxes"], batch["labels"], batch["valid"], batch["image_size"])
        return detection_loss(model, batch["image"], truth, key)

    step = make_train_step(graph, tx, mesh, loss, ema_decay=0.0)
    work = backbone_work(SIZES[name], image, batch) + neck_and_heads_work(SIZES[name], image, batch, 512)
    # Parameter and two moments are read and written, the gradient is read.
    work = work.times(3) + Work(7 * 4 * num_parameters)
    return Part(f"train_{name}/{batch}", step, (state, arrays, np.float32(1e-4)), batch, work, state=True)


def pretraining(name, image, batch, dtype):
    """Part: a whole step of ImageNet's recipe: augmentation on the device, the network, the optimiser, the averages."""
    config = imagenet_t.get_config()
    with config.unlocked():
        config.model.backbone = f"haksnet_{name}"
        config.model.dtype = dtype.name
        config.data.image_size = (image, image)
    mesh, tx = _mesh(), optimizer.of_config(config)
    graph, state = create_state(
        lambda rngs: classification.build_model(config, rngs=rngs), tx, mesh, seed=0, ema=bool(config.ema_decay)
    )
    labels = np.random.default_rng(0).integers(0, len(config.data.class_names), batch).astype(np.int32)
    arrays = devices.place_batch(mesh, {"image": np.asarray(random_images(batch, image)), "label": labels})
    step = make_train_step(graph, tx, mesh, classification.loss(config), ema_decay=config.ema_decay)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    # Parameter, two moments and the average are read and written, the gradient is read.
    work = backbone_work(SIZES[name], image, batch).times(3) + Work(9 * 4 * num_parameters)
    return Part(f"pretrain_{name}/{batch}", step, (state, arrays, np.float32(1e-4)), batch, work, state=True)


def depthwise_cascade(image, batch, dtype, *, gradient=False):
    """Part: the depthwise convolutions 3, 5, 7 and 9 of a block of the first stage of T, one after another."""
    x = jax.random.normal(jax.random.key(0), (batch, image // 4, image // 4, 32), dtype)
    kernels = [jax.random.normal(jax.random.key(k), (k, k, 32)) / k for k in (3, 5, 7, 9)]

    def forward(x, kernels):
        total = 0
        for kernel in kernels:
            x = depthwise_conv(x, kernel)
            total += x
        return total

    def backward(x, kernels):
        return jax.grad(lambda *both: forward(*both).astype(jnp.float32).sum(), argnums=(0, 1))(x, kernels)

    work = Work(2 * x.nbytes, 0, 2 * x.size * (9 + 25 + 49 + 81))
    if gradient:
        name = f"depthwise_cascade_gradient/{batch}"
        return Part(name, jax.jit(backward), (x, kernels), batch, work.times(3))
    return Part(f"depthwise_cascade/{batch}", jax.jit(forward), (x, kernels), batch, work)


def iou(image, count):
    """Part: overlaps of all pairs."""
    boxes = jnp.asarray(random_boxes(count, image))
    # About 215 operations a pair as the code is (see the module); the matrix is written once.
    work = Work(4 * count**2, 0, 215 * count**2)
    return Part(f"rotated_iou/{count}", jax.jit(rotated_iou.rotated_iou_matrix), (boxes, boxes), 1, work)


def suppression(image, count):
    """Part: rotated suppression of one image's boxes, IoU 0.1, all of one class."""
    boxes = jnp.asarray(random_boxes(count, image))
    scores = jax.random.uniform(jax.random.key(0), (count,))

    def suppress(boxes, scores):
        return nms.nms_rotated(boxes, scores, scores > 0, iou_threshold=0.1, max_outputs=count)

    work = Work(32 * count, 0, 215 * count**2 / 2)  # each pair once
    return Part(f"nms_rotated/{count}", jax.jit(suppress), (boxes, scores), 1, work)


def pooling(image, batch, dtype, *, gradient=False, rois=512):
    """Part: rotated RoIAlign on four levels, or its gradient alone."""
    shapes = [(batch, image // stride, image // stride, 256) for stride in STRIDES[:4]]
    maps = tuple(jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes))
    boxes = jnp.asarray(random_boxes(batch * rois, image).reshape(batch, rois, 5))

    def forward(maps, boxes):
        def one_image(maps, boxes):
            return roi_align.rotated_roi_align(maps, boxes, roi_align.roi_levels(boxes))

        return jax.vmap(one_image)(maps, boxes)

    def backward(maps, boxes, pooled_gradient):
        return jax.vjp(lambda maps: forward(maps, boxes), maps)[1](pooled_gradient)[0]

    pooled = jax.random.normal(jax.random.key(9), (batch, rois, 7, 7, 256), dtype)
    operations = 2 * 16 * pooled.size
    if gradient:
        work = Work(pooled.nbytes + sum(level.nbytes for level in maps), 0, operations)
        name = f"roi_align_gradient/{batch * rois}"
        return Part(name, jax.jit(backward), (maps, boxes, pooled), batch, work)
    work = Work(2 * pooled.nbytes, 0, operations)  # each bin reads one row of the maps at least
    return Part(f"roi_align/{batch * rois}", jax.jit(forward), (maps, boxes), batch, work)


def anchor_matching(image, batch):
    """Part: matching of all anchors with the objects."""
    anchors = jnp.asarray(anchor_grid((image, image), STRIDES))
    truth = random_ground_truth(batch, image)

    def match(anchors, truth):
        def one_image(boxes, valid, size):
            return matching.match_anchors(anchors, boxes_to_hboxes(boxes), valid, inside_image(anchors, size))

        return jax.vmap(one_image)(truth.boxes, truth.valid, truth.image_size)

    work = Work(anchors.nbytes + 10 * batch * len(anchors), 0, 15 * batch * OBJECTS * len(anchors))
    return Part(f"match_anchors/{batch}", jax.jit(match), (anchors, truth), batch, work)


def proposal_selection(image, batch):
    """Part: the best 2,000 anchors of each level decoded, suppressed, and the best 2,000 of all taken."""
    anchors = anchor_grid((image, image), STRIDES)
    logits = jax.random.normal(jax.random.key(0), (batch, len(anchors)))
    deltas = 0.1 * jax.random.normal(jax.random.key(1), (batch, len(anchors), 6))
    function = jax.jit(lambda logits, deltas: select_proposals(logits, deltas, anchors, image_shape=(image, image)))
    pairs = batch * sum(min(2000, 3 * (image // stride) ** 2) ** 2 for stride in STRIDES) / 2
    return Part(f"proposals/{batch}", function, (logits, deltas), batch, Work(logits.nbytes, 0, 15 * pairs))


def device_parts(image, batch, dtype, *, pretraining_image=224, pretraining_batch=512):
    """All parts that run on the device. Returns: {name: function that makes the Part}."""
    makers = {}
    for name in SIZES:
        makers[f"pretrain_{name}/{pretraining_batch}"] = functools.partial(
            pretraining, name, pretraining_image, pretraining_batch, dtype
        )
        for count in sorted({1, batch}):
            makers[f"backbone_{name}/{count}"] = functools.partial(backbone, name, image, count, dtype)
        makers[f"backbone_gradient_{name}/{batch}"] = functools.partial(
            backbone, name, image, batch, dtype, gradient=True
        )
        for count in sorted({1, batch}):
            makers[f"detect_{name}/{count}"] = functools.partial(detector, name, image, count, dtype)
        for count in sorted({UPSTREAM_BATCH[name], batch}):
            makers[f"train_{name}/{count}"] = functools.partial(training, name, image, count, dtype)
    makers[f"depthwise_cascade/{batch}"] = functools.partial(depthwise_cascade, image, batch, dtype)
    makers[f"depthwise_cascade_gradient/{batch}"] = functools.partial(
        depthwise_cascade, image, batch, dtype, gradient=True
    )
    for count in (2000, 8192):
        makers[f"rotated_iou/{count}"] = functools.partial(iou, image, count)
        makers[f"nms_rotated/{count}"] = functools.partial(suppression, image, count)
    makers[f"roi_align/{512 * batch}"] = functools.partial(pooling, image, batch, dtype)
    makers[f"roi_align_gradient/{512 * batch}"] = functools.partial(pooling, image, batch, dtype, gradient=True)
    makers[f"match_anchors/{batch}"] = functools.partial(anchor_matching, image, batch)
    makers[f"proposals/{batch}"] = functools.partial(proposal_selection, image, batch)
    return makers


# The host's side.


def _tiles(folder, image, count=24):
    """FolderSource of generated scenes as JPEG files in a folder."""
    class_names = CLASSES["dota10"]
    write_dota_folder(
        SceneSource(count, image, 0, class_names, objects_per_scene=(30, OBJECTS)), folder, extension="jpg"
    )
    return FolderSource(folder / "images", folder / "labelTxt", class_names)


def measure_pipeline(folder, image, batch):
    """Row of the input pipeline in this process alone: decoding, turning, padding and batching of JPEG tiles."""
    batches = train_batches(
        _tiles(folder, image), batch_size=batch, image_size=(image, image), max_boxes=1000, seed=0, num_workers=0,
        rotation_probability=1.0,
    )  # fmt: skip
    stream = iter(batches)
    next(stream)
    start, cpu = time.perf_counter(), time.process_time()
    count = 0
    while time.perf_counter() - start < 4:
        next(stream)
        count += batch
    # By processor time: what one core does, however many threads took part.
    seconds = (time.process_time() - cpu) / count
    batches.close()
    return Row("input_pipeline/core", 1e3 * seconds * batch, 1 / seconds, None, None, None)


def measure_end_to_end(part, folder, image, batch, num_workers, *, mesh=None):
    """Row of a training step on a mesh (default: the first device) fed by worker processes; says how long it waits."""
    mesh = mesh or _mesh()
    compiled, seconds, memory = compile_part(part)
    batches = train_batches(
        _tiles(folder, image), batch_size=batch, image_size=(image, image), max_boxes=OBJECTS, seed=0,
        num_workers=num_workers,
    )  # fmt: skip
    stream = iter(batches)
    state, _, learning_rate = part.arguments
    names = tuple(part.arguments[1])
    waited, start, steps = 0.0, None, 0
    while start is None or time.perf_counter() - start < 8:
        before = time.perf_counter()
        rows = next(stream)
        waited += time.perf_counter() - before
        arrays = devices.place_batch(mesh, {name: rows[name] for name in names})
        state, metrics = compiled(state, arrays, learning_rate)
        steps += 1
        if steps == 5 and start is None:  # workers started, queues filled
            jax.block_until_ready(metrics)
            waited, start, steps = 0.0, time.perf_counter(), 0
    jax.block_until_ready(metrics)
    taken = time.perf_counter() - start
    batches.close()
    print(f"end to end: the device's queue waited {100 * waited / taken:.1f} % of the time for data")
    return Row(f"end_to_end_{part.name}", 1e3 * taken / steps, steps * batch / taken, memory, seconds, None)


# Where the time goes.


def profile(part, steps=5):
    """Prints how long each named piece of a part keeps the device busy, and its longest kernels.

    Args:
      part: Part.
      steps: calls that are recorded.
    """
    # Kernels that are launched together, as a command buffer, appear as one of no name.
    options = {"xla_gpu_enable_command_buffer": ""} if jax.default_backend() == "gpu" else {}
    compiled, _, _ = compile_part(part, **options)
    pieces = {}
    for match in re.finditer(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name=\"([^\"]*)\"", compiled.as_text(), re.MULTILINE):
        pieces[match[1].replace(".", "_").replace("-", "_")] = match[2]
    seconds, arguments = time_calls(compiled, part.arguments, state=part.state)
    recorded = kernel_times(compiled, arguments, state=part.state, steps=steps)
    kernels = {(name, pieces.get(name, "")): entry for name, entry in recorded.items()}
    busy = sum(entry[1] for entry in kernels.values())
    count = sum(entry[0] for entry in kernels.values()) // steps
    print(f"\n{part.name}: {1e3 * seconds:.2f} ms a call, device busy {busy:.2f} ms, {count} kernels a call")
    if not kernels:
        print("(this backend's profile names no kernels)")
        return
    by_piece = collections.Counter()
    for (name, piece), entry in kernels.items():
        by_piece[_short(piece) or f"({name})"] += entry[1]
    for piece, milliseconds in by_piece.most_common(40):
        print(f"  {milliseconds:8.3f} ms  {piece}")
    print("  longest kernels:")
    for (name, piece), entry in sorted(kernels.items(), key=lambda item: -item[1][1])[:40]:
        print(f"  {entry[1]:8.3f} ms  {entry[0] // steps:4d} x  {name:40s} {piece[-110:]}")


def kernel_times(compiled, arguments, *, state=False, steps=5):
    """Records how long each kernel keeps the devices busy.

    Args:
      compiled: function of the arguments.
      arguments: tuple.
      state: see `Part`.
      steps: calls that are recorded.

    Returns:
      {name of the kernel: [launches in all, milliseconds a call]}, summed over this process's devices; empty where the
      backend's profile names no kernels.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                result = compiled(*arguments)
                arguments = (result[0], *arguments[1:]) if state else arguments
            jax.block_until_ready(result)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    kernels = collections.defaultdict(lambda: [0, 0.0])
    for plane in data.planes:
        if not plane.name.startswith("/device:"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                facts = dict(event.stats)
                entry = kernels[str(facts.get("hlo_op") or event.name).replace(".", "_").replace("-", "_")]
                entry[0] += 1
                entry[1] += event.duration_ns / 1e6 / steps
    return dict(kernels)


def _short(op_name):
    """The named scopes of an operation, forward and backward apart: "backward stage_1/mlp"."""
    direction = "backward " if "transpose(" in op_name else ""
    words = re.findall(r"[a-z_0-9]+", op_name)
    known = [word for word in words if word in _SCOPES or word.startswith("stage_")]
    return direction + "/".join(dict.fromkeys(known))


_SCOPES = frozenset(
    ["backbone", "fpn", "rpn", "proposals", "match_anchors", "match_proposals", "rpn_losses", "roi_head", "roi_align"]
    + ["roi_losses", "detections", "kernel_selection", "channel_mixing", "mlp"]
)


# The command.


def table(rows, ceilings):
    """The rows as Markdown."""
    lines = [
        f"{devices.hardware()}, jax {jax.__version__}, code {code_version()}. Measured: copy "
        f"{ceilings.bandwidth / 1e12:.3g} TB/s, bfloat16 product {ceilings.matrix / 1e12:.3g} TFLOP/s, float32 "
        f"multiply-adds {ceilings.vector / 1e12:.3g} TFLOP/s.",
        "",
        "| part / images or boxes | ms | images/s | memory GiB | compile s | floor ms | times the floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        fields = [
            f"{row.milliseconds:.3g}", f"{row.images_per_second:.4g}", _text(row.memory_gib, ".2f"),
            _text(row.compile_seconds, ".1f"), _text(row.floor_milliseconds, ".3g"), _text(row.ratio, ".1f"),
        ]  # fmt: skip
        lines.append(f"| {row.part} | " + " | ".join(fields) + " |")
    return "\n".join(lines)


def _text(value, form):
    return "" if value is None else format(value, form)


def run(options):
    """Runs the command. Args: options, of `cli.benchmark`. Returns: exit status."""
    small = jax.default_backend() == "cpu"
    image = options.image or (128 if small else 1024)
    batch = options.batch or (2 if small else 8)
    dtype = jnp.dtype(options.dtype or ("float32" if small else "bfloat16"))
    if image % 64 or image < 64:
        raise UserError(f"--image: expected a multiple of 64, got {image}")
    if options.cached:
        devices.enable_compilation_cache()

    end_to_end = f"end_to_end_train_t/{batch}"
    makers = device_parts(
        image,
        batch,
        dtype,
        pretraining_image=options.image or (64 if small else 224),
        pretraining_batch=options.batch or (2 if small else 512),
    )
    names = [*makers, "input_pipeline/core", end_to_end]
    # In the order of the patterns: a run that is cut off has measured first what was named first.
    chosen = list(dict.fromkeys(name for pattern in options.only for name in fnmatch.filter(names, pattern)))
    if options.list or not chosen:
        print("\n".join(names))
        if not options.list:
            raise UserError(f"--only={','.join(options.only)}: no part above matches")
        return 0
    with jax.set_mesh(_mesh()):
        if options.profile:
            for name in chosen:
                if name in makers:
                    profile(makers[name]())
            return 0
        ceilings = measure_ceilings()
        facts = {"hardware": devices.hardware(), "jax": jax.__version__, "commit": code_version()}
        facts["ceilings"] = ceilings._asdict()
        rows = []
        for name in chosen:
            with tempfile.TemporaryDirectory() as folder:
                if name == end_to_end:
                    part = training("t", image, batch, dtype)
                    row = measure_end_to_end(part, pathlib.Path(folder), image, batch, options.workers)
                elif name in makers:
                    row = measure(makers[name](), ceilings)
                else:
                    row = measure_pipeline(pathlib.Path(folder), image, batch)
            rows.append(row)
            # As they come: a long run that is cut off has shown what it measured.
            print(
                f"{row.part}: {row.milliseconds:.3g} ms, {_text(row.memory_gib, '.2f')} GiB, "
                f"compiled in {_text(row.compile_seconds, '.1f')} s",
                flush=True,
            )
            if options.json:
                figures = facts | {"rows": [row._asdict() for row in rows]}
                files.write_text(options.json, json.dumps(figures, indent=2) + "\n")
    print("\n" + table(rows, ceilings))
    return 0
