"""The parts that are timed on the device: each function makes one, of random inputs, with the work that it must do."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from haksnet_jax import tasks
from haksnet_jax.configs import dota_ss_t, imagenet_t
from haksnet_jax.distributed import mesh as devices
from haksnet_jax.geometry import matching, nms, rotated_iou
from haksnet_jax.geometry.anchors import STRIDES, anchor_grid, inside_image
from haksnet_jax.geometry.boxes import boxes_to_hboxes
from haksnet_jax.inference.detection_session import make_step, placed
from haksnet_jax.kernels import roi_align
from haksnet_jax.kernels.depthwise import depthwise_conv
from haksnet_jax.models.architecture import haksnet_detector
from haksnet_jax.models.backbones.haksnet import SIZES, BackboneSize, HAKSNet
from haksnet_jax.models.detection_loss import AnchorSampling
from haksnet_jax.models.oriented_rcnn import BoxSettings
from haksnet_jax.models.roi_head import DetectionSettings
from haksnet_jax.models.rpn import ProposalSettings, select_proposals
from haksnet_jax.structures import GroundTruth
from haksnet_jax.tools.benchmark.timing import Part, Work
from haksnet_jax.training import optimizer
from haksnet_jax.training.state import create_state
from haksnet_jax.training.step import make_train_step

NUM_CLASSES = 15
OBJECTS = 60  # an image
UPSTREAM_BATCH = {"t": 2, "s": 1}  # images a GPU


def _maps(image, batch):
    """[B, H, W] positions of the maps at strides 4, 8, 16, 32, 64."""
    return [batch * (image // stride) ** 2 for stride in STRIDES]


def backbone_work(size: BackboneSize, image: int, batch: int, *, bytes_each: int = 2) -> Work:
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


def neck_and_heads_work(
    size: BackboneSize,
    image: int,
    batch: int,
    rois: int,
    *,
    channels: int = 256,
    hidden: int = 1024,
    bytes_each: int = 2,
) -> Work:
    """Forward pass of pyramid, RPN and RoI head: each map is written and read once."""
    total = Work()
    for positions, c in zip(_maps(image, batch), (*size.channels, 0), strict=True):
        total += Work(3 * positions * channels * bytes_each, 2 * positions * channels * (c + 9 * channels))  # pyramid
        total += Work(positions * 21 * 4, 2 * positions * channels * (9 * channels + 21))  # RPN
    pooled = batch * rois * 49 * channels
    weights = 49 * channels * hidden + hidden * hidden
    return total + Work(2 * pooled * bytes_each + weights * bytes_each, 2 * batch * rois * weights)


def random_ground_truth(batch: int, image: int, objects: int = OBJECTS, seed: int = 0) -> GroundTruth:
    """GroundTruth of random boxes between 12 and 200 pixels. Args: batch; image, side in pixels; objects an image."""
    generator = np.random.default_rng(seed)
    boxes = random_boxes(batch * objects, image, seed=seed).reshape(batch, objects, 5)
    return GroundTruth(
        boxes=jnp.asarray(boxes),
        labels=jnp.asarray(generator.integers(0, NUM_CLASSES, (batch, objects)), jnp.int32),
        valid=jnp.ones((batch, objects), bool),
        image_size=jnp.full((batch, 2), image, jnp.int32),
    )


def random_boxes(count: int, image: int, seed: int = 0) -> np.ndarray:
    """[count, 5] float32 oriented boxes within a square image."""
    generator = np.random.default_rng(seed)
    long = np.exp(generator.uniform(np.log(12), np.log(200), count)) * image / 1024
    short = long * generator.uniform(0.2, 1.0, count)
    centre = generator.uniform(0, image, (2, count))
    return np.stack([*centre, long, short, generator.uniform(-np.pi / 2, np.pi / 2, count)], axis=-1).astype(np.float32)


def random_images(batch: int, image: int, seed: int = 0) -> jax.Array:
    """[batch, image, image, 3] uint8 on the device."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, (batch, image, image, 3), np.uint8))


