import numpy as np
import pytest

from haksnet_jax.geometry import polygon_iou
from haksnet_jax.results import tiles


@pytest.mark.parametrize("protocol", ["ss", "ms"])
def test_windows_are_those_of_the_reference(golden, protocol):
    manifest = golden("image_split").manifest
    expected = manifest["expected"][protocol]
    config = expected["config"]
    sides = [int(size / rate) for rate in config["rates"] for size in config["sizes"]]
    overlaps = [int(gap / rate) for rate in config["rates"] for gap in config["gaps"]]
    for image, (width, height) in manifest["image_sizes_wh"].items():
        found = tiles.windows(width, height, sides, overlaps, min_image_rate=config["img_rate_thr"])
        names = [tiles.format_tile_name(image, x2 - x1, x1, y1) for x1, y1, x2, _ in found.tolist()]
        # The fixture lists tiles by file name, not in the order of cutting.
        assert sorted(names) == sorted(window["id"] for window in expected["windows"][image])


def test_last_window_moves_back_inside():
    expected = [[0, 0, 100, 100], [0, 50, 100, 150], [80, 0, 180, 100], [80, 50, 180, 150]]
    np.testing.assert_array_equal(tiles.windows(180, 150, 100, 20), expected)
    np.testing.assert_array_equal(tiles.windows(100, 101, 100, 20), [[0, 0, 100, 100], [0, 1, 100, 101]])


def test_small_image_gets_one_window_that_is_padded_or_cut():
    np.testing.assert_array_equal(tiles.windows(30, 20, 100, 20), [[0, 0, 100, 100]])
    np.testing.assert_array_equal(tiles.windows(30, 20, 100, 20, padding=False), [[0, 0, 30, 20]])


def test_windows_with_little_image_go_only_if_others_stay():
    both = tiles.windows(100, 100, (100, 200), 20, min_image_rate=0.2)
    np.testing.assert_array_equal(both, [[0, 0, 100, 100], [0, 0, 200, 200]])
    np.testing.assert_array_equal(tiles.windows(100, 100, (100, 200), 20), [[0, 0, 100, 100]])
    np.testing.assert_array_equal(tiles.windows(100, 20, (100, 200), 20), [[0, 0, 100, 100]])


@pytest.mark.parametrize("size", [(1, 1), (99, 3000), (1000, 1001), (2500, 777)])
def test_windows_cover_every_pixel(size):
    width, height = size
    covered = np.zeros((height, width), bool)
    for x1, y1, x2, y2 in tiles.windows(width, height, 256, 56, padding=False):
        covered[y1:y2, x1:x2] = True
    assert covered.all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 10, 5, 5), "tile 5, overlap 5"),
        ((0, 10, 5, 1), "0 x 10"),
        ((10, 10, (5, 6), (1, 2, 3)), "3 overlaps, 2 sizes"),
    ],
)
def test_impossible_windows_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiles.windows(*arguments)


@pytest.mark.parametrize(
    ("name", "expected", "rate"),
    [
        ("P0706__1024__0___824", ("P0706", 1024, 0, 824), 1.0),
        ("my__big_scene__682__12___3", ("my__big_scene", 682, 12, 3), 1.0),
        ("P0706__0.5__512___0", ("P0706", 0.5, 512, 0), 0.5),
        ("P0706__1__0___824", ("P0706", 1, 0, 824), 1.0),
    ],
)
def test_names_of_tiles_are_read(name, expected, rate):
    assert tiles.is_tile_name(name)
    tile = tiles.parse_tile_name(name)
    assert tile == expected
    assert tile.rate == rate


@pytest.mark.parametrize("name", ["P0706", "P0706__1024__0__824", "__1024__0___824", "P0706__1024__0___824.png"])
def test_other_names_are_refused(name):
    assert not tiles.is_tile_name(name)
    with pytest.raises(ValueError, match="Expected a tile's name"):
        tiles.parse_tile_name(name)


def scene(seed, count, size, *, copies=6, classes=3, spread=0.7):
    """(boxes, scores, labels): objects of many sizes, each detected several times; scores with ties."""
    generator = np.random.default_rng(seed)
    objects = max(1, count // copies)
    side = np.exp(generator.normal(3.4, spread, objects))
    place = generator.uniform(0, size, (objects, 2))
    angle = generator.uniform(-1.57, 1.57, objects)
    shape = np.stack([*place.T, side * generator.uniform(1, 4, objects), side * 0.7, angle], axis=-1)
    pick = generator.integers(0, objects, count)
    noise = generator.normal(size=(count, 5)) * np.stack([side[pick] * 0.1] * 4 + [np.full(count, 0.1)], axis=-1)
    boxes = shape[pick] + noise
    boxes[:, 2:4] = np.maximum(boxes[:, 2:4], 0.5)
    labels = generator.integers(0, classes, objects)[pick]
    return boxes.astype(np.float32), generator.uniform(size=count).round(2).astype(np.float32), labels


def plain_merge(boxes, scores, labels, threshold):
    """Every kept detection against all that follow."""
    order = np.argsort(-scores, kind="stable")
    alive = np.ones(len(scores), bool)
    kept = []
    for position, index in enumerate(order):
        if alive[index]:
            kept.append(index)
            rest = order[position + 1 :]
            rest = rest[(labels[rest] == labels[index]) & alive[rest]]
            iou = polygon_iou.rotated_iou_pairs(np.repeat(boxes[index : index + 1], len(rest), axis=0), boxes[rest])
            alive[rest[iou > threshold]] = False
    return kept


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (20000, {}),  # sparse
        (1500, {}),
        (300, {"classes": 1}),  # everything overlaps
        (3000, {"spread": 2.0}),  # sides from under a pixel to thousands
        (2000, {"copies": 100}),
    ],
)
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_merge_is_identical_to_comparing_all_pairs(size, options, threshold):
    boxes, scores, labels = scene(5, 5000 if threshold == 0.1 else 1000, size, **options)
    kept = tiles.merge_detections(boxes, scores, labels, iou_threshold=threshold)
    np.testing.assert_array_equal(kept, plain_merge(boxes, scores, labels, threshold))


