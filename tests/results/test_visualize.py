import cv2
import numpy as np
import pytest

from haksnet_jax.geometry.boxes import boxes_to_corners
from haksnet_jax.results import detection_errors, diagrams, mean_ap, visualize

CLASSES = ("plane", "ship", "harbor")


@pytest.fixture(scope="module")
def scene():
    """(image, boxes, scores, labels)."""
    generator = np.random.default_rng(4)
    image = generator.integers(0, 255, (240, 320, 3), dtype=np.uint8)
    boxes = generator.uniform([0, 0, 10, 5, -1.5], [320, 240, 60, 30, 1.5], (40, 5))
    return image, boxes, generator.uniform(size=40), generator.integers(0, 3, 40)


def test_drawing_leaves_its_input_alone(scene):
    image, boxes, scores, labels = scene
    before = image.copy()
    drawn = visualize.draw_detections(image, boxes, scores, labels, CLASSES)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (drawn != before).any()
    np.testing.assert_array_equal(image, before)


def test_outline_has_the_colour_of_its_class_as_rgb():
    drawn = visualize.draw_detections(
        np.zeros((100, 100, 3), np.uint8), [[50, 50, 40, 40, 0]], [0.9], [1], CLASSES, text=False
    )
    np.testing.assert_array_equal(drawn[30, 50], visualize.class_colour(1))
    assert (drawn[50, 50] == 0).all()


def test_grey_images_are_taken_and_others_refused():
    assert visualize.draw_labels(np.zeros((8, 9), np.uint8), np.zeros((0, 4, 2)), [], CLASSES).shape == (8, 9, 3)
    with pytest.raises(ValueError, match=r"got uint16 \[8, 9\]"):
        visualize.draw_labels(np.zeros((8, 9), np.uint16), np.zeros((0, 4, 2)), [], CLASSES)


def test_texts_cover_no_other_object_and_no_other_text(monkeypatch):
    # A car park: 20 x 15 touching cars. Text may only stand around it.
    x, y = np.meshgrid(np.arange(20) * 20 + 120, np.arange(15) * 12 + 120)
    boxes = np.stack([x.ravel(), y.ravel(), np.full(300, 18.0), np.full(300, 10.0), np.zeros(300)], axis=-1)
    image = np.full((420, 640, 3), 90, np.uint8)
    scores, labels = np.linspace(0.9, 0.3, 300), np.zeros(300, int)
    without = visualize.draw_detections(image, boxes, scores, labels, CLASSES, text=False)
    drawn = visualize.draw_detections(image, boxes, scores, labels, CLASSES)
    changed = (drawn != without).any(axis=-1)
    assert changed.any()
    assert not changed[130:280, 140:490].any()
    written = []
    monkeypatch.setattr(visualize.cv2, "putText", lambda canvas, text, *rest: written.append(text))
    visualize.draw_detections(image, boxes, scores, labels, CLASSES)
    assert 10 < len(written) < 100


def test_boxes_outside_and_absurd_ones_do_no_harm():
    boxes = [[-1e7, 5, 10, 5, 0], [5, 5, 1e8, 1e8, 0.3], [1e9, 1e9, 3, 3, 0], [5, 5, 0, 0, 0]]
    image = np.zeros((40, 40, 3), np.uint8)
    assert visualize.draw_detections(image, boxes, [0.5] * 4, [0] * 4, CLASSES).shape == (40, 40, 3)


def test_legend_counts_the_classes_below_the_image(scene):
    image, boxes, scores, labels = scene
    drawn = visualize.draw_detections(image, boxes, scores, labels, CLASSES, legend=True)
    assert drawn.shape[0] > image.shape[0]
    assert drawn.shape[1] == image.shape[1]
    strip = drawn[image.shape[0] :]
    for label in range(3):
        assert (strip == visualize.class_colour(label)).all(axis=-1).any()


def test_difficult_labels_are_dashed():
    square = boxes_to_corners(np.array([[50, 50, 60, 60, 0.0]]))
    image = np.zeros((100, 100, 3), np.uint8)
    solid = visualize.draw_labels(image, square, [0], CLASSES, text=False)
    dashed = visualize.draw_labels(image, square, [0], CLASSES, difficulty=[1], text=False)
    assert 0.3 < (dashed > 0).sum() / (solid > 0).sum() < 0.9


