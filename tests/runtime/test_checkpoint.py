import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import checkpoint, hosts, orbax_files, storage
from mixtrain_jax.types import TrainState

# Of other threads of orbax when one of them fails; commands do not print it (`quiet_orbax`).
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
META = {"categories": [{"id": 3, "name": "cat"}], "model": {"num_classes": 1, "depths": (2, 2)}}


@pytest.fixture(autouse=True, scope="module")
def orbax_is_quiet():
    """As in commands. It stays so: orbax's threads may speak of an error after the test's end."""
    orbax_files.quiet_orbax()


def make_state(step=0, classes=3):
    key = jax.random.fold_in(jax.random.key(0), step)
    student = {
        "backbone": {"kernel": jax.random.normal(key, (16, 40)), "bias": jnp.zeros(40)},
        "head": {"kernel": jax.random.normal(key, (40, classes))},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(student)
    optimizer = jax.tree.map(
        lambda x: x + (9 * jax.random.normal(key, x.shape)).astype(x.dtype), optimizer
    )
    teacher = jax.tree.map(lambda x: x + 1, student)
    return TrainState(jnp.int32(step), student, teacher, optimizer)


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def save_steps(workdir, *steps, keep=3):
    checkpoints = checkpoint.Checkpoints(workdir, keep=keep)
    for step in steps:
        checkpoints.save(step, make_state(step), META)
    checkpoints.close()


def restore(workdir, meta=META, classes=3):
    checkpoints = checkpoint.Checkpoints(workdir)
    try:
        return checkpoints.restore_latest(jax.eval_shape(lambda: make_state(classes=classes)), meta)
    finally:
        checkpoints.close()


def steps_on_disk(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())


def test_restores_what_was_saved_as_numpy(tmp_path):
    assert restore(tmp_path) is None
    save_steps(tmp_path, 5, 10)
    state = restore(tmp_path)
    assert state.step == 10
    _, meta = checkpoint.load_weights(tmp_path)
    assert meta["step"] == 10 and meta.items() >= json.loads(json.dumps(META)).items()
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state))
    assert_same(state, make_state(10))


def test_saves_the_values_of_the_call_though_the_arrays_are_donated_after(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    state = make_state(1)
    expected = jax.tree.map(lambda x: np.array(x), state)
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 7, tree), donate_argnums=0)
    checkpoints.save(1, state, META)
    jax.block_until_ready(update(state))
    checkpoints.close()
    assert_same(restore(tmp_path), expected)


def test_keeps_the_newest_and_the_best(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    for step, ap in [(1, 0.1), (2, 0.5), (3, None), (4, 0.3), (5, float("nan")), (6, None)]:
        checkpoints.proven = step
        checkpoints.save(step, make_state(step), META)
        if ap is not None:
            checkpoints.record(step, {"AP": ap})
    checkpoints.close()
    # The last is not proven yet, so two good ones are kept beside it.
    assert steps_on_disk(tmp_path) == [2, 4, 5, 6]
    assert_same(checkpoint.load_weights(tmp_path, step="best")[0], make_state(2).student)
    again = checkpoint.Checkpoints(tmp_path, keep=2)  # a resumed run still knows the best
    again.save(7, make_state(7), META)
    again.record(7, {"AP": 0.9})
    again.proven = 8
    again.save(8, make_state(8), META)
    again.close()
    assert steps_on_disk(tmp_path) == [6, 7, 8]


@pytest.mark.parametrize("kept", [(1,), ()])
def test_a_run_that_goes_back_forgets_what_it_knew_of_later_steps(tmp_path, kept):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=4)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step), META)
        checkpoints.record(step, {"AP": step / 10})
    checkpoints.note_all_proven(3)
    checkpoints.close()
    for step in {1, 2, 3} - {*kept}:
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    with checkpoint.Checkpoints(tmp_path, keep=4) as again:
        assert again.all_proven(3)
        found = again.restore_latest(make_state(), META)
        assert (found and found.step) == (kept[0] if kept else None)
        assert again.scores() == {step: step / 10 for step in kept}
        assert not again.all_proven(3)
    assert checkpoint.Checkpoints(tmp_path).scores() == {step: step / 10 for step in kept}


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), META)
    checkpoints.save(1, make_state(2), META)
    checkpoints.close()
    assert_same(restore(tmp_path), make_state(1))