def backbone(name: str, image: int, batch: int, dtype: np.dtype, *, gradient: bool = False) -> Part:
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


def one_device() -> jax.sharding.Mesh:
    """A mesh of the first device alone."""
    return devices.data_mesh(jax.local_devices()[:1])


def detector(name: str, image: int, batch: int, dtype: np.dtype) -> Part:
    """Part: detection, the last suppression included."""
    graph, params, stats = _detector(name, dtype, one_device())
    variables = placed({"params": params, "batch_stats": stats}, one_device(), dtype)
    sizes, scale = jnp.full((batch, 2), image, jnp.int32), jnp.ones((batch, 2), jnp.float32)
    arguments = (variables, random_images(batch, image), sizes, scale, np.float32(0.05))
    step = make_step(graph, one_device(), proposal_settings=ProposalSettings(), detection_settings=DetectionSettings())
    work = backbone_work(SIZES[name], image, batch) + neck_and_heads_work(SIZES[name], image, batch, 2000)
    return Part(f"detect_{name}/{batch}", step, arguments, batch, work)


def training_config(name: str, image: int, dtype: np.dtype) -> ml_collections.ConfigDict:
    """The configuration of a training step that is timed: DOTA's, with the size, image and arithmetic given."""
    config = dota_ss_t.get_config()
    with config.unlocked():
        config.model.backbone = f"haksnet_{name}"
        config.model.dtype = jnp.dtype(dtype).name
        config.data.image_size = (image, image)
        config.data.max_boxes = OBJECTS
        config.augment.quarter_turn_classes = ()  # any angle: what costs the host most
    return config


def training(name: str, image: int, batch: int, dtype: np.dtype, *, mesh: jax.sharding.Mesh | None = None) -> Part:
    """Part: a whole training step, the optimiser included, on a mesh's devices (default: the first device)."""
    mesh = mesh or one_device()
    truth = jax.tree.map(np.asarray, random_ground_truth(batch, image)._asdict())
    arrays = {"image": np.asarray(random_images(batch, image))} | truth
    step, state, placed = _step(training_config(name, image, dtype), arrays, mesh)
    work = backbone_work(SIZES[name], image, batch) + neck_and_heads_work(SIZES[name], image, batch, 512)
    # Parameter and two moments are read and written, the gradient is read.
    work = work.times(3) + Work(7 * 4 * _num_parameters(state))
    return Part(f"train_{name}/{batch}", step, (state, placed, np.float32(1e-4)), batch, work, state=True)


def pretraining(name: str, image: int, batch: int, dtype: np.dtype) -> Part:
    """Part: a whole step of ImageNet's recipe: augmentation on the device, the network, the optimiser, the averages."""
    config = imagenet_t.get_config()
    with config.unlocked():
        config.model.backbone = f"haksnet_{name}"
        config.model.dtype = dtype.name
        config.data.image_size = (image, image)
    labels = np.random.default_rng(0).integers(0, len(config.data.class_names), batch).astype(np.int32)
    arrays = {"image": np.asarray(random_images(batch, image)), "label": labels}
    step, state, placed = _step(config, arrays, one_device())
    # Parameter, two moments and the average are read and written, the gradient is read.
    work = backbone_work(SIZES[name], image, batch).times(3) + Work(9 * 4 * _num_parameters(state))
    return Part(f"pretrain_{name}/{batch}", step, (state, placed, np.float32(1e-4)), batch, work, state=True)


def _step(config, arrays, mesh):
    """(step, state, placed arrays) of a configuration, as the training loop makes them of its task."""
    task, tx = tasks.of(config), optimizer.of_config(config)
    graph, state = create_state(
        lambda rngs: task.build_model(config, rngs=rngs), tx, mesh, seed=0, ema=bool(config.ema_decay)
    )
    step = make_train_step(graph, tx, mesh, task.loss(config), ema_decay=config.ema_decay)
    return step, state, devices.place_batch(mesh, arrays)