def test_comparison_draws_each_outcome_in_its_colour():
    boxes = np.array([[40, 40, 40, 20, 0.0], [120, 40, 40, 20, 0.0], [40, 120, 40, 20, 0.0]])
    labels = {"polygons": boxes_to_corners(boxes[:2]), "labels": np.array([0, 0]), "difficulty": np.array([0, 0])}
    detections = {"boxes": boxes[[2, 0]], "scores": np.array([0.5, 0.9]), "labels": np.array([1, 0])}
    detections["size"] = (160, 160)  # as detections.json has it
    drawn = visualize.draw_comparison(np.zeros((160, 160, 3), np.uint8), detections, labels, CLASSES)
    np.testing.assert_array_equal(drawn[40, 20], visualize._CORRECT)
    np.testing.assert_array_equal(drawn[120, 20], visualize._FALSE)
    np.testing.assert_array_equal(drawn[30, 101], visualize._MISSED)


def test_comparison_is_drawn_on_the_resized_image():
    image = np.zeros((50, 100, 3), np.uint8)
    boxes = np.array([[30, 25, 20, 10, 0]], np.float32)
    truth = {"polygons": boxes_to_corners(boxes), "labels": np.zeros(1, int), "difficulty": np.zeros(1, int)}
    detections = {"boxes": boxes, "scores": np.ones(1), "labels": np.zeros(1, int), "size": (100, 50)}
    for one in (detections, {**detections, "polygons": truth["polygons"]}):
        drawn = visualize.draw_comparison(image, one, truth, CLASSES, side=400)
        assert drawn.shape[1] == 400 and drawn.shape[0] > 200  # and the legend
        green = np.argwhere((drawn[:200, :, 1] > 200) & (drawn[:200, :, 0] < 150))
        # The box from (20, 20) to (40, 30), four times as large; the line is 2 pixels wide.
        np.testing.assert_allclose([*green.min(axis=0), *green.max(axis=0)], [80, 80, 120, 160], atol=2)
    np.testing.assert_array_equal(boxes, [[30, 25, 20, 10, 0]])


def test_contact_sheet_holds_every_image():
    images = [np.full((50 + 10 * i, 80, 3), 40 * (i + 1), np.uint8) for i in range(5)]
    sheet = visualize.contact_sheet(images, [f"caption {i} " * 9 for i in range(5)], columns=3, cell=100)
    assert sheet.shape == (2 * 130 + 8, 3 * 108 + 8, 3)
    for i in range(5):
        assert (sheet == 40 * (i + 1)).all(axis=-1).sum() > 1000
    with pytest.raises(ValueError, match="got 0 images"):
        visualize.contact_sheet([])


def test_images_are_written_as_rgb_and_whole(tmp_path, scene):
    visualize.write_image(tmp_path / "a.png", scene[0])
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"))[..., ::-1], scene[0])
    with pytest.raises(ValueError, match="ends like an image"):
        visualize.write_image(tmp_path / "a.docx", scene[0])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_figures_can_be_made_from_results_and_from_nothing(tmp_path, scene):
    _, boxes, scores, labels = scene
    detections = {"boxes": boxes, "scores": scores, "labels": labels}
    truth = {"polygons": boxes_to_corners(boxes[:20]), "labels": labels[:20], "difficulty": np.zeros(20, int)}
    for number, pair in enumerate((([detections], [truth]), ([], []))):
        result = mean_ap.mean_average_precision(*pair, CLASSES)
        errors = detection_errors.analyse_errors(*pair, CLASSES)
        figures = [
            diagrams.precision_recall_figure(result),
            diagrams.confusion_matrix_figure(errors.confusion_matrix(), CLASSES),
            diagrams.errors_by_size_figure(errors.by_size()),
        ]
        for kind, figure in enumerate(figures):
            path = tmp_path / f"{number}{kind}.png"
            diagrams.save_figure(figure, path, dpi=40)
            assert cv2.imread(str(path)).std() > 5
    curves = diagrams.training_figure(
        {"loss": (range(200), [np.nan, *np.linspace(3, 1, 199)])}, {"AP50": ([100], [0.5])}
    )
    diagrams.save_figure(curves, tmp_path / "curves.png", dpi=40)
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 5
    assert len(list(tmp_path.iterdir())) == 7  # and no temporary file
