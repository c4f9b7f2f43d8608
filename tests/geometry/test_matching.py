import functools
import math
import re

import cuda_machine
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapely

from haksnet_jax.geometry import matching
from haksnet_jax.geometry.anchors import anchor_grid, inside_image
from haksnet_jax.geometry.boxes import boxes_to_corners, boxes_to_hboxes
from haksnet_jax.geometry.matching import match_anchors, match_proposals, sample

PUBLISHED = {"positive_iou": 0.7, "negative_iou": 0.3, "min_positive_iou": 0.3}
match = jax.jit(functools.partial(match_anchors, **PUBLISHED))
match_rois = jax.jit(functools.partial(match_proposals, positive_iou=0.5))


def overlaps_by_loops(anchors, gt_hboxes):
    """Plain float32 arithmetic, one pair at a time."""
    result = np.zeros((len(anchors), len(gt_hboxes)), np.float32)
    for i, (ax1, ay1, ax2, ay2) in enumerate(anchors):
        for j, (x1, y1, x2, y2) in enumerate(gt_hboxes):
            width, height = min(ax2, x2) - max(ax1, x1), min(ay2, y2) - max(ay1, y1)
            if width > 0 and height > 0:
                intersection = width * height
                result[i, j] = intersection / ((ax2 - ax1) * (ay2 - ay1) + (x2 - x1) * (y2 - y1) - intersection)
    return result


def assign_by_loops(overlaps, gt_valid, candidates, positive_iou=0.7, negative_iou=0.3, min_positive_iou=0.3):
    """1 + row of the ground truth, 0 for background, -1 for neither: rule by rule."""
    assigned = np.full(len(overlaps), -1)
    for i in np.flatnonzero(candidates):
        best, best_j = 0.0, 0
        for j in np.flatnonzero(gt_valid):
            if overlaps[i, j] > best:
                best, best_j = overlaps[i, j], j
        if best >= positive_iou:
            assigned[i] = best_j + 1
        elif best < negative_iou:
            assigned[i] = 0
    for j in np.flatnonzero(gt_valid):
        of_candidates = overlaps[candidates, j]
        if len(of_candidates) and of_candidates.max() >= min_positive_iou:
            for i in np.flatnonzero(candidates):
                if overlaps[i, j] == of_candidates.max():
                    assigned[i] = j + 1
    return assigned


def as_assigned(matches):
    positive, negative = np.asarray(matches.positive), np.asarray(matches.negative)
    assert not np.any(positive & negative)
    return np.where(positive, np.asarray(matches.gt_index) + 1, np.where(negative, 0, -1))


def scene(seed, num_anchors=300, num_gt=70, extent=64):
    """Boxes on whole pixels: products of small integers are exact in float32, so ties are ties in any arithmetic."""
    rng = np.random.default_rng(seed)

    def hboxes(n):
        corner = rng.integers(0, extent, (n, 2))
        return np.concatenate([corner, corner + rng.integers(4, 25, (n, 2))], axis=1).astype(np.float32)

    gt_valid = rng.random(num_gt) < 0.7
    return hboxes(num_anchors), hboxes(num_gt), gt_valid, rng.random(num_anchors) < 0.8


@pytest.mark.parametrize("case", ["rpn_a", "rpn_b", "rpn_none"])
def test_assignments_of_anchors_are_those_of_the_reference(golden, case):
    fixture = golden("assigners")
    anchors, gt_hboxes = fixture[f"{case}/boxes"], fixture[f"{case}/gts"].reshape(-1, 4)
    matches = match(anchors, gt_hboxes, np.ones(len(gt_hboxes), bool), np.ones(len(anchors), bool))
    np.testing.assert_array_equal(as_assigned(matches), fixture[f"{case}/gt_inds"])
    # One fused multiply-add more or less: some units in the last place.
    np.testing.assert_allclose(matches.iou, fixture[f"{case}/max_overlaps"], rtol=0, atol=1e-6)