def part_files(path):
    """The files without which a checkpoint's arrays or meta are not whole."""
    files = [path / "meta" / "metadata"]
    for part in checkpoint.PARTS:
        files += [path / part / "_METADATA", path / part / "manifest.ocdbt"]
        files += (path / part / "d").iterdir()
        files.append(max((path / part).glob("ocdbt.process_0/d/*"), key=lambda f: f.stat().st_size))
    return files


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_every_damaged_file_falls_back_to_the_checkpoint_before(tmp_path, damage, caplog):
    whole = tmp_path / "whole"
    save_steps(whole, 1, 2)
    for file in part_files(whole / "checkpoints" / "2"):
        workdir = tmp_path / "damaged"
        shutil.copytree(whole, workdir)
        victim = workdir / file.relative_to(whole)
        content = victim.read_bytes()
        victim.unlink()
        if damage != "missing":
            victim.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
        caplog.clear()
        state = restore(workdir)
        assert state.step == 1, file
        assert_same(state, make_state(1))
        assert "checkpoints/2 cannot be read" in caplog.text
        assert (workdir / "checkpoints" / "damaged-2").is_dir()
        shutil.rmtree(workdir)


def test_any_damaged_file_gives_the_right_values_or_the_checkpoint_before(tmp_path):
    whole = tmp_path / "whole"
    save_steps(whole, 1, 2)
    files = [f for f in (whole / "checkpoints" / "2").rglob("*") if f.is_file()]
    assert len(files) > 15
    for file in files:
        workdir = tmp_path / "damaged"
        shutil.copytree(whole, workdir)
        (workdir / file.relative_to(whole)).write_bytes(b"")
        state = restore(workdir)
        assert_same(state, make_state(int(state.step)))
        shutil.rmtree(workdir)


def test_a_missing_part_is_damage(tmp_path):
    save_steps(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "teacher")
    assert restore(tmp_path).step == 1


def test_training_goes_on_over_a_damaged_step(tmp_path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "checkpoints" / "2" / "meta" / "metadata").write_bytes(b"")
    checkpoints = checkpoint.Checkpoints(tmp_path)
    assert checkpoints.restore_latest(make_state(), META).step == 1
    checkpoints.save(2, make_state(2), META)
    checkpoints.close()
    assert restore(tmp_path).step == 2


def test_never_starts_anew_when_no_checkpoint_can_be_read(tmp_path):
    save_steps(tmp_path, 1, 2)
    for step in "12":
        (tmp_path / "checkpoints" / step / "student" / "manifest.ocdbt").unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(tried 2, 1\)"):
        restore(tmp_path)
    assert steps_on_disk(tmp_path) == [1, 2]


@pytest.mark.parametrize(
    ("meta", "classes", "message"),
    [
        ({"model": {"num_classes": 2}}, 3, "model.num_classes = 1, and this run has .* = 2"),
        ({"model": {"depths": (2, 6)}}, 3, r"model.depths = \[2, 2\]"),
        ({"categories": [{"id": 4, "name": "cat"}]}, 3, "categories = "),
        (None, 4, r"student/head/kernel is float32\[40, 3\] there and float32\[40, 4\] here"),
    ],
)
def test_refuses_another_model_and_names_what_differs(tmp_path, meta, classes, message):
    save_steps(tmp_path, 1)
    with pytest.raises(UserError, match=message):
        restore(tmp_path, meta, classes)
    assert steps_on_disk(tmp_path) == [1]


def test_refuses_parameters_that_are_missing_or_too_many(tmp_path):
    save_steps(tmp_path, 1)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    state = make_state()
    more = {**state.student, "mask_head": {"kernel": jnp.ones(2)}}
    with pytest.raises(
        UserError, match=r"student/mask_head/kernel is missing there and float32\[2"
    ):
        checkpoints.restore_latest(state.replace(student=more), META)
    fewer = {"backbone": state.student["backbone"]}
    with pytest.raises(
        UserError, match=r"student/head/kernel is float32\[40, 3\] there and missing"
    ):
        checkpoints.restore_latest(state.replace(student=fewer), META)
    checkpoints.close()


KILLED = """
    import os, sys
    from tests.runtime import test_checkpoint as t
    checkpoints = t.checkpoint.Checkpoints(sys.argv[1], keep=2)
    print("ready", flush=True)
    for step in range(2, 10_000):
        checkpoints.save(step, t.make_state(step), t.META)
        print(step, flush=True)
"""


def kill_while_saving(workdir, saves):
    """Kills a process that saves without pause after it has begun some saves; returns the last."""
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(workdir)]
    process = subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "ready\n"
    for _ in range(saves):
        begun = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return begun


