import json

import numpy as np
import pytest

from mixtrain_jax import cli
from mixtrain_jax.errors import BAD_INPUT, UserError
from tools import plant_errors

BOXES = [[10.0 * (i % 7) + 2, 12.0 * (i % 5) + 1, 8.0, 9.0] for i in range(40)]
TRUTH = {
    "images": [
        {"id": 7 + i, "width": 100, "height": 80, "file_name": f"{i}.jpg"} for i in range(4)
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
    "annotations": [
        {"id": 100 + i, "image_id": 7 + i % 4, "category_id": (3, 8)[i % 2], "bbox": box}
        for i, box in enumerate(BOXES)
    ],
}


def run(tmp_path, *flags):
    source, output = tmp_path / "clean.json", tmp_path / "damaged.json"
    source.write_text(json.dumps(TRUTH))
    output.unlink(missing_ok=True)
    arguments = [str(source), f"--output={output}", *flags]
    with pytest.raises(SystemExit) as ended:
        cli.run(plant_errors.main, plant_errors.parse(), arguments)
    assert json.loads(source.read_text()) == TRUTH
    return ended.value.code or 0, json.loads(output.read_text()) if output.exists() else None


def clean(entry):
    """The annotation that a damaged one came from."""
    (found,) = (each for each in TRUTH["annotations"] if each["id"] == entry["source"])
    return found


def test_errors_of_four_kinds_in_equal_shares(tmp_path, capsys):
    code, damaged = run(tmp_path, "--noise=errors:0.1", "--seed=5")
    assert code == 0
    entries = damaged["annotations"]
    spawned = [entry for entry in entries if entry["source"] is None]
    kept = [entry for entry in entries if entry["source"] is not None]
    assert (len(spawned), len(kept)) == (4, 36)  # as many dropped
    flipped = [e for e in kept if e["category_id"] != clean(e)["category_id"]]
    moved = [e for e in kept if not np.allclose(e["bbox"], clean(e)["bbox"], atol=1e-3)]
    assert (len(flipped), len(moved)) == (4, 4)
    assert all(entry["image_id"] == clean(entry)["image_id"] for entry in kept)
    assert damaged["images"] == TRUTH["images"]
    said = "40 boxes: 4 dropped, 4 of another class, 4 moved, 4 spawned"
    assert said in capsys.readouterr().out
    assert run(tmp_path, "--noise=errors:0.1", "--seed=5")[1] == damaged
    assert run(tmp_path, "--noise=errors:0.1", "--seed=6")[1] != damaged


@pytest.mark.parametrize(("noise", "least", "most"), [("una:0.3", 28, 45), ("oamil:0.2", 40, 40)])
def test_other_kinds(tmp_path, noise, least, most):
    code, damaged = run(tmp_path, f"--noise={noise}")
    assert code == 0
    assert least <= len(damaged["annotations"]) <= most
    different = [
        entry
        for entry in damaged["annotations"]
        if entry["source"] is not None
        and not np.allclose(entry["bbox"], clean(entry)["bbox"], atol=1e-3)
    ]
    assert len(different) > 8


@pytest.mark.parametrize("name", ["clean.json", "./clean.json"])
def test_the_file_that_is_read_is_not_written_over(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clean.json").write_text(json.dumps(TRUTH))
    arguments = [name, "--noise=errors:0.1", f"--output={tmp_path}/clean.json"]
    with pytest.raises(SystemExit) as ended:
        cli.run(plant_errors.main, plant_errors.parse(), arguments)
    assert ended.value.code == BAD_INPUT
    assert "is the file that is read; choose another" in capsys.readouterr().err
    assert json.loads((tmp_path / "clean.json").read_text()) == TRUTH


def test_no_other_file_is_written_over(tmp_path, capsys):
    (tmp_path / "clean.json").write_text(json.dumps(TRUTH))
    (tmp_path / "val.json").write_text("{}")
    arguments = ["--noise=errors:0.1", f"--output={tmp_path}/val.json", f"{tmp_path}/clean.json"]
    with pytest.raises(SystemExit, match="2"):
        cli.run(plant_errors.main, plant_errors.parse(), arguments)
    assert "val.json exists; remove it or choose another --output" in capsys.readouterr().err
    assert (tmp_path / "val.json").read_text() == "{}"


@pytest.mark.parametrize("flag", ["--config=quickstart", "--config.data.exif=stored"])
def test_a_config_is_refused_where_none_is_used(tmp_path, capsys, flag):
    assert run(tmp_path, "--noise=errors:0.1", flag) == (BAD_INPUT, None)
    assert f"unknown flag {flag.partition('=')[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", list(plant_errors.KINDS))
def test_a_file_without_images_is_one_line(kind):
    with pytest.raises(UserError, match="there are no images"):
        plant_errors.plant(TRUTH | {"images": [], "annotations": []}, kind, 0.2, 0)


def test_what_a_coco_file_may_lack():
    bare = {
        **TRUTH,
        "annotations": [
            {name: entry[name] for name in ("image_id", "category_id", "bbox")}
            for entry in TRUTH["annotations"]
        ],
    }
    crowd = bare["annotations"][0] | {"iscrowd": 1}
    bare["annotations"].append(crowd)
    content, said = plant_errors.plant(bare, "errors", 0.1, 0)
    assert "1 more that are crowds, or no box, are left out" in said
    came = [entry["source"] for entry in content["annotations"]]
    places = [place for place in came if place is not None]  # in the list, as there are no ids
    assert 0 < len(places) < len(came) and set(places) <= set(range(len(TRUTH["annotations"])))
    sizeless = {**TRUTH, "images": [{**image, "width": None} for image in TRUTH["images"]]}
    with pytest.raises(UserError, match="has no height and width"):
        plant_errors.plant(sizeless, "errors", 0.1, 0)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ("una", "--noise=una: write KIND:LEVEL, such as una:0.3"),
        ("rain:0.1", "noise 'rain': choose from errors, una, oamil"),
        ("una:0.7", "noise una:0.7: ratio is 0.7, expected 0 to 0.5"),
    ],
)
def test_noise_that_cannot_be_is_one_line(tmp_path, capsys, noise, message):
    code, damaged = run(tmp_path, f"--noise={noise}")
    assert code == BAD_INPUT and damaged is None
    assert message in capsys.readouterr().err
