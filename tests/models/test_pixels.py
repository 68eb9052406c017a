import jax
import numpy as np

from mixtrain_jax.models import pixels
from mixtrain_jax.types import Batch
from tests.mixtraining import small

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def _views(count=2, seed=0):
    """Views in bytes, and as bool what of them is shown: neither padding nor a hole."""
    rng = np.random.default_rng(seed)
    view = small.view(seed, count)
    image = rng.integers(256, size=view.image.shape, dtype=np.uint8)
    shown = rng.random(image.shape[:3]) < 0.9
    for i, (height, width) in enumerate(view.size):
        shown[i, height:] = False
        shown[i, :, width:] = False
    return view.replace(image=image, shown=np.packbits(shown, axis=-1)), shown


def test_bits_come_back_from_the_left():
    _, shown = _views()
    packed = np.packbits(shown, axis=-1)
    assert packed.shape == (2, 64, 8)
    np.testing.assert_array_equal(pixels.unpack(packed), shown)
    np.testing.assert_array_equal(jax.jit(pixels.unpack)(packed), shown)
    one = np.array([0b00100001], np.uint8)
    assert np.flatnonzero(pixels.unpack(one)).tolist() == [2, 7]


def test_images_are_normalised_and_exactly_zero_where_nothing_is_shown():
    view, shown = _views()
    seen = jax.jit(lambda view: pixels.normalise(view, MEAN, STD))(view)
    exact = (view.image.astype(np.float64) - MEAN) / STD
    assert seen.image.dtype == np.float32
    assert seen.shown is None
    np.testing.assert_allclose(seen.image, exact * shown[..., None], atol=1e-6)
    assert (np.asarray(seen.image)[~shown] == 0).all()
    np.testing.assert_array_equal(seen.boxes, view.boxes)


def test_all_views_of_a_batch_are_normalised_and_once_only():
    (normal, _), (weak, _), (strong, _) = (_views(seed=seed) for seed in range(3))
    batch = pixels.normalise(Batch(normal, weak, strong), MEAN, STD)
    for name, view in (("normal", normal), ("weak", weak), ("strong", strong)):
        alone = pixels.normalise(view, MEAN, STD)
        np.testing.assert_array_equal(getattr(batch, name).image, alone.image)
    again = pixels.normalise(batch, MEAN, STD)
    np.testing.assert_array_equal(again.strong.image, batch.strong.image)
    plain = pixels.normalise(Batch(normal), MEAN, STD)
    assert plain.weak is None and plain.strong is None
    np.testing.assert_array_equal(plain.normal.image, batch.normal.image)