def test_assignments_of_a_training_step_are_those_of_the_reference(golden):
    fixture = golden("train_step_tiny")
    anchors = anchor_grid((512, 512), (4, 8, 16, 32, 64), scale=8.0, ratios=(0.5, 1, 2))
    inside = inside_image(anchors, (512, 512))
    for image in ("main/img0", "main/img1"):
        boxes = fixture[f"{image}/gt_boxes"]
        padded = np.zeros((40, 5), np.float32)
        padded[: len(boxes)] = boxes
        matches = match(anchors, boxes_to_hboxes(padded), np.arange(40) < len(boxes), inside)
        np.testing.assert_array_equal(as_assigned(matches)[inside], fixture[f"{image}/rpn/assigned"])
        assert not (matches.positive | matches.negative)[~inside].any()


def test_assignments_by_exact_polygon_overlaps_are_those_of_the_reference(golden):
    fixture = golden("assigners")
    proposals = shapely.polygons(boxes_to_corners(fixture["roi_a/boxes"].astype(np.float64)))[:, None]
    objects = shapely.polygons(boxes_to_corners(fixture["roi_a/gts"].astype(np.float64)))
    intersection = shapely.area(shapely.intersection(proposals, objects))
    iou = (intersection / (shapely.area(proposals) + shapely.area(objects) - intersection)).astype(np.float32)
    matches = match_rois(iou, np.ones(len(iou), bool), np.ones(len(objects), bool))
    np.testing.assert_array_equal(as_assigned(matches), fixture["roi_a/gt_inds"])
    # The reference's float32 rotated overlap against the exact one; 1e-5 is the manifest's tolerance.
    np.testing.assert_allclose(matches.iou, fixture["roi_a/max_overlaps"], rtol=0, atol=1e-5)


def test_assignments_of_proposals_are_those_of_the_reference(golden):
    fixture = golden("train_step_tiny")
    expected, best = fixture["main/img0/roi/assigned"], fixture["main/img0/roi/max_overlaps"]
    # Overlaps that lead to the recorded ones: the assigned (else the first) box has the best, the others less.
    iou = np.tile(best[:, None] * np.float32(0.5), (1, 24))
    iou[np.arange(len(best)), np.maximum(expected - 1, 0)] = best
    matches = match_rois(iou, np.ones(len(best), bool), np.ones(24, bool))
    np.testing.assert_array_equal(as_assigned(matches), expected)
    np.testing.assert_array_equal(matches.iou, best)


@pytest.mark.parametrize("seed", range(4))
def test_matches_are_those_of_plain_loops(seed):
    # 70 rows are more than two blocks of 32, with invalid rows among and after the valid ones; whole pixels in a
    # small area make many ties, within a block and between blocks.
    anchors, gt_hboxes, gt_valid, candidates = scene(seed)
    overlaps = overlaps_by_loops(anchors, gt_hboxes)
    matches = match(anchors, gt_hboxes, gt_valid, candidates)
    np.testing.assert_array_equal(as_assigned(matches), assign_by_loops(overlaps, gt_valid, candidates))
    best = np.where(candidates, overlaps[:, gt_valid].max(axis=1), 0)
    np.testing.assert_allclose(matches.iou, best, rtol=1e-6)


def test_thresholds_are_arguments():
    anchors, gt_hboxes, gt_valid, candidates = scene(9)
    thresholds = {"positive_iou": 0.5, "negative_iou": 0.4, "min_positive_iou": 0.2}
    expected = assign_by_loops(overlaps_by_loops(anchors, gt_hboxes), gt_valid, candidates, **thresholds)
    matches = jax.jit(functools.partial(match_anchors, **(PUBLISHED | thresholds)))(
        anchors, gt_hboxes, gt_valid, candidates
    )
    np.testing.assert_array_equal(as_assigned(matches), expected)


