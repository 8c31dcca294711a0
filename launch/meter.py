"""Measurement tools: a clock for the parts of a step, peak memory, and the peak matmul rate."""

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

OPAQUE_PART = "teacher_forward"  # everything that runs inside this part counts towards it
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

Border = tuple[Any, str, str]  # an object, the name of its method, the part that its calls count towards
Now = Callable[[], float]


class PartClock:
    """Seconds of each part, excluding nested parts; synchronises with the device at every part boundary.

    A clock that is off does nothing, so the same step code serves for timing with and without parts.
    """

    def __init__(self, device: torch.device, on: bool = True, now: Now = time.perf_counter) -> None:
        self.device, self.on, self.now = device, on, now
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens inside as `name`."""
        if not self.on or OPAQUE_PART in self._open:
            yield
            return
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    @contextmanager
    def watch(self, borders: Sequence[Border]) -> Iterator[None]:
        """Time every call of these methods as its own part."""
        for owner, method, name in borders:
            setattr(owner, method, self._timed(getattr(owner, method), name))
        try:
            yield
        finally:
            for owner, method, _ in borders:
                delattr(owner, method)  # uncovers the method of the class

    def _timed(self, work: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return work(*arguments, **options)

        return timed

    def _switch(self) -> None:
        """Credit the time since the last boundary to the innermost open part."""
        wait_for(self.device)
        now = self.now()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def time_in_turn(
    works: Sequence[Callable[[], object]], repeats: int, warm_up: int, device: torch.device
) -> list[float]:
    """Median seconds of each function in `works`; they alternate, so that drifts in machine speed affect all alike."""
    times: list[list[float]] = [[] for _ in works]
    for number in range(warm_up + repeats):
        for work, found in zip(works, times, strict=True):
            wait_for(device)
            begun = time.perf_counter()
            work()
            wait_for(device)
            if number >= warm_up:
                found.append(time.perf_counter() - begun)
    return [statistics.median(found) for found in times]


def peak_gib(work: Callable[[], object], device: torch.device) -> float | None:
    """Peak memory of `work` in GiB: allocated on a GPU, resident on a CPU under Linux, else None.

    `work` runs twice: libraries and compiled code that the first run loads are not counted.
    """
    on_gpu = device.type == "cuda"
    if not on_gpu and not STATUS.is_file():
        return None
    work()
    release()
    before = torch.cuda.memory_allocated() if on_gpu else _read_kib(STATUS, "VmRSS") * 1024
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        try:
            CLEAR.write_text("5")  # resets the peak
        except OSError:  # not allowed in some containers
            return None
    work()
    peak = torch.cuda.max_memory_allocated() if on_gpu else _read_kib(STATUS, "VmHWM") * 1024
    return (peak - before) / 2**30


def release() -> None:
    """Free unused memory: Python's reference cycles and the allocators' caches."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif STATUS.is_file():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only in the GNU C library
        if trim is not None:
            trim(0)


def available_gib() -> float | None:
    """Available memory in GiB under Linux, respecting the limits of containers and jobs; None elsewhere."""
    table = Path("/proc/meminfo")
    if not table.is_file():
        return None
    free = _read_kib(table, "MemAvailable") / 2**20
    for limit, used in _read_limits():
        free = min(free, (limit - used) / 2**30)
    return free


def _read_limits(root: Path = GROUPS, own: Path = OWN_GROUPS) -> Iterator[tuple[int, int]]:
    """Limit and usage in bytes of each control group of this process, cgroup versions 2 and 1."""
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, kinds, name = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        base = root / "memory" if kinds else root
        limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        group = base / name.lstrip("/")
        for folder in (group, *group.parents):
            most = (folder / limit).read_text().strip() if (folder / limit).is_file() else ""
            if most.isdigit():  # "max" is no limit
                yield int(most), int((folder / used).read_text())
            if folder == base:
                break


def _read_kib(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB", path.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{path} has no line {name}, which Linux normally writes; memory cannot be measured without it")
    return int(found[1])


def matrix_rate(dtype: torch.dtype, device: torch.device, repeats: int = 10) -> float:
    """FLOP/s of a large matrix product on this device, measured now.

    Leaves the global random state untouched.
    """
    product, operations = matrix_product(dtype, device)
    return operations / time_in_turn([product], repeats, 3, device)[0]


def matrix_product(dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], object], int]:
    """A repeatable large matrix product, and its FLOPs."""
    side = 8192 if device.type == "cuda" else 2048
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    return lambda: torch.mm(left, right), 2 * side**3
