"""Suppression against the reference's fixtures, a plain loop over boxes, and what must hold for any boxes."""

import functools
import math

import cuda_machine
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haksnet_jax.geometry.nms import nms_horizontal, nms_rotated
from haksnet_jax.geometry.rotated_iou import box_frames, rotated_iou_matrix
from haksnet_jax.kernels import suppression_cuda

STATIC = ("max_outputs", "block_size", "iou_threshold")
horizontal = jax.jit(nms_horizontal, static_argnames=STATIC)
rotated = jax.jit(nms_rotated, static_argnames=STATIC)
rotated_overlaps = jax.jit(rotated_iou_matrix)


def horizontal_overlaps(hboxes, others):
    """[N, M] IoU in float32, as the op computes it."""
    low = np.maximum(hboxes[:, None, :2], others[None, :, :2])
    high = np.minimum(hboxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    area1, area2 = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (hboxes, others))
    union = area1[:, None] + area2[None, :] - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0)


def greedy(overlaps, scores, valid, iou_threshold, max_outputs, groups=None):
    """The plain loop: kept indices best first, and the number of boxes that only the cap left out."""
    groups = np.zeros(len(scores)) if groups is None else groups
    left = [i for i in np.argsort(-scores, kind="stable") if valid[i] and np.isfinite(scores[i])]
    kept = []
    while left and len(kept) < max_outputs:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if groups[i] != groups[best] or not overlaps[best, i] > np.float32(iou_threshold)]
    return kept, len(left)


def kept_indices(result):
    index, kept, num_cut = (np.asarray(x) for x in result)
    assert index.dtype == np.int32 and kept.dtype == bool and num_cut.shape == ()
    count = kept.sum()
    assert kept[:count].all(), "kept rows come first"
    assert (index[count:] == 0).all()
    return index[:count].tolist(), int(num_cut)


