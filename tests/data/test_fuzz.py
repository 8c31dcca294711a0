"""Random damage to a data set never crashes, hangs or stops a run; an error says which file is damaged.

An hour of it: FUZZ_COUNT=40000 FUZZ_SEED=1000000 pytest -m slow tests/data/test_fuzz.py
"""

import os
import resource
from collections import Counter
from pathlib import Path

import pytest
from fuzz import KINDS, check_seed, damage, healthy_files, read_everything

COUNT, FIRST = int(os.environ.get("FUZZ_COUNT", "10000")), int(os.environ.get("FUZZ_SEED", "1000"))
MEMORY = 1 << 30  # bytes that reading damaged data sets may add to this process


def _run(first: int, count: int, folder: Path) -> Counter[str]:
    """Outcomes of the seeds first ... first + count."""
    before, outcomes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, Counter[str]()
    for seed in range(first, first + count):
        print(f"seed {seed}")  # shown if a case fails or hangs
        outcomes[check_seed(seed, folder)] += 1
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < MEMORY, f"seed {seed} took {grown >> 20} MiB"
    return outcomes


def test_the_undamaged_set_is_read_without_a_skip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, content in healthy_files().items():
        (tmp_path / name).write_bytes(content)
    read_everything(tmp_path)
    assert "skipped" not in caplog.text


def test_a_seed_is_a_case() -> None:
    assert damage(5) == damage(5)
    assert {damage(seed).what for seed in range(100)} == set(KINDS)
    assert all(damage(seed).files != healthy_files() for seed in range(20))


def test_two_hundred_damaged_data_sets(tmp_path: Path) -> None:
    outcomes = _run(0, 200, tmp_path)
    assert outcomes["read"] > 50
    assert outcomes["refused"] > 20


@pytest.mark.slow
@pytest.mark.timeout(600 + 2 * COUNT)
def test_ten_thousand_damaged_data_sets(tmp_path: Path) -> None:
    print(_run(FIRST, COUNT, tmp_path))
