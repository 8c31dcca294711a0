"""Random damage to a data set never crashes, hangs or stops a run; an error says which file is damaged.

An hour of it: FUZZ_COUNT=40000 FUZZ_SEED=1000000 pytest -s -m slow tests/data/test_fuzz.py
"""

import os
import resource
import time
from collections import Counter
from pathlib import Path

import pytest
from fuzz import KINDS, OverTimeError, check_seed, damage, healthy_files, limits, read_everything

COUNT, FIRST = int(os.environ.get("FUZZ_COUNT", "10000")), int(os.environ.get("FUZZ_SEED", "1000"))
MEMORY = 1 << 30  # bytes that reading a damaged data set may add to this process
SECONDS = 60.0  # that a case may take; three samples may each take the loader's limit of 20


def _run(first: int, count: int, folder: Path) -> Counter[str]:
    """Outcomes of the seeds first ... first + count; AssertionError with all that went wrong."""
    outcomes, faults, slowest = Counter[str](), [], (0.0, first)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(first, first + count):
        begun = time.monotonic()
        try:
            with limits(SECONDS, MEMORY):
                outcomes[f"{damage(seed).what} {check_seed(seed, folder)}"] += 1
        except (Exception, OverTimeError) as error:
            faults.append(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}")
            print(faults[-1], flush=True)
        slowest = max(slowest, (time.monotonic() - begun, seed))
        if (seed - first) % 500 == 499:
            print(f"{seed - first + 1} cases, {dict(outcomes)}, {len(faults)} faults", flush=True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    print(f"slowest: seed {slowest[1]} with {slowest[0]:.1f} s; peak memory grew by {grown} MiB")
    assert not faults, "\n".join(faults)
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
    assert sum(count for outcome, count in outcomes.items() if outcome.endswith("read")) > 50
    assert sum(count for outcome, count in outcomes.items() if outcome.endswith("refused")) > 20


def test_a_case_that_hangs_or_takes_all_memory_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(OverTimeError), limits(0.05, MEMORY):
        time.sleep(5)
    with pytest.raises(MemoryError), limits(SECONDS, 1 << 26):
        bytes(1 << 28)
    assert len(bytes(1 << 28)) == 1 << 28, "the limit ends with the block"


@pytest.mark.slow
@pytest.mark.timeout(600 + 2 * COUNT)
def test_ten_thousand_damaged_data_sets(tmp_path: Path) -> None:
    print(_run(FIRST, COUNT, tmp_path))