def _num_parameters(state):
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))


def depthwise_cascade(image: int, batch: int, dtype: np.dtype, *, gradient: bool = False) -> Part:
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


def iou(image: int, count: int) -> Part:
    """Part: overlaps of all pairs."""
    boxes = jnp.asarray(random_boxes(count, image))
    # About 215 operations a pair as the code is (see the module); the matrix is written once.
    work = Work(4 * count**2, 0, 215 * count**2)
    return Part(f"rotated_iou/{count}", jax.jit(rotated_iou.rotated_iou_matrix), (boxes, boxes), 1, work)


def suppression(image: int, count: int) -> Part:
    """Part: rotated suppression of one image's boxes, IoU 0.1, all of one class."""
    boxes = jnp.asarray(random_boxes(count, image))
    scores = jax.random.uniform(jax.random.key(0), (count,))

    def suppress(boxes, scores):
        return nms.nms_rotated(boxes, scores, scores > 0, iou_threshold=0.1, max_outputs=count)

    work = Work(32 * count, 0, 215 * count**2 / 2)  # each pair once
    return Part(f"nms_rotated/{count}", jax.jit(suppress), (boxes, scores), 1, work)


def pooling(image: int, batch: int, dtype: np.dtype, *, gradient: bool = False, rois: int = 512) -> Part:
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


def _anchors(image):
    boxes = BoxSettings()
    return anchor_grid((image, image), STRIDES, scale=boxes.anchor_scale, ratios=boxes.anchor_ratios)


def anchor_matching(image: int, batch: int) -> Part:
    """Part: matching of all anchors with the objects."""
    anchors = jnp.asarray(_anchors(image))
    truth = random_ground_truth(batch, image)

    def match(anchors, truth):
        def one_image(boxes, valid, size):
            settings = AnchorSampling()
            return matching.match_anchors(
                anchors, boxes_to_hboxes(boxes), valid, inside_image(anchors, size),
                positive_iou=settings.positive_iou, negative_iou=settings.negative_iou,
                min_positive_iou=settings.min_positive_iou,
            )  # fmt: skip

        return jax.vmap(one_image)(truth.boxes, truth.valid, truth.image_size)

    work = Work(anchors.nbytes + 10 * batch * len(anchors), 0, 15 * batch * OBJECTS * len(anchors))
    return Part(f"match_anchors/{batch}", jax.jit(match), (anchors, truth), batch, work)


def proposal_selection(image: int, batch: int) -> Part:
    """Part: the best 2,000 anchors of each level decoded, suppressed, and the best 2,000 of all taken."""
    anchors = _anchors(image)
    logits = jax.random.normal(jax.random.key(0), (batch, len(anchors)))
    deltas = 0.1 * jax.random.normal(jax.random.key(1), (batch, len(anchors), 6))
    boxes = BoxSettings()
    function = jax.jit(
        functools.partial(
            select_proposals, anchors=anchors, image_shape=(image, image), strides=STRIDES,
            anchors_per_cell=len(boxes.anchor_ratios), stds=boxes.rpn_stds,
        )
    )  # fmt: skip
    pairs = batch * sum(min(2000, 3 * (image // stride) ** 2) ** 2 for stride in STRIDES) / 2
    return Part(f"proposals/{batch}", function, (logits, deltas), batch, Work(logits.nbytes, 0, 15 * pairs))


def device_parts(
    image: int, batch: int, dtype: np.dtype, *, pretraining_image: int = 224, pretraining_batch: int = 512
) -> dict[str, Callable[[], Part]]:
    """All parts that run on the device. Returns: {name: function that makes the Part}."""
    makers: dict[str, Callable[[], Part]] = {}
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