def test_merge_does_not_depend_on_how_work_is_cut(monkeypatch):
    boxes, scores, labels = scene(6, 3000, 1500)
    expected = tiles.merge_detections(boxes, scores, labels)
    monkeypatch.setattr(tiles, "_FIRST_BLOCK", 7)
    monkeypatch.setattr(tiles, "_PAIRS_AT_ONCE", 50)
    np.testing.assert_array_equal(tiles.merge_detections(boxes, scores, labels), expected)


def test_merge_keeps_a_box_whose_only_rival_was_suppressed():
    # Each overlaps the next by a third; the second goes, so the third stays.
    boxes = np.array([[0, 0, 20, 10, 0], [10, 0, 20, 10, 0], [20, 0, 20, 10, 0]])
    scores, labels = np.array([0.9, 0.8, 0.7]), np.zeros(3, int)
    np.testing.assert_array_equal(tiles.merge_detections(boxes, scores, labels), [0, 2])
    np.testing.assert_array_equal(tiles.merge_detections(boxes, scores, labels, iou_threshold=0.4), [0, 1, 2])
    np.testing.assert_array_equal(tiles.merge_detections(boxes, scores, [0, 1, 0]), [0, 1, 2])


def test_merge_keeps_neighbouring_diagonal_objects():
    # Axis-parallel boxes around these two overlap by more than half.
    boxes = np.array([[0, 0, 100, 6, np.pi / 4], [8, -8, 100, 6, np.pi / 4]])
    np.testing.assert_array_equal(tiles.merge_detections(boxes, np.array([0.9, 0.8]), np.zeros(2, int)), [0, 1])


def test_merge_of_identical_boxes_keeps_the_first_of_the_best():
    boxes = np.tile([100.0, 100, 50, 20, 0.3], (20000, 1))
    scores = np.full(20000, 0.5)
    scores[[700, 900]] = 0.9
    np.testing.assert_array_equal(tiles.merge_detections(boxes, scores, np.zeros(20000, int)), [700])


def test_merge_of_nothing_and_of_boxes_without_area():
    assert tiles.merge_detections(np.zeros((0, 5)), [], []).shape == (0,)
    points = np.zeros((3, 5))
    np.testing.assert_array_equal(tiles.merge_detections(points, [0.1, 0.3, 0.2], [0, 0, 0]), [1, 2, 0])


def test_merge_takes_coordinates_anywhere():
    boxes = np.array([[-1e9, 1e9, 20, 10, 0], [-1e9, 1e9, 20, 10, 0], [1e9, -1e9, 1e8, 1, 0], [0, 0, 1e-3, 1e-3, 0]])
    np.testing.assert_array_equal(tiles.merge_detections(boxes, [0.4, 0.3, 0.2, 0.1], np.zeros(4, int)), [0, 2, 3])


def test_merge_refuses_numbers_that_are_not_finite():
    with pytest.raises(ValueError, match="finite"):
        tiles.merge_detections(np.full((1, 5), np.nan), [0.5], [0])
    with pytest.raises(ValueError, match="got 1, 2 and 1"):
        tiles.merge_detections(np.zeros((1, 5)), [0.5, 0.4], [0])


def test_tiles_merge_into_the_recorded_images(golden):
    fixture = golden("merge")
    rows = fixture["tiles/index_class_box_score"]
    by_tile = {}
    for index, name in enumerate(fixture.manifest["tile_ids"]):
        own = rows[rows[:, 0] == index]
        by_tile[name] = {"boxes": own[:, 2:7], "scores": own[:, 7], "labels": own[:, 1].astype(int)}
    merged = tiles.merge_tiles(by_tile, iou_threshold=fixture.manifest["iou_threshold"])
    assert {name: len(one["scores"]) for name, one in merged.items()} == fixture.manifest["num_merged"]
    for name, one in merged.items():
        got = np.column_stack([one["labels"], one["boxes"], one["scores"]])
        expected = fixture[f"merged/{name}"]
        by_class = [rows[np.lexsort((rows[:, 6], rows[:, 0]))] for rows in (got, expected)]
        # Coordinates beyond 1000 pixels are stored in float32, with 1e-4 between neighbours.
        np.testing.assert_allclose(*by_class, rtol=0, atol=1e-3)


