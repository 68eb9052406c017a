import importlib.util
import json
import os
import pathlib
import pickle
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from mixtrain_jax import cli
from mixtrain_jax.config import load as config
from mixtrain_jax.models import detector, torch_names
from mixtrain_jax.runtime import checkpoint
from tests.golden import micro_cascade
from tools import convert_torch, export_torch

SWIN = """
    c.model.backbone.update(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
    c.model.fpn.channels, c.model.rpn.channels, c.model.roi_head.fc_channels = 32, 32, 64
    recipes.cascade_head(c.model)
"""
RESNET = """
    c.model.backbone.update(name="resnet", depth=18, base_channels=4)
    c.model.fpn.channels, c.model.rpn.channels, c.model.roi_head.fc_channels = 4, 4, 8
"""


@pytest.fixture
def swin(tmp_path):
    return config_file(tmp_path, SWIN)


@pytest.fixture
def resnet(tmp_path):
    return config_file(tmp_path, RESNET + "    c.model.num_classes = 3\n")


def config_file(folder, body):
    path = folder / "config.py"
    head = "from mixtrain_jax.config import recipes\n\n\ndef get_config():\n    c = recipes.base()"
    path.write_text(f"{head}{body}    return c\n")
    return path


def run(tool, *arguments):
    with pytest.raises(SystemExit) as end:
        cli.run(tool.main, tool.parse(), [str(a) for a in arguments])
    return end.value.code or 0


def convert(config_path, source, output, *arguments):
    flags = f"--config={config_path}", f"--input={source}", f"--output={output}"
    return run(convert_torch, *flags, *arguments)


