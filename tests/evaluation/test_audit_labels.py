"""What the audit judges and what not; corrected labels go back into the format they came in."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from etils import epath
from PIL import Image

from mixtrain_jax.auditing import corrections, files
from mixtrain_jax.auditing.corrections import Corrected, to_bbox
from mixtrain_jax.auditing.dump import Look
from mixtrain_jax.auditing.findings import MISSING, PLACE, Findings
from mixtrain_jax.auditing.labels import Detections, Labels, from_coco
from mixtrain_jax.config import load, own_data, recipes
from mixtrain_jax.data.sources.load import load_dataset
from mixtrain_jax.errors import UserError
from mixtrain_jax.evaluation import audit, corrected
from mixtrain_jax.evaluation.audit import too_weak
from tests.auditing import simulated
from tests.data import cases


def config(folder, val_share="0"):
    overrides = own_data.of_folder(str(folder), {"data.val_share": val_share})
    return load.override_all(recipes.base(), overrides)


def read(folder):
    data = config(folder).data
    return data.source, load_dataset(data, "train")


@pytest.fixture(params=["voc", "yolo"])
def people(request, tmp_path):
    """A data set of this format: its `config.data.source` and itself."""
    {"voc": cases.voc, "yolo": cases.yolo}[request.param](tmp_path / "people")
    return read(tmp_path / "people")


def test_corrected_labels_are_written_as_they_came(people, tmp_path):
    source, dataset = people
    human, _, _ = from_coco(dataset.ground_truth, "people")
    # The first box moves, the second goes, and one is added to the third image.
    moved, added = np.float32([2, 3, 30, 33]), np.float32([5, 6, 27, 28])
    kept = np.delete(np.arange(len(human)), 1)
    boxes = np.concatenate([human.boxes[kept], added[None]])
    boxes[0] = moved
    table = Labels(
        np.append(human.image[kept], 2).astype(np.int32),
        boxes,
        np.append(human.labels[kept], 1).astype(np.int32),
    )
    finding = np.full(len(table), -1, np.int32)
    finding[0], finding[-1] = 0, 1
    applied = Corrected(
        table, np.append(kept, -1).astype(np.int32), finding, np.array([1]), np.zeros(0, int)
    )
    found = Findings(
        image=np.array([human.image[0], 2], np.int32),
        kind=np.array([PLACE, MISSING], np.int8),
        score=np.array([0.9, 0.8], np.float32),
        human=np.array([0, -1]),
        detection=np.array([0, 1]),
        boxes=np.stack([moved, added]),
        labels=table.labels[[0, -1]],
    )
    output = epath.Path(tmp_path / "corrected.json")
    (tmp_path / "people.txt").write_text("no label")
    for _ in range(2):  # a second audit replaces the first one's files
        first = corrected.original(dataset, config(tmp_path / "people").data, "train")
        corrected.write_labels(first, source, dataset.name, applied, found, output)

    folder = tmp_path / "corrected"
    images = folder / ("JPEGImages" if source == "voc" else "images/train")
    assert images.exists() == (source == "yolo")  # whose labels are found by the images
    images.mkdir(parents=True, exist_ok=True)
    shutil.copy(tmp_path / "people.txt", images / "mine.txt")
    corrected.write_labels(first, source, dataset.name, applied, found, output)
    assert (images / "mine.txt").exists()  # nothing but labels is replaced
    if source == "voc":
        for file in (tmp_path / "people").rglob("*.jpg"):
            shutil.copy(file, images)
    assert all(file.is_symlink() == (source == "yolo") for file in images.glob("*.jpg"))
    if source == "yolo":  # an image that is no longer in the data
        (images / "gone.jpg").symlink_to(tmp_path / "people" / "gone.jpg")
        corrected.write_labels(first, source, dataset.name, applied, found, output)
        assert not (images / "gone.jpg").is_symlink()
    again, there = read(folder)
    assert again == source
    names = [dataset.file_name(row).split("/")[-1] for row in range(len(dataset))]
    by_name = {there.file_name(row).split("/")[-1]: row for row in range(len(there))}
    assert by_name.keys() == set(names)
    for image, name in enumerate(names):
        mine = table.image == image
        row = by_name[name]
        # VOC has whole pixels.
        order = np.lexsort(np.rint(np.asarray(there.boxes[row])).T)
        expected = np.lexsort(np.rint(table.boxes[mine]).T)
        np.testing.assert_allclose(
            np.asarray(there.boxes[row])[order], table.boxes[mine][expected], atol=0.51
        )
        labels = [there.categories[label]["name"] for label in np.asarray(there.labels[row])[order]]
        ours = [dataset.categories[label]["name"] for label in table.labels[mine][expected]]
        assert labels == ours


@pytest.mark.parametrize(
    ("missing", "spurious", "said"),
    [
        (300, 45, ""),
        (301, 45, "301 boxes seem to be missing where people drew 100"),
        (300, 46, "51 of the 100 boxes that people drew seem to be wrong"),
    ],
)
def test_a_detector_that_finds_most_labels_wrong_is_doubted(missing, spurious, said):
    summary = [
        {"class": "cat", "kind": "missing", "errors": missing},
        {"class": "all", "kind": "place", "errors": 5.0},
        {"class": "all", "kind": "spurious", "errors": spurious},
        {"class": "all", "kind": "missing", "errors": missing},
    ]
    told = too_weak({"summary": summary, "data": {"human_boxes": 100}})
    assert told.startswith(said) and bool(told) == bool(said)


NOTHING = Findings(*(np.zeros(shape, np.int32) for shape in (0, 0, 0, 0, 0, (0, 4), 0)))


def nothing_applied(dataset):
    human, _, _ = from_coco(dataset.ground_truth, "people")
    return corrections.apply(human, NOTHING, np.zeros(0, bool))


@pytest.mark.parametrize("audited", ["train", "val"])
@pytest.mark.parametrize("make", [cases.voc, cases.yolo, cases.coco])
def test_what_was_set_apart_comes_back_with_the_corrected_labels(make, audited, tmp_path):
    make(tmp_path / "people")
    data = config(tmp_path / "people", "0.4").data
    parts = {split: load_dataset(data, split) for split in ("train", "val")}
    first = corrected.original(parts[audited], data, audited)
    output = epath.Path(tmp_path / "corrected.json")
    nothing = nothing_applied(parts[audited])
    name = corrected.split_in_files(parts[audited], data)
    corrected.write_labels(first, data.source, name, nothing, NOTHING, output)
    written = json.loads(output.read_text())
    names = [part.file_name(row) for part in parts.values() for row in range(len(part))]
    assert sorted(image["file_name"] for image in written["images"]) == sorted(names)
    if data.source != "coco":  # and can be trained on as they are
        again = config(tmp_path / "corrected", "0.4").data
        if data.source == "voc":  # whose images stay where they were
            again = load.override_all(again, {"train.images": str(data.train.images)})
        there = [load_dataset(again, split) for split in parts]
        assert sum(map(len, there)) == len(names)
        assert [len(each.boxes.values) for each in there] == [
            len(part.boxes.values) for part in parts.values()
        ]
    if data.source == "coco":
        again = load.override_all(data, {"train.annotations": str(output)})
        for split, part in parts.items():
            there = load_dataset(again, split)
            assert there.image_ids.tolist() == part.image_ids.tolist()
            np.testing.assert_array_equal(there.boxes.values, part.boxes.values)


def _flat(folder):
    (folder / "images").mkdir(parents=True)
    return folder / "images", folder / "labels", "images"


def _roboflow(folder):
    return folder / "train" / "images", folder / "train" / "labels", "../train/images"


def _year(folder):
    return folder / "images" / "train2017", folder / "labels" / "train2017", "images/train2017"


def _nested(folder):
    return folder / "images" / "train" / "a", folder / "labels" / "train" / "a", "images/train"


def _two(folder):
    return folder / "b" / "images", folder / "b" / "labels", ["a/images", "b/images"]


@pytest.mark.parametrize("layout", [_flat, _roboflow, _year, _nested, _two])
def test_corrected_yolo_labels_train_in_place_of_the_first(layout, tmp_path):
    """Whatever the layout; of two folders whose images have the same names, too."""
    people = tmp_path / "people"
    images, labels, train = layout(people)
    pairs = [(images, labels)]
    if layout is _two:
        pairs.append((people / "a" / "images", people / "a" / "labels"))
    for number, (images, labels) in enumerate(pairs):
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (64, 48), (40 * k, 0, 90 * number)).save(images / f"{k}.png")
            (labels / f"{k}.txt").write_text(f"{k % 2} 0.{k + 3} 0.{5 + number} 0.25 0.25\n")
    (people / "data.yaml").write_text(json.dumps({"train": train, "names": ["a", "b"]}))
    fields = {"data.source": "yolo", "data.train.annotations": str(people / "data.yaml")}
    data = load.override_all(recipes.base(), fields).data
    dataset = load_dataset(data, "train")
    assert len({dataset.file_name(row) for row in range(len(dataset))}) == 4 * len(pairs)
    first = corrected.original(dataset, data, "train")
    output = epath.Path(tmp_path / "corrected.json")
    applied = nothing_applied(dataset)
    corrected.write_labels(first, "yolo", dataset.name, applied, NOTHING, output)
    file = {"train.annotations": str(tmp_path / "corrected" / "data.yaml")}
    there = load_dataset(load.override_all(data, file), "train")
    told = lambda each: sorted(  # noqa: E731
        (each.read(row), each.labels[row].tolist(), np.round(each.boxes[row], 3).tolist())
        for row in range(len(each))
    )
    assert told(there) == told(dataset)
    assert there.categories == dataset.categories


@pytest.mark.parametrize("bucket", [False, True])
def test_images_that_cannot_be_linked_are_told_of(bucket, tmp_path, caplog, monkeypatch):
    cases.yolo(tmp_path / "people")
    source, dataset = read(tmp_path / "people")
    first = corrected.original(dataset, config(tmp_path / "people").data, "train")

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(corrected.os, "symlink", refuse)
    if bucket:
        remote = lambda path: "people" not in str(path)  # noqa: E731
        monkeypatch.setattr(corrected.storage, "is_local", remote)
    output = epath.Path(tmp_path / "corrected.json")
    nothing = nothing_applied(dataset)
    corrected.write_labels(first, source, dataset.name, nothing, NOTHING, output)
    assert (tmp_path / "corrected" / "labels").is_dir()
    assert "put the images there" in caplog.text


def test_labels_that_cannot_be_written_as_they_came_are_in_cocos_file(tmp_path, caplog):
    """Two images of one label file."""
    for name in ("0.png", "0.jpg"):
        path = tmp_path / "people" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(path)
    labels = tmp_path / "people" / "labels"
    labels.mkdir()
    (labels / "0.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    data = config(tmp_path / "people").data
    dataset = load_dataset(data, "train")
    first = corrected.original(dataset, data, "train")
    output = epath.Path(tmp_path / "corrected.json")
    corrected.write_labels(first, "yolo", "train", nothing_applied(dataset), NOTHING, output)
    assert len(json.loads(output.read_text())["annotations"]) == 2
    assert "YOLO has one label file for both; corrected labels are in" in caplog.text


def coco_people(folder, **more):
    """Twelve simulated images and their labels as a COCO file with more than boxes."""
    clean, sizes = simulated.truth(seed=0, images=12)
    (folder / "images").mkdir(parents=True)
    images = []
    for row, (height, width) in enumerate(sizes.tolist()):
        Image.new("RGB", (width, height)).save(folder / "images" / f"{row}.png")
        images.append({"id": f"im-{row}", "file_name": f"{row}.png", "height": height,
                       "width": width, "licence": 3})  # fmt: skip
    annotations = [
        {"id": n, "image_id": f"im-{image}", "category_id": int(label), "iscrowd": 0,
         "bbox": to_bbox(box), "area": 5.0, "segmentation": [[1, 2, 3, 4, 5, 6]], "keypoints": [n]}
        for n, (image, box, label) in enumerate(zip(clean.image, clean.boxes, clean.labels))
    ]  # fmt: skip
    content = {
        "info": {"by": "hand"}, "licences": [3], "images": images,
        "annotations": annotations + more.get("annotations", []),
        "categories": [{"id": n, "name": str(n)} for n in range(simulated.CLASSES)],
    }  # fmt: skip
    (folder / "people.json").write_text(json.dumps(content))
    return clean, sizes, content


def test_the_rest_of_a_coco_file_stays_as_it_is(tmp_path):
    _, _, content = coco_people(tmp_path)
    data = config(tmp_path).data
    dataset = load_dataset(data, "train")
    human, _, _ = from_coco(dataset.ground_truth, "people")
    moved = Findings(
        image=human.image[4:5], kind=np.array([PLACE], np.int8), score=np.array([0.9]),
        human=np.array([4]), detection=np.array([0]), boxes=human.boxes[4:5] + 1,
        labels=human.labels[4:5],
    )  # fmt: skip
    applied = corrections.apply(human, moved, np.ones(1, bool))
    first = corrected.original(dataset, data, "train")
    output = epath.Path(tmp_path / "out" / "corrected.json")
    corrected.write_labels(first, "coco", "train", applied, moved, output)
    written = json.loads(output.read_text())
    assert written.keys() == content.keys()
    for key in content.keys() - {"annotations"}:
        assert written[key] == content[key]
    for before, after in zip(content["annotations"], written["annotations"], strict=True):
        if before["id"] != 4:
            assert after == before
        else:
            assert after["audit"] == {"kind": "place", "score": 0.9} and after["keypoints"] == [4]


def test_labels_without_ids_of_their_own_are_written_anew_and_said(tmp_path, caplog):
    _, _, content = coco_people(tmp_path)
    for entry in content["annotations"]:
        del entry["id"]
    (tmp_path / "people.json").write_text(json.dumps(content))
    data = config(tmp_path).data
    dataset = load_dataset(data, "train")
    first = corrected.original(dataset, data, "train")
    assert "no ids of their own" in caplog.text
    output = epath.Path(tmp_path / "corrected.json")
    corrected.write_labels(first, "coco", "train", nothing_applied(dataset), NOTHING, output)
    assert len(json.loads(output.read_text())["annotations"]) == len(content["annotations"])


def test_labels_are_never_written_over(tmp_path):
    coco_people(tmp_path)
    asked = config(tmp_path)
    with pytest.raises(UserError, match="holds the labels that are audited"):
        corrected.keep_apart(epath.Path(tmp_path / "people.json"), asked.data)
    corrected.keep_apart(epath.Path(tmp_path / "audit" / "people.json"), asked.data)
    inside = {
        "data.train.annotations": str(tmp_path / "audit" / ".." / "out" / "x" / "Annotations")
    }
    for name, refused in (("x.json", True), ("y.json", False)):
        data = load.override_all(asked, inside).data
        with pytest.raises(UserError) if refused else contextlib.nullcontext():
            corrected.keep_apart(epath.Path(tmp_path / "out" / name), data)


def test_labels_that_no_audit_wrote_are_not_taken_away(tmp_path):
    cases.yolo(tmp_path / "people")
    data = config(tmp_path / "people").data
    dataset = load_dataset(data, "train")
    output = epath.Path(tmp_path / "corrected.json")
    (tmp_path / "corrected" / "labels").mkdir(parents=True)
    with pytest.raises(UserError, match="labels is there, and no audit wrote it"):
        corrected.keep_apart(output, data)
    (tmp_path / "corrected" / "labels").rmdir()
    first = corrected.original(dataset, data, "train")
    corrected.write_labels(first, "yolo", "train", nothing_applied(dataset), NOTHING, output)
    corrected.keep_apart(output, data)  # written by an audit, so the next one may
    beside = load.override_all(config(tmp_path / "people"), {
        "data.train.annotations": "", "data.train.images": str(tmp_path / "corrected" / "images")
    }).data  # fmt: skip
    with pytest.raises(UserError, match="holds the labels that are audited"):
        corrected.keep_apart(output, beside)


def test_boxes_that_are_empty_lists_have_their_outlines(tmp_path):
    _, _, content = coco_people(tmp_path)
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        entry["bbox"] = []
    (tmp_path / "people.json").write_text(json.dumps(content))
    data = config(tmp_path).data
    dataset = load_dataset(data, "train")
    first = corrected.original(dataset, data, "train")
    assert first.table is None and first.content == content  # COCO's file itself


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """A function that audits what is simulated, with more annotations or images nobody can read."""

    def run(annotations=(), blind=()):
        clean, sizes, content = coco_people(tmp_path, annotations=list(annotations))
        look = simulated.look(clean, clean, sizes, seed=1)
        found = look.detections
        by_row = {}
        for row in set(range(len(sizes))) - set(blind):
            mine, people = found.image == row, clean.image == row
            parts = found.boxes[mine], found.scores[mine], found.labels[mine]
            by_row[row] = (*parts, look.probabilities[people], look.refined[people])
        monkeypatch.setattr(audit, "_by_look", lambda *_: {n: dict(by_row) for n in audit.LOOKS})
        asked = config(tmp_path)
        dataset = load_dataset(asked.data, "train")
        output = epath.Path(tmp_path / "audit")
        judges = [audit.Judge("nowhere", np.arange(len(dataset)))]
        made = audit.audit(asked, dataset, judges, output, split="train", seen="in sample")
        return content, made, json.loads((output / "corrected.json").read_text())

    return run


def test_images_that_cannot_be_read_are_not_judged(seen, caplog):
    content, made, written = seen(blind=(2, 5))
    assert made["data"]["unreadable"] == 2
    assert caplog.text.count("2 images could not be read and are not audited") == 1
    assert {f["file_name"] for f in made["findings"]} & {"2.png", "5.png"} == set()
    assert made["findings"]
    for finding in made["findings"]:  # rows count all human boxes, not only those judged
        if finding["human"]:
            own = content["annotations"][finding["human"]["annotation_id"]]
            assert own["image_id"] == f"im-{finding['file_name'][:-4]}"
            np.testing.assert_allclose(finding["human"]["bbox"], own["bbox"], atol=0.02)
    of_blind = [e for e in written["annotations"] if e["image_id"] in ("im-2", "im-5")]
    assert of_blind == [e for e in content["annotations"] if e["image_id"] in ("im-2", "im-5")]


def test_ids_that_are_text_are_the_labels_own(seen):
    _, contents, _ = seen()
    assert contents["findings"]
    assert {entry["image_id"] for entry in contents["findings"]} <= {f"im-{n}" for n in range(12)}


def test_crops_of_former_audits_go_and_nothing_else_does(seen, tmp_path):
    """A page that is still open would else show the new ones under its own findings."""
    crops = tmp_path / "audit" / "crops"
    (crops / "0123456789ab").mkdir(parents=True)
    for name in ("0123456789ab/3.jpg", "7.jpg", "mine.jpg"):
        (crops / name).write_bytes(b"")
    _, contents, _ = seen()
    assert {each.name for each in crops.iterdir()} == {contents["fingerprint"], "mine.jpg"}


def test_an_older_audit_of_ids_that_are_text_can_be_applied(seen, tmp_path):
    _, contents, _ = seen()
    data = config(tmp_path).data
    dataset = load_dataset(data, "train")
    number = dict(zip(dataset.given_image_ids, dataset.image_ids.tolist()))
    for entry in contents["findings"]:
        entry["image_id"] = number[entry["image_id"]]
    del contents["data"]["labels"]
    contents["fingerprint"] = files.fingerprint(contents["findings"])
    made = {"version": 1, "fingerprint": contents["fingerprint"], "decisions": {"0": "accept"}}
    output = epath.Path(tmp_path / "audit")
    (output / "audit.json").write_text(json.dumps(contents))
    (output / "decisions.json").write_text(json.dumps(made))
    given = dataset, data, "train", output, output / "decisions.json"
    assert corrected.apply_decisions(*given) == 1


def test_decisions_outlive_the_next_audit(seen, tmp_path, capsys):
    _, contents, _ = seen()
    output = epath.Path(tmp_path / "audit")
    mark = contents["fingerprint"]
    made = {"version": 1, "fingerprint": mark, "decisions": {"0": "accept", "1": "accept"}}
    (tmp_path / "decisions.json").write_text(json.dumps(made))
    corrected.keep_former(output, mark)  # the same audit again
    assert (output / "audit.json").exists()
    corrected.keep_former(output, "0" * 12)
    assert f"audit-{mark}.json now; decisions" in capsys.readouterr().out
    other = contents | {"findings": [], "fingerprint": files.fingerprint([])}
    (output / "audit.json").write_text(json.dumps(other))
    data = config(tmp_path).data
    given = load_dataset(data, "train"), data, "train", output
    assert corrected.apply_decisions(*given, epath.Path(tmp_path / "decisions.json")) == 2
    made["fingerprint"] = "f" * 12
    (tmp_path / "decisions.json").write_text(json.dumps(made))
    with pytest.raises(UserError, match="was made on another audit"):
        corrected.apply_decisions(*given, epath.Path(tmp_path / "decisions.json"))


def test_nothing_is_missing_in_a_crowd(seen):
    everything = {"id": 999, "image_id": "im-3", "category_id": 0, "iscrowd": 1,
                  "bbox": [0, 0, simulated.SIDE, simulated.SIDE], "area": 5.0}  # fmt: skip
    _, made, written = seen(annotations=[everything])
    missing = [f["file_name"] for f in made["findings"] if f["kind"] == "missing"]
    assert missing and "3.png" not in missing
    assert everything in written["annotations"]


def test_what_lies_in_a_crowd_and_on_no_humans_box_is_one_of_the_crowd():
    crowd = np.float32([[0, 0, 100, 100]])
    boxes = np.float32([
        [10, 10, 30, 30],  # in it, on what people drew
        [60, 60, 80, 80],  # in it, on nothing
        [90, 40, 106, 50],  # by five eighths of it
        [94, 40, 110, 50],  # by three eighths of it
    ])  # fmt: skip
    found = Detections(np.zeros(4, np.int32), boxes, np.zeros(4, np.int32), np.float32([0.9] * 4))
    human = Labels(np.zeros(1, np.int32), np.float32([[11, 10, 31, 30]]), np.zeros(1, np.int32))
    for crowds, kept in ((crowd, [0, 3]), (crowd[:0], [0, 1, 2, 3])):
        look = audit._off_crowds(Look(found), OneImage([crowds]), human)
        np.testing.assert_array_equal(look.detections.boxes, boxes[kept])


class OneImage:
    """Stands in for a data set, of which its crowds alone are asked for."""

    def __init__(self, crowd):
        self.crowd = crowd

    def __len__(self):
        return len(self.crowd)