def test_the_first_of_equal_boxes_is_matched_and_the_last_claims():
    box = [10, 10, 20, 20]
    anchors = np.array([box, [10, 10, 20, 19], [40, 40, 50, 50]], np.float32)
    gt_hboxes = np.array([box] * 40, np.float32)  # equal boxes in two blocks
    matches = match(anchors, gt_hboxes, np.ones(40, bool), np.ones(3, bool))
    np.testing.assert_array_equal(as_assigned(matches), [40, 1, 0])


def test_all_anchors_that_tie_are_claimed_even_when_their_overlap_is_low():
    # A 10 x 20 box inside 20 x 20 anchors: overlap 0.5 with each that contains it.
    anchors = np.array([[0, 0, 20, 20], [4, 0, 24, 20], [8, 0, 28, 20], [12, 0, 32, 20]], np.float32)
    matches = match(anchors, np.array([[9, 0, 19, 20]], np.float32), np.ones(1, bool), np.ones(4, bool))
    np.testing.assert_array_equal(as_assigned(matches), [1, 1, 1, -1])  # the last one's 7/23 = 0.304 is neither


def test_no_valid_box_makes_every_candidate_negative():
    anchors, gt_hboxes, _, candidates = scene(3)
    for boxes in (gt_hboxes, gt_hboxes[:0], np.full_like(gt_hboxes, np.nan)):
        matches = match(anchors, boxes, np.zeros(len(boxes), bool), candidates)
        np.testing.assert_array_equal(matches.negative, candidates)
        assert not np.any(matches.positive) and not np.any(matches.gt_index) and not np.any(matches.iou)


def test_padding_and_invalid_rows_change_nothing():
    anchors, gt_hboxes, _, candidates = scene(4, num_gt=40)
    alone = match(anchors, gt_hboxes, np.ones(40, bool), candidates)
    # Rubbish after the valid rows, one copy of an anchor among it, which would win if it counted.
    rubbish = np.array([anchors[0], [np.nan] * 4, [9, 9, 1, 1]], np.float32).repeat(10, axis=0)
    padded = match(anchors, np.concatenate([gt_hboxes, rubbish]), np.arange(70) < 40, candidates)
    jax.tree.map(np.testing.assert_array_equal, padded, alone)


def test_boxes_without_area_match_nothing():
    anchors = np.array([[0, 0, 0, 0], [5, 5, 9, 9]], np.float32)
    gt_hboxes = np.array([[0, 0, 0, 0], [6, 6, 6, 8]], np.float32)
    matches = match(anchors, gt_hboxes, np.ones(2, bool), np.ones(2, bool))
    assert np.all(matches.negative) and not np.any(matches.iou)


def test_a_batch_gives_what_its_images_give():
    scenes = [scene(seed) for seed in range(3)]
    scenes[1] = (*scenes[1][:2], np.zeros(70, bool), scenes[1][3])  # its loop ends before it begins
    batch = jax.jit(jax.vmap(functools.partial(match_anchors, **PUBLISHED)))(
        *(np.stack(arrays) for arrays in zip(*scenes, strict=True))
    )
    for i, one in enumerate(scenes):
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x, i=i: x[i], batch), match(*one))


def test_matching_carries_no_gradient():
    anchors, gt_hboxes, gt_valid, candidates = scene(5)
    gradient = jax.grad(lambda a: match(a, gt_hboxes, gt_valid, candidates).iou.sum())(jnp.asarray(anchors))
    assert not np.any(gradient)


def test_the_overlaps_of_all_anchors_and_boxes_are_never_in_memory():
    num_anchors, num_gt = 261_888, 2000
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((num_anchors, 4), jnp.float32),
            ((num_gt, 4), jnp.float32),
            ((num_gt,), bool),
            ((num_anchors,), bool),
        )
    ]
    temporary = match.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    # One block of 32 float32 rows is 34 MB, some vectors of the anchors come on top; the matrix would be 2095 MB.
    assert temporary < 2 * 32 * num_anchors * 4
    assert temporary < num_anchors * num_gt * 4 / 30