@pytest.mark.parametrize("tool", [convert_torch, export_torch])
def test_runs_from_a_plain_checkout(tool, tmp_path):
    process = subprocess.run(
        [sys.executable, str(pathlib.Path(tool.__file__)), "--help"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("usage: ")


def save_safetensors(path, state):
    """Writes the format as its documentation has it."""
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, array in state.items():
        content = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": kinds[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + len(content)],
        }
        body += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def model_shapes(config_path, classes):
    loaded = config.load(str(config_path))
    loaded.model.num_classes = classes
    model = detector.build(loaded.model)
    return model, jax.eval_shape(lambda: detector.init(model, 0))


def resnet_state(config_path):
    """Random tensors under the names and shapes that PyTorch has for the small ResNet detector."""
    _, shapes = model_shapes(config_path, 3)
    flat, rng = torch_names.flatten(shapes), np.random.default_rng(0)
    return {
        name: rng.normal(size=torch_names.torch_shape(path, flat[path].shape)).astype(np.float32)
        for path, name in torch_names.names(shapes).items()
    }


def test_names_and_shapes_are_mmdetections(swin):
    expected = json.loads((micro_cascade.FOLDER / "micro_cascade.json").read_text())
    expected = {
        name: tuple(shape)
        for name, shape in expected["param_shapes"].items()
        if not name.endswith("relative_position_index")
    }
    _, shapes = model_shapes(swin, 80)
    flat = torch_names.flatten(shapes)
    names = torch_names.names(shapes).items()
    assert {n: torch_names.torch_shape(p, flat[p].shape) for p, n in names} == expected


def test_names_of_resnet_and_faster(resnet):
    state = resnet_state(resnet)
    shapes = {
        "backbone.conv1.weight": (4, 3, 7, 7),
        "backbone.bn1.running_mean": (4,),
        "backbone.layer1.0.conv1.weight": (4, 4, 3, 3),
        "backbone.layer2.0.bn2.running_var": (8,),
        "backbone.layer2.0.downsample.0.weight": (8, 4, 1, 1),
        "backbone.layer4.0.downsample.1.bias": (32,),
        "rpn_head.rpn_reg.weight": (12, 4, 1, 1),
        "roi_head.bbox_head.shared_fcs.0.weight": (8, 4 * 7 * 7),
        "roi_head.bbox_head.fc_cls.bias": (4,),
        "roi_head.bbox_head.fc_reg.weight": (12, 8),
    }
    assert {name: state[name].shape for name in shapes} == shapes


def test_layouts_compute_the_same():
    rng = np.random.default_rng(1)
    pooled = rng.normal(size=(7, 7, 5))
    weight = rng.normal(size=(6, 5 * 7 * 7))
    kernel = torch_names.from_torch("roi_head/head1/fc1/kernel", weight)
    expected = weight @ pooled.transpose(2, 0, 1).ravel()
    np.testing.assert_allclose(pooled.ravel() @ kernel, expected)
    np.testing.assert_array_equal(torch_names.to_torch("roi_head/head1/fc1/kernel", kernel), weight)

    weight = rng.normal(size=(6, 5))
    features = rng.normal(size=5)
    kernel = torch_names.from_torch("roi_head/head1/fc2/kernel", weight)
    np.testing.assert_allclose(features @ kernel, weight @ features)

    weight, patch = rng.normal(size=(6, 5, 3, 3)), rng.normal(size=(3, 3, 5))
    kernel = torch_names.from_torch("rpn/conv/kernel", weight)
    expected = (weight * patch.transpose(2, 0, 1)).sum((1, 2, 3))
    np.testing.assert_allclose((patch[..., None] * kernel).sum((0, 1, 2)), expected)


@pytest.mark.golden
def test_mixtraining_file_keeps_student_and_teacher(swin, tmp_path, capsys):
    student = micro_cascade.state_dict()
    teacher = {name: array + np.float32(0.1) for name, array in student.items()}
    both = {f"teacher.detector.{name}": array for name, array in teacher.items()}
    both |= {f"student.detector.{name}": array for name, array in student.items()}
    both["student.detector.backbone.layers.0.blocks.0.attn.relative_position_index"] = np.zeros(
        (49, 49), np.int64
    )
    source = save_safetensors(tmp_path / "both.safetensors", both)
    assert convert(swin, source, tmp_path / "out") == 0
    report = capsys.readouterr().out
    assert "student: 171 tensors used, 1 unused and known" in report
    assert "teacher: 171 tensors used\n" in report
    for which, expected in [("student", student), ("teacher", teacher)]:
        params, meta = checkpoint.load_weights(tmp_path / "out", which)
        state = export_torch.state_dict(params)
        assert {n for n in state if not n.endswith("_index")} == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(state[name], array, strict=True)
    assert meta["config"]["model"]["num_classes"] == 80
    assert meta["categories"][11] == {"id": 13, "name": "stop sign"}
    assert meta["categories"][79] == {"id": 90, "name": "toothbrush"}

    assert convert(swin, source, tmp_path / "teacher", "--weights=teacher") == 0
    for which in ("student", "teacher"):
        params, _ = checkpoint.load_weights(tmp_path / "teacher", which)
        bias = teacher["roi_head.bbox_head.2.fc_cls.bias"]
        np.testing.assert_array_equal(params["roi_head"]["head2"]["logits"]["bias"], bias)


@pytest.mark.golden
def test_released_files_make_a_round_trip(swin, tmp_path):
    torch = pytest.importorskip("torch")
    student = {name: torch.from_numpy(a) for name, a in micro_cascade.state_dict().items()}
    both = {f"student.detector.{n}": t for n, t in student.items()}
    both |= {f"teacher.detector.{n}": t + 0.1 for n, t in student.items()}
    file = {"meta": {"CLASSES": ("person",), "epoch": 48}, "state_dict": both}
    torch.save(file, tmp_path / "released.pth")
    assert convert(swin, tmp_path / "released.pth", tmp_path / "out") == 0
    for weights, expected in [("both", both), ("student", student)]:
        output = tmp_path / f"{weights}.pth"
        flags = f"--checkpoint={tmp_path / 'out'}", f"--output={output}", f"--weights={weights}"
        assert run(export_torch, *flags) == 0
        back = torch.load(output, weights_only=True)
        assert back["meta"]["CLASSES"][:2] == ("person", "bicycle")
        state = back["state_dict"]
        assert {n for n in state if not n.endswith("relative_position_index")} == set(expected)
        assert all(
            torch.equal(state[n], t) and state[n].dtype == t.dtype for n, t in expected.items()
        )
    index = state["backbone.layers.0.blocks.0.attn.relative_position_index"]
    assert index.shape == (49, 49)
    assert (index[0, 0], index[0, 48], index[48, 0]) == (84, 0, 168)


def test_torchvision_backbone_leaves_the_rest_out(resnet, tmp_path, capsys):
    state = {
        name.removeprefix("backbone."): array
        for name, array in resnet_state(resnet).items()
        if name.startswith("backbone.")
    }
    extra = {"fc.weight": np.zeros((9, 32), np.float32), "fc.bias": np.zeros(9, np.float32)}
    extra["bn1.num_batches_tracked"] = np.zeros((), np.int64)
    source = save_safetensors(tmp_path / "resnet.safetensors", state | extra)
    assert convert(resnet, source, tmp_path / "out") == 0
    report = capsys.readouterr().out
    assert f"student: {len(state)} tensors used, 30 left out, 3 unused" in report
    assert "  initial      neck.fpn_convs.0.conv.weight  [4, 4, 3, 3]\n" in report
    params, meta = checkpoint.load_weights(tmp_path / "out")
    assert "categories" not in meta
    assert list(params) == ["backbone"]
    kernel = params["backbone"]["stage1"]["block0"]["shortcut_conv"]["kernel"]
    expected = state["layer2.0.downsample.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)


def test_swin_imagenet_file(swin, tmp_path):
    torch = pytest.importorskip("torch")
    outputs = tuple(f"backbone.norm{i}." for i in range(4))
    state = {
        name.removeprefix("backbone."): torch.from_numpy(array)
        for name, array in micro_cascade.state_dict().items()
        if name.startswith("backbone.") and not name.startswith(outputs)
    }
    unused = {"norm.weight": 128, "head.bias": 10, "layers.0.blocks.1.attn_mask": 64}
    state |= {name: torch.zeros(n) for name, n in unused.items()}
    found = convert_torch.split({name: tensor.numpy() for name, tensor in state.items()})
    _, shapes = model_shapes(swin, 80)
    arrays, entries = convert_torch.match(found["student"], shapes, [])
    assert len(arrays) == len(state) - len(unused)
    statuses = {entry.name: entry.status for entry in entries}
    assert {statuses[f"backbone.{name}"] for name in unused} == {"unused"}
    assert {statuses[name] for name in statuses if name.startswith(outputs)} == {"initial"}
    assert not set(statuses.values()) & set(convert_torch.ERRORS)
    torch.save({"model": state}, tmp_path / "swin.pth")
    assert set(convert_torch.read(tmp_path / "swin.pth")) == set(state)


def test_renamed_and_misshapen_tensors_are_refused(resnet, tmp_path, capsys):
    state = resnet_state(resnet)
    state["rpn_head.rpn_clss.bias"] = state.pop("rpn_head.rpn_cls.bias")
    state["neck.fpn_convs.3.conv.weight"] = np.zeros((4, 4, 1, 3), np.float32)
    source = save_safetensors(tmp_path / "renamed.safetensors", state)
    assert convert(resnet, source, tmp_path / "out") == 2
    report, error = capsys.readouterr()
    assert "  missing      rpn_head.rpn_cls.bias  [3]\n" in report
    assert "  unknown      rpn_head.rpn_clss.bias  [3]\n" in report
    assert error.count("\n") == 1
    assert "1 missing: rpn_head.rpn_cls.bias" in error
    assert "neck.fpn_convs.3.conv.weight ([4, 4, 1, 3] in the file, [4, 4, 3, 3] in" in error
    assert not (tmp_path / "out").exists()

    allow = "--allow-missing=rpn_head.rpn_cls.*", "--allow-missing=neck.fpn_convs.3.*"
    assert convert(resnet, source, tmp_path / "out", *allow[:1]) == 2
    assert convert(resnet, source, tmp_path / "out", *allow) == 0
    params, _ = checkpoint.load_weights(tmp_path / "out")
    assert list(params["fpn"]["output3"]) == ["bias"]
    assert list(params["rpn"]["objectness"]) == ["kernel"]


def test_a_deeper_models_file_is_refused(resnet, tmp_path, capsys):
    state = resnet_state(resnet)
    for name in [n for n in state if n.startswith("backbone.layer3.1.")]:
        state[name.replace("layer3.1.", "layer3.2.")] = state[name]
    source = save_safetensors(tmp_path / "deeper.safetensors", state)
    assert convert(resnet, source, tmp_path / "out") == 2
    assert "10 not in model: backbone.layer3.2.conv1.weight" in capsys.readouterr().err


def test_half_precision_becomes_float32(resnet, tmp_path):
    state = resnet_state(resnet)
    halves = {
        n: a.astype(t) for (n, a), t in zip(state.items(), [np.float16, ml_dtypes.bfloat16] * 99)
    }
    source = save_safetensors(tmp_path / "half.safetensors", halves)
    assert convert(resnet, source, tmp_path / "out") == 0
    back = export_torch.state_dict(checkpoint.load_weights(tmp_path / "out")[0])
    for name, array in halves.items():
        np.testing.assert_array_equal(back[name], array.astype(np.float32), strict=True)


def test_classes_come_from_the_file_and_names_from_the_annotations(tmp_path, capsys):
    with_classes = config_file(tmp_path, RESNET + "    c.model.num_classes = 3\n")
    source = save_safetensors(tmp_path / "a.safetensors", resnet_state(with_classes))
    without = config_file(tmp_path, RESNET)
    categories = [
        {"id": i, "name": n, "supercategory": ""} for i, n in [(7, "c"), (2, "a"), (4, "b")]
    ]
    (tmp_path / "val.json").write_text(json.dumps({"categories": categories}))
    flag = f"--config.data.val.annotations={tmp_path / 'val.json'}"
    assert convert(without, source, tmp_path / "out", flag) == 0
    _, meta = checkpoint.load_weights(tmp_path / "out")
    assert meta["config"]["model"]["num_classes"] == 3
    assert [tuple(c.values()) for c in meta["categories"]] == [(2, "a"), (4, "b"), (7, "c")]
    assert meta["config"]["data"]["channels"] == "rgb"
    where = [meta["config"]["data"][split]["annotations"] for split in ("train", "val", "test")]
    assert where == ["", "", ""]  # they are the recipe's: what the weights have seen is not known
    others = [tmp_path / "b.pth"] if importlib.util.find_spec("torch") else []
    for output in (tmp_path / "a.safetensors", *others):
        code = run(export_torch, f"--checkpoint={tmp_path / 'out'}", f"--output={output}")
        assert code == (2 if output == source else 0)
    assert "exists; remove it" in capsys.readouterr().err


@pytest.mark.parametrize("length", [0, 5, 200, -4])
def test_truncated_safetensors(resnet, tmp_path, capsys, length):
    source = save_safetensors(tmp_path / "cut.safetensors", resnet_state(resnet))
    source.write_bytes(source.read_bytes()[:length])
    assert convert(resnet, source, tmp_path / "out") == 2
    assert "cut.safetensors is damaged or no safetensors file" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_truncated_torch_file(resnet, tmp_path, capsys, share):
    torch = pytest.importorskip("torch")
    torch.save(
        {n: torch.from_numpy(a) for n, a in resnet_state(resnet).items()}, tmp_path / "a.pth"
    )
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[: int(share * len(content))])
    assert convert(resnet, tmp_path / "a.pth", tmp_path / "out") == 2
    assert "a.pth is damaged or no PyTorch file" in capsys.readouterr().err


class Code:
    """Unpickles by creating a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_never_run(resnet, tmp_path, capsys, kind):
    torch = pytest.importorskip("torch")
    mark, path = tmp_path / "ran", tmp_path / "evil.pth"
    file = {"state_dict": {"backbone.conv1.weight": Code(mark)}}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(file, protocol=2))
    else:
        torch.save(file, path, _use_new_zipfile_serialization=kind == "zip")
    assert convert(resnet, path, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "refused" in error
    assert "code in checkpoints is never run" in error
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_other_bad_input_is_one_line(resnet, tmp_path, capsys, monkeypatch):
    def error(source, *arguments):
        assert convert(resnet, source, tmp_path / "out", *arguments) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    assert "cannot read" in error(tmp_path / "nothing.pth")
    source = save_safetensors(tmp_path / "a.safetensors", resnet_state(resnet))
    assert "has no teacher weights" in error(source, "--weights=teacher")
    assert "holds no tensors" in error(save_safetensors(tmp_path / "none.safetensors", {}))
    (tmp_path / "out").mkdir()
    assert "exists" in error(source)
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").touch()
    assert "needs PyTorch: pip install torch" in error(tmp_path / "a.pth")
    flags = f"--checkpoint={tmp_path / 'out'}", f"--output={tmp_path / 'b.pth'}"
    assert run(export_torch, *flags) == 2
    assert "needs PyTorch: pip install torch" in capsys.readouterr().err
