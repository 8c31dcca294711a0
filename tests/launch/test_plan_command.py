"""Planning in closed loop: the command runs and resumes, and says what an environment lacks."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.generated.kinds import find_kind
from data.generated.rooms import RoomsConfig
from data.generated.rooms_env import TwoRooms
from data.generated.videos import write_set
from launch.__main__ import main
from launch.planning.config import EnergyConfig, PlanConfig
from launch.planning.environments import Rooms, check_environment, open_environment
from launch.planning.episodes import run_chunk
from launch.planning.gauges import fit_measure, score_rollouts
from launch.planning.plan import run_plan
from launch.planning.policies import Measure, SimulatorPolicy, StraightPolicy
from vjepa.encoder import EncoderConfig, build_encoder
from vjepa.planning import PlannerConfig
from vjepa.world.model import Transition, WorldModel, WorldOptions

QUICK = PlannerConfig(samples=6, elites=2, iterations=2, knots=(4, 4))
ENCODER = EncoderConfig(
    kind="conv", size="custom", width=8, depth=3, heads=1, patch=64, tubelet=1, frames=3, crop=64
)  # fmt: skip


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six walks of 69 frames."""
    folder = tmp_path_factory.mktemp("walks")
    write_set(find_kind("rooms"), RoomsConfig(frames=69, layouts="fixed"), folder, 6, 0)
    return folder / "shards"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    options = WorldOptions(width=16, surprise=True)
    return WorldModel(build_encoder(ENCODER), Transition(options, ENCODER)).save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def config(walks: Path, model: Path, tmp_path: Path) -> PlanConfig:
    return PlanConfig(
        model=str(model), data=str(walks), test=str(walks), output=str(tmp_path / "plan"), episodes=3, parallel=2,
        steps=8, planner=QUICK, pictures=1, clips=6, compare=("random", "straight", "untrained", "simulator"),
    )  # fmt: skip


def silent(text: str) -> None:
    pass


def test_every_row_is_played_and_written(config: PlanConfig) -> None:
    found = run_plan(replace(config, energy=EnergyConfig(forbidden=1.0, surprise=0.1, action=0.1)), silent)
    assert list(found["rows"]) == ["model", *config.compare]
    for row in found["rows"].values():
        assert row["episodes"] == 3
        assert row["last"]["low"] - 1e-9 <= row["last"]["share"] <= row["any"]["share"] <= 1
        assert "success_and_safe" in row
    assert set(found["gauges"]["rollout"]) == {"1", "4", "8", "16"}
    assert set(found["gauges"]["through_walls"]) == {"1", "2", "4"}
    folder = Path(config.output)
    assert json.loads((folder / "results.json").read_text())["rows"] == found["rows"]
    assert "data:image/gif" in (folder / "report.html").read_text()
    assert list(folder.glob("*.gif"))