def test_proposals_match_the_first_best_valid_box():
    iou = np.array([[0.5, 0.9, 0.9], [0.49, 0.99, 0.1], [0, 0, 0], [0.8, 0.8, 0.8]], np.float32)
    matches = match_rois(iou, np.array([True, True, True, False]), np.array([True, False, True]))
    np.testing.assert_array_equal(as_assigned(matches), [3, 0, 0, -1])
    np.testing.assert_array_equal(matches.gt_index, [2, 0, 0, 0])
    np.testing.assert_allclose(matches.iou, [0.9, 0.49, 0, 0])
    exactly = match_rois(np.full((1, 3), 0.5, np.float32), np.ones(1, bool), np.ones(3, bool))
    assert exactly.positive[0]  # reaching the threshold suffices
    nothing = match_rois(np.full((2, 3), np.nan, np.float32), np.array([True, False]), np.zeros(3, bool))
    np.testing.assert_array_equal(as_assigned(nothing), [0, -1])


@functools.partial(jax.jit, static_argnames=("num_samples", "positive_fraction"))
def draw(key, positive, negative, num_samples, positive_fraction=0.5):
    return sample(key, positive, negative, num_samples=num_samples, positive_fraction=positive_fraction)


def candidates_of(n, num_positive, num_negative, seed=0):
    order = np.random.default_rng(seed).permutation(n)
    positive, negative = np.zeros(n, bool), np.zeros(n, bool)
    positive[order[:num_positive]] = True
    negative[order[num_positive : num_positive + num_negative]] = True
    return positive, negative


@pytest.mark.parametrize(
    ("n", "num_positive", "num_negative", "expected"),
    [
        (20_000, 150, 0, (128, 0)),  # many rows: drawn in groups
        (20_000, 0, 150, (0, 150)),
        (20_000, 700, 300, (128, 128)),
        (20_000, 40, 19_000, (40, 216)),
        (20_000, 0, 0, (0, 0)),
        (1000, 700, 300, (128, 128)),  # all rows at once
        (1000, 128, 128, (128, 128)),
        (1000, 3, 7, (3, 7)),
        (200, 5, 195, (5, 195)),  # fewer rows than samples
        (200, 150, 50, (128, 50)),
        (200, 0, 0, (0, 0)),
    ],
)
def test_counts_of_samples(n, num_positive, num_negative, expected):
    positive, negative = candidates_of(n, num_positive, num_negative)
    samples = draw(jax.random.key(1), positive, negative, 256)
    chosen = np.asarray(samples.index)[np.asarray(samples.valid)]
    is_positive = np.asarray(samples.positive)
    assert (is_positive.sum(), len(chosen) - is_positive.sum()) == expected
    assert (samples.num_positive_candidates, samples.num_negative_candidates) == (num_positive, num_negative)
    assert len(set(chosen)) == len(chosen)
    first = np.arange(256)  # positives, then negatives, then what is not valid, whose index is 0
    np.testing.assert_array_equal(is_positive, first < expected[0])
    np.testing.assert_array_equal(samples.valid, first < sum(expected))
    assert positive[chosen[: expected[0]]].all() and negative[chosen[expected[0] :]].all()
    assert not np.asarray(samples.index)[~np.asarray(samples.valid)].any()


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.25, 16), (1.0, 64)])
def test_share_of_positives(fraction, expected):
    positive, negative = candidates_of(500, 200, 300)
    samples = draw(jax.random.key(2), positive, negative, 64, fraction)
    assert samples.positive.sum() == expected
    assert samples.valid.all()


def test_the_key_decides():
    positive, negative = candidates_of(20_000, 500, 15_000)
    once, again, other = (draw(jax.random.key(seed), positive, negative, 256) for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, once, again)
    assert len(set(np.asarray(once.index).tolist()) & set(np.asarray(other.index).tolist())) < 100


