"""The map over processes keeps the order whatever happens to single items."""

import os
import time

import pytest

from data.parallel import map_in_order


def _square(item: int) -> int:
    time.sleep(0.02 * (item % 3))
    return item * item


def _misbehave(item: int) -> int:
    if item == 2:
        os._exit(3)
    if item == 5:
        time.sleep(1000)
    return item


def _refuse(item: int) -> int:
    raise ValueError(f"no {item}")


def _mark(item: int, reason: str) -> object:
    return item, reason


@pytest.mark.parametrize("jobs", [0, 2])
def test_results_come_in_order(jobs: int) -> None:
    assert list(map_in_order(_square, range(20), jobs, 60, _mark)) == [n * n for n in range(20)]


def test_a_crash_and_a_hang_cost_one_item_each() -> None:
    results = list(map_in_order(_misbehave, range(8), 2, 1.5, _mark))
    assert [r for r in results if isinstance(r, int)] == [0, 1, 3, 4, 6, 7]
    assert results[2] == (2, "the decoder crashed (exit code 3)")
    assert results[5] == (5, "timeout: took longer than 1.5 s")


def test_errors_of_ours_are_raised() -> None:
    with pytest.raises(ValueError, match="no 0"):
        list(map_in_order(_refuse, range(3), 1, 60, _mark))
