"""Episodes in closed loop, many at once: act, look again, plan anew. Every finished chunk is stored.

E episodes of a chunk, A numbers of an action.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.files import write_json
from launch.planning.config import PlanConfig
from launch.planning.policies import Policy
from probes.metrics import wilson

Array = npt.NDArray[Any]


@dataclass
class Outcome:
    """What happened in the episodes of one row of the table."""

    last: list[bool] = field(default_factory=list)  # success after the last action
    any: list[bool] = field(default_factory=list)  # success after any action
    violated: list[bool] = field(default_factory=list)  # entered the forbidden disc
    distance: list[float] = field(default_factory=list)  # to the goal at the end, where the environment tells
    seconds: float = 0.0  # of planning, encoding included

    def extend(self, other: "Outcome") -> None:
        """Append the episodes of another chunk."""
        self.last += other.last
        self.any += other.any
        self.violated += other.violated
        self.distance += other.distance
        self.seconds += other.seconds

    def summarise(self, steps: int) -> dict[str, Any]:
        """Shares with 95 % Wilson intervals, and the time per planned action."""
        episodes = len(self.last)
        safe = [ok and not bad for ok, bad in zip(self.last, self.violated, strict=True)] if self.violated else []
        rows = {"last": self.last, "any": self.any, "violated": self.violated, "success_and_safe": safe}
        found: dict[str, Any] = {"episodes": episodes, "ms_per_action": 1000 * self.seconds / (episodes * steps)}
        for name, values in rows.items():
            if values:
                low, high = wilson(sum(values), episodes)
                found[name] = {"share": sum(values) / episodes, "low": low, "high": high}
        if self.distance:
            found["median_distance"] = float(np.median(self.distance))
        return found


@dataclass
class Track:
    """One episode to look at: frames, positions, goal; `planned` maps a time to the positions imagined then."""

    frames: list[Array]
    goal_frame: Array
    success: bool = False
    positions: list[Array] = field(default_factory=list)
    planned: dict[int, Array] = field(default_factory=dict)


Imagined = Callable[[Policy, Array], "Array | None"]  # the positions [E, H, 2] that the present plan expects


def run_row(
    name: str, config: PlanConfig, environment: Any, make_policy: Callable[[int], Policy], fingerprint: str,
    say: Callable[[str], None], recorder: "Recorder | None" = None,
) -> Outcome:  # fmt: skip
    """All episodes of one row, in chunks; chunks stored under the same fingerprint are not run again."""
    folder, total = Path(config.output) / "episodes", Outcome()
    for first in range(0, config.episodes, config.parallel):
        count = min(config.parallel, config.episodes - first)
        path = folder / f"{name}-{first}-{count}.json"
        stored = json.loads(path.read_text()) if path.is_file() else {}
        wanted = recorder is not None and first == 0
        if stored.get("fingerprint") == fingerprint and not wanted:
            total.extend(Outcome(**stored["outcome"]))
            continue
        chunk = run_chunk(config, environment, make_policy(first), first, count, recorder if wanted else None)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"fingerprint": fingerprint, "outcome": asdict(chunk)})
        total.extend(chunk)
        say(f"{name}: {len(total.last)} episodes, success at the end {sum(total.last)}, at any time {sum(total.any)}")
    return total


def run_chunk(
    config: PlanConfig, environment: Any, policy: Policy, first: int, count: int, recorder: "Recorder | None" = None
) -> Outcome:
    """Episodes first ... first + count at once."""
    environments = [environment.make() for _ in range(count)]
    started = [one.reset(seed=config.seed * 100_003 + first + i) for i, one in enumerate(environments)]
    frames, infos = np.stack([frame for frame, _ in started]), [dict(info) for _, info in started]
    discs = _place_discs(config, environment, infos)
    outcome = Outcome(violated=[False] * count if discs else [])
    reached, ended = np.zeros(count, bool), np.zeros(count, bool)
    policy.begin(infos)
    if recorder is not None:
        recorder.begin(frames.copy(), infos)
    now = 0
    while now < config.steps:
        begun = time.perf_counter()
        actions = policy.act(frames, infos, now)
        outcome.seconds += time.perf_counter() - begun
        if recorder is not None:
            recorder.plan(policy, frames, now)
        for action in np.moveaxis(actions, 1, 0):
            for number, one in enumerate(environments):
                if not ended[number]:  # an episode that ends early stays as it ended
                    frame, _, terminated, truncated, info = one.step(action[number])
                    frames[number], infos[number] = frame, dict(info)
                    ended[number] = terminated or truncated
            now, reached = now + 1, reached | np.array([bool(info["success"]) for info in infos])
            for number, disc in enumerate(discs):
                deep = np.linalg.norm(infos[number]["position"] - disc) < config.energy.radius
                outcome.violated[number] |= bool(deep)
            if recorder is not None:
                recorder.see(frames.copy(), infos)
    outcome.last = [bool(info["success"]) for info in infos]
    outcome.any = reached.tolist()
    outcome.distance = [float(info["distance"]) for info in infos if "distance" in info]
    for one in environments:
        one.close()
    return outcome


def _place_discs(config: PlanConfig, environment: Any, infos: list[dict[str, Any]]) -> list[Array]:
    """The forbidden discs, one per episode, also added to the infos; none without energy.forbidden."""
    if not config.energy.forbidden:
        return []
    if not hasattr(environment, "place_disc"):
        raise ValueError(f"energy.forbidden needs an environment with place_disc; env={config.env} has none")
    for info in infos:
        info["disc"] = environment.place_disc(info)
    return [info["disc"] for info in infos]


class Recorder:
    """Keeps the first chunk's frames and imagined paths, for the report."""

    def __init__(self, imagined: Imagined) -> None:
        self.imagined = imagined
        self.tracks: list[Track] = []
        self.now = 0

    def begin(self, frames: Array, infos: list[dict[str, Any]]) -> None:
        """The first frames of the episodes."""
        self.tracks = [Track([frame], info["goal_frame"]) for frame, info in zip(frames, infos, strict=True)]
        for track, info in zip(self.tracks, infos, strict=True):
            track.positions += [info["position"]] if "position" in info else []

    def plan(self, policy: Policy, frames: Array, now: int) -> None:
        """The positions that a new plan expects."""
        expected = self.imagined(policy, frames)
        if expected is not None:
            for track, path in zip(self.tracks, expected, strict=True):
                track.planned[now] = path

    def see(self, frames: Array, infos: list[dict[str, Any]]) -> None:
        """The frames after an action."""
        for track, frame, info in zip(self.tracks, frames, infos, strict=True):
            track.frames.append(frame)
            track.success = bool(info["success"])
            if "position" in info:
                track.positions.append(info["position"])
