"""The estimate of memory: exact where it counts, shown where asked for; the ready-made configs fit 80 GB."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from launch.__main__ import main
from launch.bench import sweep as sweeping
from launch.bench.sweep import Point, grow
from launch.config import load_config
from launch.memory import CARDS, check_card, count_parameters, estimate
from launch.training.config import TrainConfig
from launch.training.ranks import share_out
from vjepa.jepa import JEPA

CONFIGS = Path(__file__).parents[2] / "configs"
CONFIG = CONFIGS / "pretrain" / "tiny_cpu.yaml"
TINY = [
    "encoder.size=custom", "encoder.width=48", "encoder.depth=3", "encoder.heads=2", "encoder.patch=8",
    "predictor.width=24", "predictor.depth=2", "predictor.heads=2", "data.frames=4", "data.crop=32",
    "run.precision=fp32", "run.batch=4",
]  # fmt: skip


class Living(TorchDispatchMode):
    """Notes the memory of every result, and how much of it is still in use."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Sequence[Any] = (), options: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*arguments, **(options or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self.found[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def bytes(self) -> int:
        return sum(size for reference, size in self.found.values() if not reference.expired())


def step(config: TrainConfig) -> tuple[int, int]:
    """Bytes that a forward pass saves for the backward pass, and bytes in use after it."""
    model = JEPA(config.jepa)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    clips = torch.randint(0, 256, (4, 4, 32, 32, 3), dtype=torch.uint8)
    model.training_step(clips, 0)  # fills the caches
    with Living() as living, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.training_step(clips, 0)
        used = living.bytes()
    del loss
    return sum(saved.values()), used


@pytest.mark.parametrize(
    "words",
    [
        ["encoder.positions=sincos"],
        ["encoder.positions=rotary"],
        ["encoder.positions=rotary", "predictor.heads=1"],
        ["masks.only.kind=random", "masks.only.keep=0.3", "masks.only.predict=0.5"],
        ["encoder.positions=sincos", "encoder.checkpoint_activations=true"],
        ["objective=dense", "dense.levels=2"],
    ],
)
def test_what_a_step_saves_is_counted_to_the_byte(words: list[str]) -> None:
    config = load_config(TrainConfig, CONFIG, [*TINY, *words])
    counted = config.jepa.activations(4, 4)
    saved, _ = step(config)
    if config.objective == "dense":  # the distances of visible tokens to the mask are not counted
        assert counted.saved == pytest.approx(saved, rel=0.05)
    else:
        assert counted.saved == saved


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_what_recomputation_keeps_is_counted_to_the_byte(positions: str) -> None:
    """Kept products are not among the tensors saved for the backward pass, so what is in use is compared."""
    used, counted = {}, {}
    for keeps in ("nothing", "products"):
        words = [
            f"encoder.positions={positions}",
            "encoder.checkpoint_activations=true",
            f"encoder.checkpoint_keeps={keeps}",
        ]
        config = load_config(TrainConfig, CONFIG, [*TINY, *words])
        used[keeps], counted[keeps] = step(config)[1], config.jepa.activations(4, 4).saved
    assert used["products"] - used["nothing"] == counted["products"] - counted["nothing"]


@pytest.mark.parametrize("words", [[], ["objective=dense", "dense.levels=2"], ["objective=views"]])
def test_parameters_are_counted_without_making_them(words: list[str]) -> None:
    config = load_config(TrainConfig, CONFIG, [*TINY, *words]).jepa
    model = JEPA(config)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert count_parameters(config) == (sum(one.numel() for one in model.parameters()), trained)


def test_more_clips_need_more_and_recomputation_less() -> None:
    def total(clips: int, *words: str) -> float:
        found = estimate(load_config(TrainConfig, "vjepa2_vitl", list(words)), clips)
        assert found is not None
        return found.total

    plain, products = "encoder.checkpoint_activations=false", "encoder.checkpoint_keeps=products"
    assert total(24) < total(24, products) < total(24, plain) < total(48, plain)


FILES = sorted((CONFIGS / "pretrain").glob("*.yaml"))


def devices_of(path: Path) -> int:
    """How many GPUs the command in the header of a file asks for; 1 without a `submit`."""
    found = re.search(r"--nodes (\d+) --gpus-per-node (\d+)", path.read_text())
    return int(found[1]) * int(found[2]) if found else 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_ready_made_config_fits_80_gb_on_the_devices_that_its_command_asks_for(path: Path) -> None:
    config = load_config(TrainConfig, path, [])
    if config.data.images is None and "vjepa21" in path.stem:
        pytest.fail("these recipes have images")
    ranks = devices_of(path)
    share = share_out(config.run, ranks)
    found = estimate(config, share.clips, ranks)
    assert found is not None
    print(found.describe())
    assert found.total < CARDS["h100"], found.describe()


def test_show_tells_the_memory_and_is_still_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(CONFIG), "--show", "run.batch_per_device=4"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"# memory per device, estimated: \d+\.\d GiB for 4 clips on each of 1 devices \(weights", shown)
    (tmp_path / "shown.yaml").write_text(shown)
    assert load_config(TrainConfig, tmp_path / "shown.yaml", []).run.batch_per_device == 4


def test_a_card_that_is_too_small_or_unknown_is_refused() -> None:
    found = estimate(load_config(TrainConfig, "vjepa1_vitl16", []), 96)
    assert found is not None
    with pytest.raises(ValueError, match=r"for 96 clips .* but a card h100 has 79.1 GiB; set encoder.checkpoint_activ"):
        check_card(found, "h100")
    check_card(found, "h200")
    with pytest.raises(ValueError, match="--card must be one of l40s, .* got gtx"):
        check_card(found, "gtx")


def test_an_objective_that_is_not_counted_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(CONFIGS / "world" / "two_rooms.yaml"), "--show"]) == 0
    assert "# memory per device: not estimated for objective=rollout" in capsys.readouterr().out


def test_a_sweep_narrows_down_the_largest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(config: Any, batch: int, repeats: int) -> Point:
        return Point("fp32", False, False, batch, clips_per_s=batch, error="" if batch <= 13 else "out of memory")

    monkeypatch.setattr(sweeping, "measure", measure)
    config = load_config(TrainConfig, CONFIG, [*TINY, "run.compile=false"])
    assert [(point.batch, point.error) for point in grow(config, 1, 0)][3:] == [
        (8, ""), (16, "out of memory"), (12, ""), (14, "out of memory"),
    ]  # fmt: skip