@pytest.mark.parametrize("n", [97, 1300])  # all at once; groups of candidates with an incomplete last one
def test_every_candidate_is_drawn_equally_often_and_pairs_too(n):
    positive, negative = candidates_of(n, 30, n - 40)
    draws = 4000
    keys = jax.random.split(jax.random.key(5), draws)
    samples = jax.jit(jax.vmap(lambda key: sample(key, positive, negative, num_samples=16, positive_fraction=0.5)))(
        keys
    )
    index = np.asarray(samples.index)
    assert np.asarray(samples.valid).all()
    for rows, chosen in ((index[:, :8], positive), (index[:, 8:], negative)):
        candidates = np.flatnonzero(chosen)
        counts = np.bincount(rows.ravel(), minlength=n)
        assert counts[~chosen].sum() == 0
        expected = draws * 8 / len(candidates)
        # Chi-square of a draw without replacement: its mean is about the degrees of freedom, its standard deviation
        # their root times sqrt(2); five of them are exceeded once in a million keys, and the key is fixed.
        degrees = len(candidates) - 1
        statistic = ((counts[candidates] - expected) ** 2 / expected).sum()
        assert abs(statistic - degrees * (1 - 7 / degrees)) < 5 * math.sqrt(2 * degrees)
        # Neighbouring candidates come together as often as any two: k (k - 1) / (n (n - 1)) of the draws.
        together = np.zeros((draws, n), bool)
        np.put_along_axis(together, rows, True, axis=1)
        pairs = (together[:, candidates[:-1]] & together[:, candidates[1:]]).sum()
        expected_pairs = draws * degrees * 8 * 7 / (len(candidates) * degrees)
        assert abs(pairs - expected_pairs) < 5 * math.sqrt(expected_pairs)


def test_samples_under_vmap_are_those_of_each_image():
    images = [candidates_of(3000, p, q, seed) for seed, (p, q) in enumerate([(0, 0), (9, 2000), (900, 3)])]
    keys = jax.random.split(jax.random.key(6), 3)
    positive, negative = (np.stack(flags) for flags in zip(*images, strict=True))
    batch = jax.jit(jax.vmap(lambda *image: sample(*image, num_samples=256, positive_fraction=0.5)))(
        keys, positive, negative
    )
    for i in range(3):
        one = draw(keys[i], positive[i], negative[i], 256)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x, i=i: x[i], batch), one)


@pytest.fixture(scope="module", params=["emulation", "gpu"])
def gpu(request, tmp_path_factory):
    """Where the kernels for NVIDIA GPUs serve."""
    kind = request.param
    machines = (
        cuda_machine.machine(kind, source, tmp_path_factory.mktemp(source)) for source in ("matching", "selection")
    )
    with next(machines), next(machines), cuda_machine.nvidia_gpu(kind):
        yield