def test_resized_tiles_merge_to_where_their_windows_are():
    # One ship, 40 x 12 at (700, 650), seen in windows of 1024 at (0, 0) and of 682 at (333, 0), both resized to 1024.
    def seen(x, y, factor, side=1024):
        box = [[(700 - x) * factor, (650 - y) * factor, 40 * factor, 12 * factor, 0.4]]
        return {"boxes": box, "scores": [0.9], "labels": [0], "size": (side, side)}

    found = {"P1__1024__0___0": seen(0, 0, 1), "P1__682__333___0": seen(333, 0, 1024 / 682)}
    merged = tiles.merge_tiles(found)["P1"]
    # 1e-3: float32 coordinates of some hundred pixels
    np.testing.assert_allclose(merged["boxes"], [[700, 650, 40, 12, 0.4]], atol=1e-3)
    native = {"P1__1024__0___0": seen(0, 0, 1), "P1__682__333___0": seen(333, 0, 1, 682)}
    np.testing.assert_allclose(tiles.merge_tiles(native)["P1"]["boxes"], merged["boxes"], atol=1e-3)
    cut = {"P1__1024__0___0": seen(0, 0, 1), "P1__1024__512___512": seen(512, 512, 1) | {"size": (600, 300)}}
    np.testing.assert_allclose(tiles.merge_tiles(cut)["P1"]["boxes"], merged["boxes"], atol=1e-3)
    with pytest.raises(ValueError, match="P1__682__333___0 is 1024 x 1024 pixels, more than its window"):
        tiles.merge_tiles(found | {"P1__512__400___400": seen(400, 400, 1, 512)})
    without = {name: {key: one[key] for key in ("boxes", "scores", "labels")} for name, one in found.items()}
    with pytest.raises(ValueError, match="P1__682__333___0 has a detection beyond its window of 682"):
        tiles.merge_tiles(without)


def test_tiles_of_a_resized_image_are_scaled_back():
    half = {"boxes": [[10, 20, 8, 4, 0.3]], "scores": [0.9], "labels": [0]}
    none = {"boxes": [], "scores": [], "labels": []}
    merged = tiles.merge_tiles({"P1__0.5__100___200": half, "P2__1__0___0": none})
    np.testing.assert_allclose(merged["P1"]["boxes"], [[220, 440, 16, 8, 0.3]], rtol=1e-6)
    assert merged["P2"]["boxes"].shape == (0, 5)


def test_quadrilaterals_of_task1_files_are_moved_and_stay_as_they_are():
    wedge = np.array([[10, 10], [40, 12], [38, 30], [12, 25]], np.float64)  # no rectangle
    far = wedge + [0, 40]
    two = {"polygons": np.stack([wedge, far]), "scores": np.array([0.9, 0.3]), "labels": np.zeros(2, int)}
    found = {
        "P1__100__0___0": two,
        "P1__100__50___0": {"polygons": (wedge - [50, 0])[None], "scores": np.array([0.8]), "labels": np.zeros(1, int)},
    }
    merged = tiles.merge_tiles(found)["P1"]
    np.testing.assert_array_equal(merged["polygons"], [wedge, far])
    assert merged["scores"].tolist() == pytest.approx([0.9, 0.3])


def test_quadrilaterals_are_compared_by_their_own_overlap():
    # Two triangles-like halves of one square: their rectangles are the same, they share nothing.
    lower = np.array([[0, 0], [40, 0], [39, 1], [1, 39]], np.float64)
    upper = np.array([[40, 40], [0, 40], [1.5, 39.5], [39.5, 1.5]], np.float64)
    kept = tiles.merge_polygons(np.stack([lower, upper]), np.array([0.9, 0.8]), np.zeros(2, int), iou_threshold=0.1)
    assert len(kept) == 2
    assert len(tiles.merge_polygons(np.stack([lower, lower]), np.array([0.9, 0.8]), np.zeros(2, int))) == 1


def test_at_a_threshold_of_0_only_what_overlaps_goes():
    rng = np.random.default_rng(0)
    boxes = []
    for number in range(200):
        angle, width, height = rng.uniform(-1.5, 1.5), rng.uniform(40, 160), rng.uniform(8, 25)
        across = np.array([-np.sin(angle), np.cos(angle)]) * (height + rng.uniform(0.01, 20))
        first = np.array([400.0 + number * 1000, 400.0])
        boxes += [[*centre, width, height, angle] for centre in (first, first + across)]
    labels, scores = np.zeros(400, int), rng.uniform(size=400)
    assert len(tiles.merge_detections(np.array(boxes), scores, labels, iou_threshold=0.0)) == 400
    boxes = np.array(boxes)
    boxes[1::2, :2] = boxes[::2, :2]
    assert len(tiles.merge_detections(boxes, scores, labels, iou_threshold=0.0)) == 200
