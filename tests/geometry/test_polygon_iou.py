import numpy as np
import pytest
import shapely

from haksnet_jax.geometry import polygon_iou
from haksnet_jax.geometry.boxes import boxes_to_corners

# float64 sums of a few products of numbers below 100: shapely and we differ in the last digits alone.
EXACT = 1e-12


def random_boxes(generator, count):
    low, high = [0, 0, 1, 1, -4], [100, 100, 80, 60, 4]
    return generator.uniform(low, high, (count, 5))


def shapely_iou(polygons1, polygons2):
    first, second = shapely.polygons(polygons1), shapely.polygons(polygons2)
    shared = shapely.area(shapely.intersection(first, second))
    return shared / (shapely.area(first) + shapely.area(second) - shared)


@pytest.fixture(scope="module")
def pairs():
    generator = np.random.default_rng(1)
    return random_boxes(generator, 3000), random_boxes(generator, 3000)


def test_iou_of_boxes_agrees_with_shapely(pairs):
    boxes1, boxes2 = pairs
    expected = shapely_iou(boxes_to_corners(boxes1), boxes_to_corners(boxes2))
    assert (expected > 0).sum() > 500
    np.testing.assert_allclose(polygon_iou.rotated_iou_pairs(boxes1, boxes2), expected, rtol=0, atol=EXACT)


def test_iou_of_polygons_agrees_with_iou_of_boxes(pairs):
    boxes1, boxes2 = pairs
    got = polygon_iou.polygon_iou_pairs(boxes_to_corners(boxes1), boxes_to_corners(boxes2))
    np.testing.assert_allclose(got, polygon_iou.rotated_iou_pairs(boxes1, boxes2), rtol=0, atol=EXACT)


def test_iou_of_quadrilaterals_that_are_not_convex_agrees_with_shapely():
    generator = np.random.default_rng(2)
    polygons1 = polygon_iou.uncross(generator.uniform(0, 100, (2000, 4, 2)))
    polygons2 = polygon_iou.uncross(generator.uniform(0, 100, (2000, 4, 2)))
    assert shapely.is_valid(shapely.polygons(polygons1)).all()
    hull_areas = shapely.area(shapely.convex_hull(shapely.polygons(polygons1)))
    assert (hull_areas > 1.01 * polygon_iou.polygon_area(polygons1)).sum() > 300
    got = polygon_iou.polygon_iou_pairs(polygons1, polygons2)
    np.testing.assert_allclose(got, shapely_iou(polygons1, polygons2), rtol=0, atol=EXACT)
    reversed_turn = polygon_iou.polygon_iou_pairs(polygons1[:, ::-1], polygons2)
    np.testing.assert_allclose(reversed_turn, got, rtol=0, atol=EXACT)


@pytest.mark.parametrize("turn", [0, np.pi, -2 * np.pi])
@pytest.mark.parametrize("change", [0, 1e-6, 1e-9, 1e-12, 1e-15])
def test_nearly_identical_boxes_have_iou_one(pairs, turn, change):
    # Published kernels answer 0 or 1/3 for some of these, and shapely 0 for some of those turned by pi.
    boxes = pairs[0]
    other = boxes + [change, -change, 0, 0, turn + change]
    # Moving and turning by e takes less than 100 e off sides of 1 to 80 pixels.
    tolerance = EXACT + 100 * change
    np.testing.assert_allclose(polygon_iou.rotated_iou_pairs(boxes, other), 1, atol=tolerance)
    corners = boxes_to_corners(boxes), boxes_to_corners(other)
    np.testing.assert_allclose(polygon_iou.polygon_iou_pairs(*corners), 1, atol=tolerance)


def test_swapped_sides_are_the_same_box(pairs):
    boxes = pairs[0]
    swapped = boxes[:, [0, 1, 3, 2, 4]] + [0, 0, 0, 0, np.pi / 2]
    np.testing.assert_allclose(polygon_iou.rotated_iou_pairs(boxes, swapped), 1, atol=EXACT)