def test_stored_episodes_are_not_played_again_and_a_resumed_run_ends_the_same(
    config: PlanConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, compare=("random",), test="")
    whole = run_plan(replace(config, output=config.output + "-whole"), silent)
    run_plan(replace(config, episodes=2), silent)  # as if it had been interrupted after the first chunk
    played: list[int | None] = []
    reset = TwoRooms.reset

    def count(self: TwoRooms, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> Any:
        played.append(seed)
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(TwoRooms, "reset", count)
    resumed = run_plan(config, silent)
    assert sorted(seed for seed in played if seed) == [2, 2]  # the third episode, once in each row
    for name, row in whole["rows"].items():
        assert {**row, "ms_per_action": 0} == {**resumed["rows"][name], "ms_per_action": 0}


def test_the_planner_on_the_simulator_reaches_what_the_straight_line_does_not(config: PlanConfig) -> None:
    """The same energy and the same episodes; the straight line ends at the wall."""
    strong = replace(config, steps=48, planner=PlannerConfig(samples=100))
    rooms, truth = Rooms({}), Measure(None, 1.0, position_unit=3.0, surprise=0.0)
    planned = run_chunk(strong, rooms, SimulatorPolicy(strong, rooms, 2, 4, truth), 0, 5)
    straight = run_chunk(strong, rooms, StraightPolicy(strong, rooms), 0, 5)
    assert sum(planned.last) >= 3
    assert sum(straight.last) < sum(planned.last)


def test_standing_still_is_what_rollouts_are_measured_against(walks: Path, model: Path) -> None:
    """The untrained predictor moves nothing, so its error is exactly that of standing still."""
    world = WorldModel.load(model)
    torch.manual_seed(0)
    video = torch.randint(0, 256, (4, 5, 64, 64, 3), dtype=torch.uint8)
    actions, states = torch.rand(4, 4, 8), torch.rand(4, 5, 2)
    measure = fit_measure(world, video, actions, states, stride=4)
    found = score_rollouts(world, measure, video, actions, states)
    assert [row["relative"] for row in found["rollout"].values()] == pytest.approx([1, 1], abs=1e-4)


def test_walls_are_pushed_at_from_outside_and_away_from_the_door() -> None:
    frames, actions, walls, sides = Rooms({}).push_at_walls(20, 0)
    assert frames.shape == (20, 64, 64, 3)
    assert (actions[:, 0] == -sides).all()
    assert (walls == 32).all()


class Odd(TwoRooms):
    """Two Rooms with something missing; `fault` says what."""

    fault = ""

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> Any:
        frame, info = super().reset(seed=None if self.fault == "seed" else seed, options=options)
        if self.fault == "goal":
            del info["goal_frame"]
        return frame.astype(np.float32) if self.fault == "frame" else frame, info

    def step(self, action: Any) -> Any:
        found = super().step(action)
        return found[:4] if self.fault == "step" else found


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("frame", r"must be frames uint8 \[H, W, 3\], got float32"),
        ("goal", "info of reset must have goal_frame"),
        ("seed", "same seed must show the same frame"),
        ("step", "step must return frame, reward, terminated, truncated, info; got 4"),
    ],
)
def test_what_an_environment_lacks_is_said(fault: str, message: str) -> None:
    class Faulty:
        def make(self) -> TwoRooms:
            found = Odd()
            found.fault = fault
            return found

    with pytest.raises(ValueError, match=f"env=odd: .*{message}"):
        check_environment(Faulty(), "odd")


def test_settings_of_environments_are_checked() -> None:
    with pytest.raises(ValueError, match="layouts: fixed or random"):
        open_environment("two_rooms", {"layouts": "round"})
    with pytest.raises(ValueError, match=r"needs settings\.id"):
        open_environment("gymnasium", {})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("planner.knots=[3]", "must sum to a multiple of 4"),
        ("env=three_rooms", "env=three_rooms does not exist"),
        ("executed=5", "steps must be a multiple of executed=5"),
        ("compare=[luck]", "got luck"),
    ],
)
def test_wrong_settings_end_with_one_clear_line(
    config: PlanConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(f"model: {config.model}\ndata: {config.data}\noutput: {config.output}\nclips: 6\nexecuted: 1\n")
    assert main(["plan", str(file), override]) == 2
    assert message in capsys.readouterr().err


def test_a_run_is_trained_exported_and_planned_with(
    walks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, exported = tmp_path / "run", tmp_path / "world"
    words = [
        f"data.path={walks}", f"run.output={run}", "run.steps=2", "run.batch=8", "data.workers=0", "data.frames=3",
        "run.precision=fp32", "run.progress=false", "health.matrix_tflops=1", "rollout.width=16",
    ]  # fmt: skip
    assert main(["train", "configs/world/two_rooms.yaml", *words]) == 0, capsys.readouterr().err
    assert main(["export", str(run), str(exported), "--format", "world"]) == 0
    assert "largest difference imagined is 0.0e+00" in capsys.readouterr().out
    assert main(["export", str(exported), str(tmp_path / "again"), "--format", "world"]) == 0
    plan = [
        "plan",
        "configs/plan/plan_two_rooms.yaml",
        f"data={walks}",
        "test=''",
        f"output={tmp_path / 'plan'}",
        "clips=4",
    ]
    plan += [
        "clips=4",
        "episodes=1",
        "steps=4",
        "planner.samples=4",
        "planner.elites=2",
        "planner.iterations=1",
        "compare=[]",
    ]
    assert main([*plan, f"model={run}"]) == 0, capsys.readouterr().err
    assert "planner on the world model" in capsys.readouterr().out
    broken = [*words, "data.flip=0.5", f"run.output={tmp_path / 'other'}"]
    assert main(["train", "configs/world/two_rooms.yaml", *broken]) == 2
    assert "mirrors the frames but not the actions" in capsys.readouterr().err
