"""The files of docs/cluster: their exit codes are the program's, their flags are known."""

import re

import yaml

from mixtrain_jax import errors, train
from mixtrain_jax.config import load

FOLDER = load.ROOT / "docs" / "cluster"


def test_a_jobset_fails_where_somebody_has_to_look_and_restarts_otherwise():
    spec = yaml.safe_load((FOLDER / "jobset.yaml").read_text())["spec"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    # JobSet's webhook takes no other names.
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (fails,) = job["podFailurePolicy"]["rules"]
    codes = fails["onExitCodes"]
    assert (fails["action"], codes["operator"]) == ("FailJob", "In")
    assert set(codes["values"]) == {errors.BUG, errors.BAD_INPUT}
    assert job["backoffLimit"] == 0  # any other end fails the job, which restarts all hosts
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert codes["containerName"] == container["name"]
    assert_known(container["command"][3:])
    chips = 1
    for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(side)
    assert job["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == chips


def test_a_slurm_job_is_queued_again_after_the_same_codes():
    text = (FOLDER / "train.sbatch").read_text()
    (codes,) = re.findall(r"^  ([\d |]+)\) scontrol requeue", text, re.M)
    assert tuple(map(int, codes.split(" | "))) == errors.RESTARTABLE
    assert_known(re.findall(r"--(?:config|workdir)=\S+", text))


def assert_known(flags):
    flags = [flag for flag in flags if flag.startswith("--")]
    read = train.parse().parse_args(flags)
    assert read.workdir and load.load(str(load.ROOT / read.config))
