"""How many processes there are, and what each takes of a batch."""

import pytest

from launch.config import load_config
from launch.ranks import Rank, find_rank
from launch.training.config import RunConfig, TrainConfig
from launch.training.ranks import Ranks, Share, find_ranks, share_out

SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "8"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "RANK": "6"}


def test_one_finder_serves_every_command() -> None:
    assert find_rank({}) == Rank()
    assert find_rank({**SRUN, "SLURM_LOCALID": "1"}) == Rank(5, 8, 1, 2, "srun")
    assert find_rank(TORCHRUN) == Rank(6, 8, 2, 2, "torchrun")
    assert find_rank({**SRUN, **TORCHRUN, "LOCAL_RANK": "2"}) == Rank(6, 8, 2, 2, "torchrun"), "torchrun inside srun"
    by_hand = {"RANK": "1", "WORLD_SIZE": "2"}
    assert find_rank(by_hand) == Rank(1, 2, starter="environment")
    assert find_rank({**SRUN, **by_hand}).starter == "srun", "a job script that exports them as well"
    assert find_rank({"SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}) == Rank(), "in a batch script, outside srun"


@pytest.mark.parametrize("shell", [{"SLURM_JOB_NAME": "bash"}, {"SLURM_JOB_NAME": "mine", "SLURM_PTY_PORT": "4711"}])
def test_a_shell_in_a_job_is_no_rank(shell: dict[str, str]) -> None:
    step = {**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}
    assert find_rank({**step, "SLURM_JOB_NAME": "mine"}).starter == "srun"
    assert find_rank({**step, **shell}) == Rank()


def test_a_variable_that_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match="variable RANK must be a number .* got 'first'"):
        find_rank({**TORCHRUN, "RANK": "first"})


def test_who_started_the_processes_says_how_many_there_are() -> None:
    run = RunConfig(accelerator="cpu")
    assert find_ranks(run, {}) == Ranks(1, 1)
    assert find_ranks(run, SRUN) == Ranks(4, 2, 5, "srun")
    assert find_ranks(run, TORCHRUN) == Ranks(4, 2, 6, "torchrun")
    assert find_ranks(run, {**SRUN, **TORCHRUN}) == Ranks(4, 2, 6, "torchrun"), "torchrun inside srun"
    assert find_ranks(run, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) == Ranks(1, 1), "no srun"
    assert find_ranks(RunConfig(accelerator="cpu", devices=3), {"LOCAL_RANK": "2"}) == Ranks(3, 1, 2)


def test_another_number_than_was_started_is_refused() -> None:
    with pytest.raises(ValueError, match=r"run.devices=8, but torchrun started 4; leave run.devices out"):
        find_ranks(RunConfig(devices=8), TORCHRUN)
    with pytest.raises(ValueError, match="run.nodes=2: several nodes need"):
        find_ranks(RunConfig(nodes=2), {})
    with pytest.raises(ValueError, match="srun started 7 processes, not the same number on every node"):
        find_ranks(RunConfig(), {**SRUN, "SLURM_STEP_NUM_TASKS": "7"})
    with pytest.raises(ValueError, match="torchrun started 6 processes, not the same number on every node"):
        find_ranks(RunConfig(), {**TORCHRUN, "WORLD_SIZE": "6", "RANK": "1"})


def test_from_a_shell_in_a_job_a_run_is_started_by_hand() -> None:
    shell = {**SRUN, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_NAME": "bash"}
    assert find_ranks(RunConfig(accelerator="cpu", devices=4), shell) == Ranks(4, 1)


def test_gpus_that_are_not_there_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match="run.accelerator=gpu with run.devices=all, but torch sees 0 GPUs here"):
        find_ranks(RunConfig(accelerator="gpu"), {})


def test_the_batch_of_a_device_follows_or_is_set() -> None:
    assert share_out(RunConfig(batch=3072), 16) == Share(192, 1)
    assert share_out(RunConfig(batch=3072, accumulate=4), 16) == Share(48, 4)
    assert share_out(RunConfig(batch=3072, batch_per_device=24), 16) == Share(24, 8)
    with pytest.raises(ValueError, match=r"ranks x run.batch_per_device = 16 x 25, got 3072; the nearest are 2800 and"):
        share_out(RunConfig(batch=3072, batch_per_device=25), 16)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run.batch_per_device=2", "run.accumulate=2"], "run.batch_per_device=2 or run.accumulate=2, not both"),
        (["run.keep_every=1500"], "run.keep_every must be a multiple of run.checkpoint_every=1000"),
        (["run.batch_per_device=-1"], "run.batch_per_device must be at least 1, or null"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(TrainConfig, None, words)
