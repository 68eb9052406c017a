"""The wheel, installed outside the checkout: recipes by name, and training there."""

import os
import pathlib
import shutil
import site
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from mixtrain_jax.config import load

# A checkout on PYTHONPATH would be taken for the installed package.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel built from a copy of the checkout, where nothing of an earlier build lies."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("mixtrain_jax", "configs"):
        shutil.copytree(load.ROOT / name, folder / "source" / name)
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(load.ROOT / name, folder / "source")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder]
    subprocess.run([*build, folder / "source"], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """An environment with the wheel, and all else from the one that runs the tests.

    Its packages stand last on the path and the checkout is not among them, so mixtrain_jax can only
    come from the wheel.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    found = folder / "bin" / "python"
    install = [found, "-m", "pip", "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True, env=ENVIRONMENT)
    packages = pathlib.Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return found


def run(python, folder, *arguments):
    return subprocess.run(
        [python, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True
    )


def test_the_package_and_its_recipes_are_in_the_wheel(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    package = load.ROOT / "mixtrain_jax"
    files = {p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {str(p.relative_to(load.ROOT)) for p in files} <= set(names)
    recipes = {path.name for path in (load.ROOT / "configs").glob("*.py")}
    assert {pathlib.Path(n).name for n in names if n.startswith("mixtrain_jax/configs/")} == recipes
    assert not [name for name in names if name.startswith(("tests/", "tools/", "configs/"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_quickstart_trains_from_the_wheel_elsewhere(python, shapes, tmp_path):
    where = run(python, tmp_path, "-c", "import mixtrain_jax; print(mixtrain_jax.__file__)")
    assert str(load.ROOT) not in where.stdout, where.stdout
    data = [
        f"--config.data.{split}.{field}={shapes / name}"
        for split in ("train", "val")
        for field, name in (("annotations", f"annotations/{split}.json"), ("images", split))
    ]
    small = ("model.backbone.base_channels=8", "model.fpn.channels=8", "model.rpn.channels=8",
             "model.roi_head.fc_channels=16", "data.train.scale=64,48,64", "batch_size=4",
             "data.train.buckets=((64,64),)", "data.val.buckets=((64,64),)", "data.val.scale=64,64",
             "mixtraining.start_step=1000", "eval.batch_size=4")  # fmt: skip
    done = run(
        python,
        tmp_path,
        *("-m", "mixtrain_jax.train", "--config=quickstart:steps=20", "--workdir=run"),
        *(*data, *(f"--config.{change}" for change in small)),
    )
    assert done.returncode == 0, done.stderr
    assert "step 20/20" in done.stdout
    assert (tmp_path / "run" / "checkpoints" / "20").is_dir()
    again = run(python, tmp_path, "-m", "mixtrain_jax.evaluate", "--workdir=run")
    assert again.returncode == 0 and "AP50" in again.stdout, again.stderr