@pytest.mark.parametrize("saves", [1, 4])
def test_a_killed_save_loses_no_finished_checkpoint(tmp_path, saves):
    save_steps(tmp_path, 1)
    begun = kill_while_saving(tmp_path, saves)
    state = restore(tmp_path)
    assert state.step >= begun - 1
    assert_same(state, make_state(int(state.step)))
    save_steps(tmp_path, 20_000)
    assert restore(tmp_path).step == 20_000
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if "tmp" in p.name]


def test_leftovers_of_killed_saves_are_cleared_and_never_read(tmp_path):
    save_steps(tmp_path, 1, 2)
    directory = tmp_path / "checkpoints"
    (directory / "2").rename(directory / "2.orbax-checkpoint-tmp")
    assert checkpoint.load_weights(tmp_path)[1]["step"] == 1
    save_steps(tmp_path, 2)
    assert restore(tmp_path).step == 2
    assert [name for name in os.listdir(directory) if "tmp" in name] == []


@pytest.mark.parametrize(
    "lost",
    [
        "UNKNOWN: Gloo AllGather failed: Read error [127.0.0.1]:2735: Connection reset by peer",
        "DEADLINE_EXCEEDED: Barrier timed out",
        "UNAVAILABLE: the coordination service does not answer",
    ],
)
def test_a_lost_process_is_not_taken_for_a_storage_that_fails(monkeypatch, lost):
    """The arrays of a step that failed raise when they are saved; a loop restarts such a run."""
    monkeypatch.setattr(hosts, "count", lambda: 2)
    with pytest.raises(ValueError, match=lost[:10]), orbax_files.explained(epath.Path("run")):
        raise ValueError(lost)
    monkeypatch.setattr(hosts, "count", lambda: 1)
    with pytest.raises(storage.StorageError, match="cannot write run: ValueError"):
        with orbax_files.explained(epath.Path("run")):
            raise ValueError(lost)


def test_weights_alone(tmp_path):
    state = make_state(4)
    checkpoint.save_weights(tmp_path / "weights", state.student, state.teacher, META)
    student, meta = checkpoint.load_weights(tmp_path / "weights")
    assert_same(student, state.student)
    assert meta["categories"] == META["categories"]
    assert_same(checkpoint.load_weights(tmp_path / "weights", "teacher")[0], state.teacher)
    with pytest.raises(UserError, match="weights exists"):
        checkpoint.save_weights(tmp_path / "weights", state.student)
    checkpoint.save_weights(tmp_path / "student", state.student)
    with pytest.raises(UserError, match="has no teacher weights"):
        checkpoint.load_weights(tmp_path / "student", "teacher")


def test_weights_of_a_run(tmp_path):
    save_steps(tmp_path, 1, 2)
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "2"):
        assert_same(checkpoint.load_weights(path)[0], make_state(2).student)
    assert_same(checkpoint.load_weights(tmp_path, "teacher", step=1)[0], make_state(1).teacher)
    with pytest.raises(UserError, match=r"holds no step 3; there are \[1, 2\]"):
        checkpoint.load_weights(tmp_path, step=3)
    with pytest.raises(UserError, match="no evaluated checkpoint"):
        checkpoint.load_weights(tmp_path, step="best")
    (tmp_path / "checkpoints" / "2" / "student" / "manifest.ocdbt").unlink()
    assert_same(checkpoint.load_weights(tmp_path)[0], make_state(1).student)
    with pytest.raises(UserError, match="checkpoints/2 is no checkpoint, or is damaged"):
        checkpoint.load_weights(tmp_path / "checkpoints" / "2")


def test_weights_of_what_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load_weights(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is no checkpoint"):
        checkpoint.load_weights(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.load_weights(tmp_path)


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/checkpoints: Not a directory"):
        checkpoint.Checkpoints(tmp_path / "file")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("RESOURCE_EXHAUSTED: x: No space left on device"), "No space left on device"),
    ],
)
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, error, message):
    save_steps(tmp_path, 1)
    checkpoints = checkpoint.Checkpoints(tmp_path)

    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(UserError, match=f"cannot write .*checkpoints: {message}"):
        checkpoints.save(2, make_state(2), META)
    checkpoints.close()
    assert restore(tmp_path).step == 1


def test_damaged_scores_are_only_a_warning(tmp_path, caplog):
    save_steps(tmp_path, 1)
    (tmp_path / "checkpoints" / "scores.json").write_text('{"1": 0.')
    assert restore(tmp_path).step == 1
    assert "the best checkpoint is unknown" in caplog.text
