import numpy as np

from mixtrain_jax.auditing.dump import Look
from mixtrain_jax.auditing.labels import Detections
from mixtrain_jax.auditing.merging import merge
from tests.auditing import simulated


def detections(*rows):
    """Detections from (image, class, score, x1, y1, x2, y2)."""
    table = np.array(rows, np.float32).reshape(-1, 7)
    return Detections(
        table[:, 0].astype(np.int32), table[:, 3:], table[:, 1].astype(np.int32), table[:, 2]
    )


def test_one_look_stays_as_it_is():
    look = Look(detections((0, 0, 0.3, 0, 0, 9, 9), (0, 0, 0.9, 0, 0, 9, 9)))
    merged = merge([look], 1)
    assert merged.look is look
    np.testing.assert_array_equal(merged.agreement, [1, 1])


def test_what_means_one_object_becomes_one_box():
    a = Look(detections((0, 0, 0.6, 0, 0, 10, 10), (1, 0, 0.5, 0, 0, 10, 10)))
    b = Look(
        detections(
            (0, 0, 0.2, 0, 0, 10, 14),  # the same object
            (0, 1, 0.7, 0, 0, 10, 10),  # another class
            (0, 0, 0.3, 30, 30, 40, 40),  # elsewhere
        )
    )
    merged = merge([a, b], 2)
    found = merged.look.detections
    np.testing.assert_array_equal(found.image, [0, 0, 0, 1])
    np.testing.assert_array_equal(found.labels, [0, 1, 0, 0])
    np.testing.assert_allclose(found.scores, [0.4, 0.35, 0.15, 0.25], atol=1e-6)
    np.testing.assert_allclose(found.boxes[0], [0, 0, 10, 11], atol=1e-5)
    np.testing.assert_allclose(merged.agreement, [1, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(merged.steadiness, [(10 / 11 + 11 / 14) / 2, 1, 1, 1], atol=1e-6)


def test_two_detections_of_one_look_are_never_fused():
    a = Look(detections((0, 0, 0.9, 0, 0, 10, 10), (0, 0, 0.8, 0, 0, 10, 9)))
    b = Look(detections((0, 0, 0.7, 0, 0, 10, 10)))
    merged = merge([a, b], 1)
    np.testing.assert_allclose(merged.look.detections.scores, [0.8, 0.4], atol=1e-6)


def test_the_same_look_twice_changes_nothing():
    clean, sizes = simulated.truth(0)
    look = simulated.look(clean, clean, sizes, seed=1)
    merged = merge([look, look], len(sizes))
    order = np.lexsort((-look.detections.scores, look.detections.image))
    for name in ("image", "labels", "scores", "boxes"):
        once = getattr(look.detections, name)[order]
        np.testing.assert_allclose(getattr(merged.look.detections, name), once, rtol=1e-5)
    assert (merged.agreement == 1).all()
    np.testing.assert_allclose(merged.steadiness, 1, atol=1e-4)
    np.testing.assert_allclose(merged.look.probabilities, look.probabilities, rtol=1e-5)


def test_ratings_are_averaged_over_the_looks_that_have_them():
    nothing = detections()
    ratings = [np.array([[0.2, 0.8]]), np.array([[0.6, 0.4]]), None]
    boxes = [np.zeros((1, 4)), np.full((1, 4), 2.0), None]
    looks = [Look(nothing, p, r) for p, r in zip(ratings, boxes)]
    merged = merge(looks, 1).look
    np.testing.assert_allclose(merged.probabilities, [[0.4, 0.6]])
    np.testing.assert_allclose(merged.refined, [[1, 1, 1, 1]])
