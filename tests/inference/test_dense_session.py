"""Windows over images: where they lie, how they fade into each other, and that rows leave whole and once."""

import itertools

import numpy as np
import pytest

from haksnet_jax.inference import dense_session


class Colours:
    """In the place of a model: three classes, whose probabilities are the pixel's own channels, plus noise at edges."""

    batch_size = 3

    def __init__(self, edge=0.0):
        self.edge = edge
        self.calls = 0

    def __call__(self, images, settings):
        self.calls += 1
        (images,) = images
        assert images.shape[0] <= self.batch_size and images.shape[1:3] == (settings.tile,) * 2
        found = np.moveaxis(images.astype(np.float32), -1, 1) / 255
        if self.edge:  # what a network sees least of, it gets wrong
            found[:, 0, :8], found[:, 0, -8:] = self.edge, self.edge
            found[:, 0, :, :8], found[:, 0, :, -8:] = self.edge, self.edge
        return np.concatenate([found, np.zeros((self.batch_size - len(found), *found.shape[1:]), np.float32)])


def run(session, images, settings):
    jobs = []
    for image in images:
        labels, sink = dense_session.fill_array(*image.shape[:2])
        labels[:] = 77
        jobs.append(dense_session.Job((dense_session.ArrayImage(image),), sink, labels))
    return [job.tag for job in dense_session.predict(session, iter(jobs), settings)]


def random_image(rows, columns, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (rows, columns, 3), np.uint8)


def test_windows_cover_an_axis_and_share_at_least_the_overlap():
    for length in (5, 64, 65, 100, 112, 113, 1000):
        first = dense_session.starts(length, 64, 16)
        assert first[0] == 0 and first[-1] == max(0, length - 64)
        assert all(a + 64 - b >= 16 for a, b in itertools.pairwise(first))


@pytest.mark.parametrize("size", [(64, 64), (150, 97), (64, 300), (30, 20), (200, 64)])
def test_every_pixel_gets_the_class_of_its_own_probabilities(size):
    image = random_image(*size)
    (labels,) = run(Colours(), [image], dense_session.Settings(64, 16))
    np.testing.assert_array_equal(labels, image.argmax(axis=-1))


def test_images_share_batches_and_come_back_each_whole():
    images = [random_image(70, 70 + 40 * i, seed=i) for i in range(4)]
    session = Colours()
    for image, labels in zip(images, run(session, images, dense_session.Settings(64, 16)), strict=True):
        np.testing.assert_array_equal(labels, image.argmax(axis=-1))
    windows = sum(2 * len(dense_session.starts(image.shape[1], 64, 16)) for image in images)
    assert session.calls == -(-windows // 3)


def test_what_a_window_gets_wrong_at_its_edge_its_neighbour_decides():
    image = np.zeros((200, 200, 3), np.uint8)
    image[..., 1] = 255  # class 1 everywhere; the edges of windows say class 0, almost as surely
    (labels,) = run(Colours(edge=0.99), [image], dense_session.Settings(64, 32))
    assert (labels[8:-8, 8:-8] == 1).all()


def test_rows_leave_in_order_without_gaps_and_memory_holds_one_row_of_windows():
    image = random_image(500, 90)
    seen = []

    def sink(first, rows):
        seen.append((first, len(rows)))

    job = dense_session.Job((dense_session.ArrayImage(image),), sink)
    list(dense_session.predict(Colours(), [job], dense_session.Settings(64, 16)))
    assert [first for first, _ in seen] == np.cumsum([0] + [count for _, count in seen[:-1]]).tolist()
    assert sum(count for _, count in seen) == 500 and max(count for _, count in seen) <= 64


def test_a_turned_view_is_turned_back():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((1, 8, 8, 3)).astype(np.float32)
    for turns in range(4):
        for mirrored in (False, True):
            (turned,) = dense_session._turn((image,), turns, mirrored)
            back = dense_session._add_turned_back(None, np.moveaxis(np.asarray(turned), -1, 1), turns, mirrored, 8, 1.0)
            np.testing.assert_allclose(np.moveaxis(np.asarray(back), 1, -1), image, rtol=1e-6)


def test_views_are_all_combinations():
    views = dense_session.Settings(64, 16, scales=(0.75, 1.0), flip=True, turns=True).views()
    assert len(views) == 16 == len(set(views))
    assert dense_session.Settings(64, 16).views() == [(1.0, 0, False)]


def test_of_equal_probabilities_the_first_class_wins():
    total = np.array([[[1.0, 0.0]], [[1.0, 2.0]], [[0.5, 2.0]]], np.float32)
    np.testing.assert_array_equal(dense_session.largest(total), [[0, 1]])