@pytest.mark.parametrize(("n", "num_samples"), [(3000, 256), (12_000, 64), (100, 256)])
def test_kernels_draw_the_samples_that_sorting_draws(gpu, n, num_samples):
    images = [candidates_of(n, p, q, seed) for seed, (p, q) in enumerate([(0, 0), (9, n // 2), (n // 3, 3)])]
    keys = jax.random.split(jax.random.key(6), 3)
    positive, negative = (np.stack(flags) for flags in zip(*images, strict=True))
    drawing = jax.jit(jax.vmap(functools.partial(sample, num_samples=num_samples, positive_fraction=0.5)))
    assert re.search("pure_callback|ffi_call", str(drawing.trace(keys, positive, negative).jaxpr))
    samples = jax.device_get(drawing(keys, positive, negative))
    for i, key in enumerate(keys):
        tickets = np.asarray(jax.random.bits(key, (n,), jnp.uint32)) >> 1
        order = np.argsort(-tickets.astype(np.int64), kind="stable")
        first_positives = order[positive[i][order]][: num_samples // 2]
        first_negatives = order[negative[i][order]][: num_samples - len(first_positives)]
        expected = [*first_positives, *first_negatives]
        assert samples.index[i][samples.valid[i]].tolist() == expected
        assert samples.positive[i].sum() == len(first_positives)


@pytest.mark.parametrize(("num_anchors", "num_gt"), [(1, 1), (300, 70), (1500, 33)])
def test_kernels_match_as_plain_loops_do(gpu, num_anchors, num_gt):
    anchors, gt_hboxes, gt_valid, candidates = scene(num_gt, num_anchors, num_gt)
    overlaps = overlaps_by_loops(anchors, gt_hboxes)
    for thresholds in ({}, {"positive_iou": 0.5, "negative_iou": 0.4, "min_positive_iou": 0.2}):
        kernels = jax.jit(functools.partial(match_anchors, **(PUBLISHED | thresholds)))
        matches = kernels(anchors, gt_hboxes, gt_valid, candidates)
        expected = assign_by_loops(overlaps, gt_valid, candidates, **thresholds)
        np.testing.assert_array_equal(as_assigned(matches), expected)
        best = np.where(candidates, overlaps[:, gt_valid].max(axis=1, initial=0), 0)
        np.testing.assert_array_equal(matches.iou, best)


@pytest.mark.parametrize("min_positive_iou", [0.3, 0.0])  # from 0: boxes that meet no anchor claim all candidates
def test_kernels_and_loops_over_blocks_agree_in_every_number(gpu, min_positive_iou):
    settings = PUBLISHED | {"min_positive_iou": min_positive_iou}
    for seed, (no_object, no_candidate) in enumerate([(False, False), (True, False), (False, True)]):
        anchors, gt_hboxes, gt_valid, candidates = scene(seed, 1100, 40, extent=400)
        gt_valid &= not no_object
        candidates &= not no_candidate
        got = match_anchors(anchors, gt_hboxes, gt_valid, candidates, **settings)
        expected = matching._match_in_blocks(anchors, candidates, gt_hboxes, gt_valid, **settings)
        jax.tree.map(np.testing.assert_array_equal, tuple(got), expected)


def test_kernels_match_each_image_of_a_batch_and_carry_no_gradient(gpu):
    scenes = [scene(seed) for seed in range(4)]
    scenes[1] = (*scenes[1][:2], np.zeros(70, bool), scenes[1][3])
    anchors = scenes[0][0]
    stacked = [np.stack(x).reshape(2, 2, *x[0].shape) for x in list(zip(*scenes, strict=True))[1:]]
    inner = jax.vmap(functools.partial(match_anchors, **PUBLISHED), in_axes=(None, 0, 0, 0))
    batch = jax.jit(jax.vmap(inner, in_axes=(None, 0, 0, 0)))(anchors, *stacked)
    for i, (_, *image) in enumerate(scenes):
        one = match(anchors, *image)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x, i=i: x[i // 2, i % 2], batch), one)

    # What images have in common: all but their objects, all but the anchors.
    _, hboxes, *rest = scenes[0]
    shifted = [np.stack([boxes, boxes + 5]) for boxes in (anchors, hboxes)]
    for arguments, axes in (
        ((anchors, shifted[1], *rest), (None, 0, None, None)),
        ((shifted[0], hboxes, *rest), (0, None, None, None)),
    ):
        batch = jax.vmap(functools.partial(match_anchors, **PUBLISHED), in_axes=axes)(*arguments)
        for i in range(2):
            one = match(*(x if axis is None else x[i] for x, axis in zip(arguments, axes, strict=True)))
            jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x, i=i: x[i], batch), one)

    gradient = jax.grad(lambda a: match(a, *scenes[0][1:]).iou.sum())(jnp.asarray(anchors))
    assert not np.any(gradient)