def scene(seed, n, kind):
    """Boxes crowded around a few centres, scores with ties, some rows not valid, some without area or not finite."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 200, (max(n // 12, 1), 2))[rng.integers(0, max(n // 12, 1), n)] + rng.normal(0, 6, (n, 2))
    w = rng.uniform(10, 40, n)
    h = w * rng.uniform(0.3, 1, n)
    boxes = np.concatenate([centres, w[:, None], h[:, None], rng.uniform(-1.57, 1.57, (n, 1))], 1).astype(np.float32)
    boxes[:: max(n // 5, 1), 3] = 0
    if kind == "horizontal":
        boxes = np.concatenate([boxes[:, :2] - boxes[:, 2:4] / 2, boxes[:, :2] + boxes[:, 2:4] / 2], 1)
    scores = (np.round(rng.uniform(0, 1, n) * 50) / 50).astype(np.float32)
    if n > 20:
        scores[3], scores[7], scores[11] = np.nan, np.inf, -np.inf
    return boxes, scores, rng.uniform(size=n) > 0.1, rng.integers(0, 3, n).astype(np.int32)


OPS = {"horizontal": (horizontal, horizontal_overlaps), "rotated": (rotated, rotated_overlaps)}


@pytest.mark.parametrize("kind", ["horizontal", "rotated"])
@pytest.mark.parametrize(
    ("max_outputs", "block_size"),
    [
        # Outputs: ends early, cuts some, room for all. Blocks: many, a last one partly filled, a single one.
        *((10, 16), (60, 64), (400, 512), (400, 16), (10, 512)),
        # The other pairs of the same.
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((10, 64), (60, 16), (60, 512), (400, 64))),
    ],
)
def test_kept_boxes_and_their_order_are_those_of_the_plain_loop(kind, block_size, max_outputs):
    op, overlaps = OPS[kind]
    for seed, iou_threshold in enumerate([0.3, 0.3]):
        boxes, scores, valid, groups = scene(seed, 300, kind)
        iou = np.asarray(overlaps(boxes, boxes))
        for groups_or_none in (None, groups):
            expected = greedy(iou, scores, valid, iou_threshold, max_outputs, groups_or_none)
            arguments = {"iou_threshold": iou_threshold, "max_outputs": max_outputs, "block_size": block_size}
            assert kept_indices(op(boxes, scores, valid, groups=groups_or_none, **arguments)) == expected


@pytest.mark.parametrize("block_size", [8, 64])
def test_a_long_chain_of_suppressions_is_followed_to_its_end(block_size):
    # Each box overlaps its neighbours alone: the first, third, fifth... are kept, which no few passes can find out.
    n = 64
    x = np.arange(n, dtype=np.float32) * 5
    hboxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], 1)
    scores = np.linspace(1, 0.1, n, dtype=np.float32)
    result = horizontal(hboxes, scores, scores > 0, iou_threshold=0.3, max_outputs=n, block_size=block_size)
    assert kept_indices(result) == (list(range(0, n, 2)), 0)


def test_rotated_suppression_is_that_of_the_fixture(golden):
    fixture = golden("nms_rotated")
    for case in ["dense_01", "dense_05", "sparse_01"]:
        boxes, scores = fixture[f"{case}/boxes"], fixture[f"{case}/scores"]
        threshold = fixture.manifest["cases"][case]["threshold"]
        result = rotated(boxes, scores, scores > -1, iou_threshold=threshold, max_outputs=len(scores))
        assert kept_indices(result) == (fixture[f"{case}/keep"].tolist(), 0)


def test_duplicates_and_ties_of_the_fixture(golden):
    fixture = golden("nms_rotated")
    boxes, scores = fixture["duplicates/boxes"], fixture["duplicates/scores"]
    kept, _ = kept_indices(rotated(boxes, scores, scores > -1, iou_threshold=0.1, max_outputs=60))
    # Three copies of each box; the reference keeps any one of them, we the first.
    assert [i // 3 for i in kept] == (fixture["duplicates/keep"] // 3).tolist()
    assert all(i % 3 == 0 for i in kept)
    boxes, scores = fixture["ties/boxes"], fixture["ties/scores"]
    kept, _ = kept_indices(rotated(boxes, scores, scores > -1, iou_threshold=0.1, max_outputs=40))
    assert sorted(kept) == sorted(fixture["ties/keep"].tolist())
    assert kept == np.argsort(-scores, kind="stable").tolist()


@pytest.mark.parametrize("case", ["multi", "multi_cap"])
def test_suppression_by_class_is_that_of_the_fixture(golden, case):
    fixture = golden("nms_rotated")
    settings = fixture.manifest["cases"][case]
    boxes, scores = fixture[f"{case}/boxes"], fixture[f"{case}/scores"][:, :-1]  # the background is the last column
    box_index, labels = (x.reshape(-1).astype(np.int32) for x in np.indices(scores.shape))
    scores = scores.reshape(-1)
    kept, num_cut = kept_indices(
        rotated(
            boxes[box_index],
            scores,
            scores > settings["score_thr"],
            iou_threshold=settings["iou_thr"],
            max_outputs=settings["max_num"],
            groups=labels,
            block_size=2048,
        )
    )
    assert (num_cut > 0) == (case == "multi_cap")
    expected = np.concatenate([fixture[f"{case}/dets"], fixture[f"{case}/labels"][:, None]], 1)
    ours = np.concatenate([boxes[box_index[kept]], scores[kept][:, None], labels[kept][:, None]], 1)
    np.testing.assert_array_equal(ours, expected)


def test_horizontal_suppression_is_that_of_the_fixture(golden):
    fixture = golden("nms_horizontal")
    for case in ["plain_08", "plain_05", "edge"]:  # "edge": an IoU of exactly the threshold, boxes of zero width
        hboxes, scores = fixture[f"{case}/boxes"], fixture[f"{case}/scores"]
        threshold = fixture.manifest["cases"][case]["threshold"]
        result = horizontal(hboxes, scores, scores > -1, iou_threshold=threshold, max_outputs=len(scores))
        assert kept_indices(result) == (fixture[f"{case}/keep"].tolist(), 0)


@pytest.mark.parametrize("case", ["batched", "batched_split"])
def test_suppression_by_level_is_that_of_the_fixture(golden, case):
    fixture = golden("nms_horizontal")
    hboxes, scores, levels = (fixture[f"{case}/{name}"] for name in ("boxes", "scores", "levels"))
    levels = levels.astype(np.int32)
    result = horizontal(hboxes, scores, scores > -1, iou_threshold=0.8, max_outputs=len(scores), groups=levels)
    kept, _ = kept_indices(result)
    # Scores are rounded to three digits: within equal scores the reference's order is arbitrary.
    np.testing.assert_array_equal(scores[kept], scores[fixture[f"{case}/keep"]])
    assert sorted(kept) == sorted(fixture[f"{case}/keep"].tolist())


def test_an_overlap_of_exactly_the_threshold_is_kept():
    hboxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)  # IoU 0.5
    scores = np.array([0.9, 0.8], np.float32)
    assert kept_indices(horizontal(hboxes, scores, scores > 0, iou_threshold=0.5, max_outputs=2))[0] == [0, 1]
    assert kept_indices(horizontal(hboxes, scores, scores > 0, iou_threshold=0.499, max_outputs=2))[0] == [0]


def test_diagonal_neighbours_are_kept_by_rotated_and_not_by_horizontal_suppression():
    boxes = np.array([[50, 50, 80, 10, math.pi / 4], [60, 40, 80, 10, math.pi / 4]], np.float32)
    hboxes = np.array([[18, 18, 82, 82], [28, 8, 92, 72]], np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    assert kept_indices(rotated(boxes, scores, scores > 0, iou_threshold=0.1, max_outputs=2))[0] == [0, 1]
    assert kept_indices(horizontal(hboxes, scores, scores > 0, iou_threshold=0.1, max_outputs=2))[0] == [0]


def test_nothing_valid_keeps_nothing_and_cuts_nothing():
    boxes, scores, valid, _ = scene(0, 50, "rotated")
    for block_size in (16, 64):
        result = rotated(boxes, scores, np.zeros_like(valid), iou_threshold=0.1, max_outputs=5, block_size=block_size)
        assert kept_indices(result) == ([], 0)
    empty = nms_rotated(boxes[:0], scores[:0], valid[:0], iou_threshold=0.1, max_outputs=5)
    assert kept_indices(empty) == ([], 0)


def test_rows_that_are_not_valid_or_not_finite_do_not_matter():
    boxes, scores, valid, _ = scene(1, 60, "rotated")
    expected = kept_indices(rotated(boxes, scores, valid, iou_threshold=0.2, max_outputs=60))
    others = boxes.copy()
    others[~valid] = [100, 100, 500, 500, 0]
    others_scores = np.where(valid, scores, 9).astype(np.float32)
    assert kept_indices(rotated(others, others_scores, valid, iou_threshold=0.2, max_outputs=60)) == expected
    broken = boxes.copy()
    row = expected[0][0]
    broken[row] = np.nan
    without = valid.copy()
    without[row] = False
    result = kept_indices(rotated(broken, scores, valid, iou_threshold=0.2, max_outputs=60))
    assert result == kept_indices(rotated(boxes, scores, without, iou_threshold=0.2, max_outputs=60))


@pytest.mark.parametrize("kind", ["horizontal", "rotated"])
@pytest.mark.parametrize("block_size", [32, 128])
def test_vmap_gives_each_image_its_own_result(kind, block_size):
    op = nms_horizontal if kind == "horizontal" else nms_rotated
    op = functools.partial(op, iou_threshold=0.25, max_outputs=20, block_size=block_size)
    images = [scene(seed, 100, kind) for seed in range(3)]
    images[1][2][:] = False  # an image without boxes beside others
    images[2][2][40:] = False
    boxes, scores, valid, groups = (np.stack(x) for x in zip(*images, strict=True))
    together = jax.jit(jax.vmap(lambda b, s, v, g: op(b, s, v, groups=g)))(boxes, scores, valid, groups)
    alone = jax.jit(lambda b, s, v, g: op(b, s, v, groups=g))
    for i, image in enumerate(images):
        expected = kept_indices(alone(*image))
        assert kept_indices(jax.tree.map(lambda x, i=i: x[i], together)) == expected


def test_groups_may_be_a_constant_shared_by_all_images():
    images = [scene(seed, 40, "horizontal")[:3] for seed in range(2)]
    groups = np.arange(40, dtype=np.int32) % 3
    op = functools.partial(nms_horizontal, iou_threshold=0.2, max_outputs=40, groups=groups)
    boxes, scores, valid = (np.stack(x) for x in zip(*images, strict=True))
    together = jax.jit(jax.vmap(op))(boxes, scores, valid)
    for i, image in enumerate(images):
        expected = greedy(horizontal_overlaps(image[0], image[0]), *image[1:], 0.2, 40, groups)
        assert kept_indices(jax.tree.map(lambda x, i=i: x[i], together)) == expected


def test_more_outputs_than_boxes():
    boxes, scores, valid, _ = scene(2, 10, "rotated")
    index, kept, num_cut = nms_rotated(boxes, scores, valid, iou_threshold=0.99, max_outputs=25)
    assert index.shape == kept.shape == (25,) and int(num_cut) == 0
    assert int(jnp.sum(kept)) == valid.sum()


@pytest.fixture(scope="module", params=["emulation", "gpu"])
def gpu(request, tmp_path_factory):
    """Where the kernels for NVIDIA GPUs serve."""
    sorting, suppressing = (tmp_path_factory.mktemp(source) for source in ("selection", "suppression"))
    with (
        cuda_machine.machine(request.param, "selection", sorting),
        cuda_machine.machine(request.param, "suppression", suppressing),
        cuda_machine.nvidia_gpu(request.param),
    ):
        yield


@pytest.mark.parametrize("kind", ["horizontal", "rotated"])
@pytest.mark.parametrize(
    ("n", "max_outputs"),
    [
        (1, 1),
        (33, 10),  # one box more than a word has
        (300, 60),
        (1100, 1100),  # more boxes than threads
        (2050, 300),  # more than two boxes for each thread, ends early
        pytest.param(4100, 4100, marks=pytest.mark.slow),
    ],
)
def test_kernels_keep_what_the_plain_loop_keeps(gpu, kind, n, max_outputs):
    op, overlaps = OPS[kind]
    boxes, scores, valid, groups = scene(n, n, kind)
    iou = np.asarray(overlaps(boxes, boxes))
    for groups_or_none in (None, groups):
        expected = greedy(iou, scores, valid, 0.3, max_outputs, groups_or_none)
        result = op(boxes, scores, valid, groups=groups_or_none, iou_threshold=0.3, max_outputs=max_outputs)
        assert kept_indices(result) == expected


def test_kernels_divide_where_rounding_decides(gpu):
    # Quotients one rounding below, at and above the threshold, of whole numbers as float32 holds them.
    width = np.float32(1 << 12)
    hboxes = np.array([[0, 0, width, y] for y in (3000, 2999, 3001, 1500, 1499)], np.float32)
    hboxes = np.concatenate([hboxes, [[9, 9, 9, 9], [9, 9, 9, 9], [8, 8, 7, 9], [8, 8, 7, 7]]]).astype(np.float32)
    scores = np.linspace(1, 0.1, len(hboxes), dtype=np.float32)
    iou = horizontal_overlaps(hboxes, hboxes)
    for threshold in np.unique(iou[:5, :5]).tolist():
        for near in (threshold, np.nextafter(np.float32(threshold), 0), np.nextafter(np.float32(threshold), 1)):
            near = float(min(near, 1))
            result = horizontal(hboxes, scores, scores > 0, iou_threshold=near, max_outputs=len(scores))
            assert kept_indices(result) == greedy(iou, scores, scores > 0, near, len(scores))


@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.7, 0.99])
def test_kernels_compare_oriented_boxes_of_any_shape(gpu, threshold):
    rng = np.random.default_rng(5)
    n = 300
    boxes = np.stack(
        [rng.uniform(0, 300, n), rng.uniform(0, 300, n), *np.exp(rng.uniform(-2, 7, (2, n))), rng.uniform(-9, 9, n)], 1
    ).astype(np.float32)
    boxes[::7] = boxes[1::7][: len(boxes[::7])] + np.float32([0, 0, 0, 0, 1e-6])  # all but the same
    boxes[3::7, 4] = boxes[4::7, 4][: len(boxes[3::7])] + np.float32(np.pi / 2)  # a quarter turn apart
    boxes[5::40, 2] = 0
    boxes[9, :4] = 0, 0, 1e20, 1e20  # whose squares float32 does not hold
    frames = jnp.stack(box_frames(jnp.asarray(boxes)))
    words = np.asarray(suppression_cuda.rotated_words(frames[None], jnp.array([n]), iou_threshold=threshold))[0]
    suppresses = (words[:, None] >> np.arange(32, dtype=np.uint32)[:, None] & 1).astype(bool).reshape(-1, n)[:n]
    iou = np.asarray(rotated_iou_matrix(boxes, boxes))
    before = np.arange(n)[:, None] < np.arange(n)
    clear = before & (abs(iou - threshold) > 1e-5)  # not left to the rounding of either
    np.testing.assert_array_equal(suppresses[clear], (iou > threshold)[clear])
    assert (before & ~clear).sum() < 50 and (iou > threshold)[clear].sum() > 10


def test_kernels_follow_a_chain_through_all_words(gpu):
    n = 100
    x = np.arange(n, dtype=np.float32) * 5
    hboxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], 1)
    scores = np.linspace(1, 0.1, n, dtype=np.float32)
    result = horizontal(hboxes, scores, scores > 0, iou_threshold=0.3, max_outputs=n)
    assert kept_indices(result) == (list(range(0, n, 2)), 0)


def test_kernels_keep_nothing_of_nothing(gpu):
    boxes, scores, valid, _ = scene(0, 50, "horizontal")
    result = horizontal(boxes, scores, np.zeros_like(valid), iou_threshold=0.1, max_outputs=5)
    assert kept_indices(result) == ([], 0)


@pytest.mark.parametrize("kind", ["horizontal", "rotated"])
def test_kernels_give_each_of_several_images_its_own_result(gpu, kind):
    op = nms_horizontal if kind == "horizontal" else nms_rotated
    op = functools.partial(op, iou_threshold=0.25, max_outputs=20)
    images = [scene(seed, 100, kind) for seed in range(4)]
    images[1][2][:] = False  # an image without boxes beside others
    images[2][2][40:] = False
    groups = images[0][3]
    stacked = [np.stack(x).reshape(2, 2, *x[0].shape) for x in list(zip(*images, strict=True))[:3]]
    inner = jax.vmap(lambda *image: op(*image, groups=groups))
    together = jax.jit(jax.vmap(inner))(*stacked)
    overlaps = OPS[kind][1]
    for i, (boxes, scores, valid, _) in enumerate(images):
        expected = greedy(np.asarray(overlaps(boxes, boxes)), scores, valid, 0.25, 20, groups)
        assert kept_indices(jax.tree.map(lambda x, i=i: x[i // 2, i % 2], together)) == expected

    boxes, scores, valid, _ = images[0]
    grouped = np.stack([groups, 0 * groups])  # (the same boxes, grouped in two ways)
    together = jax.vmap(lambda groups: op(boxes, scores, valid, groups=groups))(grouped)
    for i in range(2):
        expected = greedy(np.asarray(overlaps(boxes, boxes)), scores, valid, 0.25, 20, grouped[i])
        assert kept_indices(jax.tree.map(lambda x, i=i: x[i], together)) == expected