def test_known_overlaps():
    boxes1 = [[0, 0, 4, 2, 0], [0, 0, 4, 4, 0], [0, 0, 4, 2, 0], [0, 0, 2, 2, 0], [0, 0, 4, 2, 0], [5, 5, 0, 3, 1]]
    boxes2 = [
        [2, 0, 4, 2, 0],
        [0, 0, 2, 2, 0],
        [4, 0, 4, 2, 0],
        [0, 0, 2, 2, np.pi / 4],
        [90, 0, 4, 2, 0],
        [5, 5, 9, 9, 0],
    ]
    octagon = 8 * (np.sqrt(2) - 1)  # a square of side 2 and itself turned by 45 degrees share a regular octagon
    expected = [4 / 12, 4 / 16, 0, octagon / (8 - octagon), 0, 0]
    np.testing.assert_allclose(polygon_iou.rotated_iou_pairs(boxes1, boxes2), expected, atol=EXACT)


def test_iou_is_symmetric_and_does_not_change_with_place_and_turn(pairs):
    boxes1, boxes2 = pairs
    iou = polygon_iou.rotated_iou_pairs(boxes1, boxes2)
    np.testing.assert_allclose(polygon_iou.rotated_iou_pairs(boxes2, boxes1), iou, atol=EXACT)
    # Coordinates of 1e5 leave 1e-11 of the positions, against sides of 1 and more.
    far = [1e5, -1e5, 0, 0, 0]
    np.testing.assert_allclose(polygon_iou.rotated_iou_pairs(boxes1 + far, boxes2 + far), iou, atol=1e-9)


def test_thin_and_huge_boxes_give_their_exact_overlap():
    # A cross of two bars of 1e6 x 1e-3 pixels shares 1e-6 of 2e3 square pixels.
    cross = polygon_iou.rotated_iou_pairs([[0, 0, 1e6, 1e-3, 0.3]], [[0, 0, 1e6, 1e-3, 0.3 + np.pi / 2]])
    np.testing.assert_allclose(cross, 1e-6 / (2e3 - 1e-6), rtol=1e-6)
    point = polygon_iou.rotated_iou_pairs([[0, 0, 1e6, 1e6, 0.3]], [[7, 7, 1e-3, 1e-3, 1.0]])
    np.testing.assert_allclose(point, 1e-6 / 1e12, rtol=1e-6)


def test_shapes_without_area_overlap_nothing():
    point = [[5, 5, 0, 0, 0]]
    assert polygon_iou.rotated_iou_pairs(point, point) == 0
    line = np.array([[[0, 0], [1, 1], [2, 2], [3, 3.0]]])
    square = np.array([[[0, 0], [2, 0], [2, 2], [0, 2.0]]])
    assert polygon_iou.polygon_iou_pairs(line, line) == 0
    assert polygon_iou.polygon_iou_pairs(line, square) == 0
    assert polygon_iou.polygon_iou_pairs(square, line) == 0
    assert polygon_iou.rotated_iou_pairs(np.zeros((0, 5)), np.zeros((0, 5))).shape == (0,)


def test_crossed_corners_are_put_in_order():
    square = np.array([[0, 0], [2, 0], [2, 2], [0, 2.0]])
    dart = np.array([[0, 0], [4, 0], [1, 1], [0, 4.0]])
    polygons = np.stack([square, square[[0, 2, 1, 3]], square[[0, 1, 3, 2]], dart])
    ordered = polygon_iou.uncross(polygons)
    np.testing.assert_allclose(polygon_iou.polygon_area(ordered), [4, 4, 4, 4])
    np.testing.assert_array_equal(ordered[[0, 3]], polygons[[0, 3]])
    assert shapely.is_valid(shapely.polygons(ordered)).all()


def test_chunks_and_indices_give_the_same_as_one_go(pairs, monkeypatch):
    boxes1, boxes2 = pairs
    expected = polygon_iou.rotated_iou_pairs(boxes1, boxes2)
    monkeypatch.setattr(polygon_iou, "_CHUNK", 257)
    np.testing.assert_array_equal(polygon_iou.rotated_iou_pairs(boxes1, boxes2), expected)
    table = polygon_iou.box_table(np.concatenate([boxes1, boxes2]))
    rows = np.arange(len(boxes1))
    got = polygon_iou.indexed_rotated_iou(table, rows, rows + len(rows))
    np.testing.assert_array_equal(got, expected)


def test_recorded_exact_overlaps_are_met_to_their_last_digits(golden):
    fixture = golden("box_iou_rotated")
    got = polygon_iou.rotated_iou_pairs(fixture["pairs/a"], fixture["pairs/b"])
    # Positions of up to 3e5 pixels: the recorded float64 polygons have corners rounded to 6e-11, of sides down to 1e-2.
    np.testing.assert_allclose(got, fixture["pairs/exact_iou"], rtol=0, atol=1e-7)
