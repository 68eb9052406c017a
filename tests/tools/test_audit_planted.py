import numpy as np
import pytest

from mixtrain_jax import cli
from mixtrain_jax.auditing import measure
from mixtrain_jax.auditing.dump import Dump, Look
from mixtrain_jax.auditing.findings import CLASS, PLACE, SPURIOUS
from mixtrain_jax.auditing.labels import Detections, from_coco
from mixtrain_jax.auditing.noise import Planted
from mixtrain_jax.errors import UserError
from tools import audit_planted
from tools.audit_planted import with_truth
from tools.plant_errors import plant

TRUTH = {
    "images": [
        {"id": 7 + i, "width": 100, "height": 80, "file_name": f"{i}.jpg"} for i in range(4)
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
    "annotations": [
        {"id": 500 - i, "image_id": 7 + i % 4, "category_id": (3, 8)[i % 2],
         "bbox": [10.0 * (i % 7) + 2.2468, 12.0 * (i % 5) + 1, 8.0, 9.0]}
        for i in range(40)
    ],
}  # fmt: skip


def seen(damaged):
    human, _, _ = from_coco(damaged, "damaged")
    ids = np.array([image["id"] for image in damaged["images"]])
    none = Detections(*(np.zeros(shape) for shape in (0, (0, 4), 0, 0)))
    sizes = np.tile([80, 100], (len(ids), 1))
    return Dump(ids, ["x"] * len(ids), sizes, ["cat", "dog"], human, Look(none))


def test_the_dump_says_which_error_each_box_has():
    damaged, _ = plant(TRUTH, "errors", 0.1, 3)
    made = with_truth(seen(damaged), TRUTH, damaged, "clean")
    errors = measure.planted(Planted(made.human, made.source), made.truth, len(made.image_ids))
    assert [(errors.kinds == kind).sum() for kind in (CLASS, PLACE, SPURIOUS)] == [4, 4, 4]
    assert len(errors.missing) == 4 and made.truth_known.all()
    clean = {entry["id"]: entry for entry in TRUTH["annotations"]}
    for kind, entry in zip(errors.kinds, damaged["annotations"], strict=True):
        same = entry["source"] is not None and all(
            entry[name] == pytest.approx(clean[entry["source"]][name], abs=0.01)
            for name in ("image_id", "category_id", "bbox")
        )
        assert same == (kind == measure.RIGHT)


def test_clean_labels_need_no_ids():
    bare = [{k: v for k, v in entry.items() if k != "id"} for entry in TRUTH["annotations"]]
    truth = TRUTH | {"annotations": bare}
    damaged, _ = plant(truth, "errors", 0.1, 3)
    numbered, _ = plant(TRUTH, "errors", 0.1, 3)
    made = [with_truth(seen(d), t, d, "clean") for d, t in ((damaged, truth), (numbered, TRUTH))]
    np.testing.assert_array_equal(made[0].source, made[1].source)
    assert 0 < (made[0].source < 0).sum() < len(made[0].source)


@pytest.mark.parametrize(
    ("output", "source", "told"),
    [("gs://bucket/planted", "coco", "name a local path"), ("x", "voc", "labels are voc: errors")],
)
def test_what_cannot_be_written_is_told_first(tmp_path, capsys, output, source, told):
    flags = [f"--workdir={tmp_path}", "--truth=no.json", f"--output={output}"]
    recipe = ["--config=quickstart", f"--config.data.source={source}"]
    with pytest.raises(SystemExit, match="2"):
        cli.run(audit_planted.main, audit_planted.parse(), [*flags, *recipe])
    assert told in capsys.readouterr().err


def test_another_order_of_the_images_is_told():
    damaged, _ = plant(TRUTH, "errors", 0.1, 3)
    turned = TRUTH | {"images": TRUTH["images"][::-1]}
    with pytest.raises(UserError, match="clean.json: sort its images by id"):
        with_truth(seen(damaged), turned, damaged, "clean.json")
