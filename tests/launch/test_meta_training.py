"""`export --format meta` of a run: the public trainers resume from it, and so does a run of ours."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from launch.__main__ import main
from launch.config import load_config
from launch.training.checkpoints import load_module
from launch.training.config import TrainConfig
from launch.training.continued import continue_all
from vjepa.formats.meta import load_meta
from vjepa.formats.pickled import load_pickled
from vjepa.jepa import JEPA

TINY = str(Path(__file__).parents[2] / "configs" / "pretrain" / "tiny_cpu.yaml")

Exported = tuple[list[str], Path, dict[str, Any]]


class PublicModule(nn.Module):
    """A module as the public trainers number its parameters: frozen table first, then the layers."""

    def __init__(self, module: nn.Module, table: str) -> None:
        super().__init__()
        if module.position_table.numel():
            setattr(self, table, nn.Parameter(module.position_table[None].clone(), requires_grad=False))
        for name, child in module.named_children():
            setattr(self, name, child)


def public_optimiser(*modules: nn.Module) -> torch.optim.AdamW:
    """AdamW in four groups: weights of encoder and predictor, then biases and 1-D parameters of each."""

    def pick(module: nn.Module, small: bool) -> list[nn.Parameter]:
        return [value for name, value in module.named_parameters() if ("bias" in name or value.ndim == 1) == small]

    shared = {"WD_exclude": True, "weight_decay": 0}
    groups = [{"params": pick(module, False)} for module in modules]
    return torch.optim.AdamW(groups + [{"params": pick(module, True), **shared} for module in modules])


@pytest.fixture(params=["sincos", "rotary"])
def exported(request: pytest.FixtureRequest, words: list[str], tmp_path: Path) -> Exported:
    """Overrides of a run of three steps, its folder, and its exported checkpoint."""
    quick = [
        *words, f"encoder.positions={request.param}", "encoder.rotary_order=tiled", "predictor.heads=2",
        "health.pictures_every=null", "health.matrix_tflops=1", "run.steps=3",
    ]  # fmt: skip
    assert main(["train", TINY, *quick]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "meta", "--no-picture"]) == 0
    return quick, tmp_path / "run", load_pickled(next((tmp_path / "out").glob("checkpoint.*")))


def test_the_public_trainer_resumes_from_an_exported_run(exported: Exported) -> None:
    _, run, content = exported
    ours = load_module(run)
    trained = {"encoder": ours.context_encoder, "predictor": ours.predictor}
    for part, module in {**trained, "target_encoder": ours.target_encoder.encoder}.items():
        for name, value in module.state_dict().items():
            assert torch.equal(content[part][f"module.backbone.{name}"], value), (part, name)
    encoder = PublicModule(ours.context_encoder, "pos_embed")
    predictor = PublicModule(ours.predictor, "predictor_pos_embed")
    optimizer = public_optimiser(encoder, predictor)
    optimizer.load_state_dict(content["opt"])
    own = ours.configure_optimizers()
    stored = torch.load(next((run / "checkpoints").glob("*3.ckpt")), weights_only=True)["optimizer_states"][0]
    own.load_state_dict(stored)
    for module in trained.values():
        for parameter in module.parameters():
            for key, value in own.state[parameter].items():
                assert torch.equal(optimizer.state[parameter][key].float(), value.float()), key
    assert [group.get("WD_exclude", False) for group in optimizer.param_groups] == [False, False, True, True]
    torch.amp.GradScaler("cpu").load_state_dict(content["scaler"])
    assert (content["epoch"], content["batch_size"]) == (0, 8)


def test_a_run_goes_on_from_an_official_training_checkpoint(exported: Exported, tmp_path: Path) -> None:
    quick, run, _ = exported
    file = next((tmp_path / "out").glob("checkpoint.*"))
    config = load_config(TrainConfig, TINY, quick)
    model, before = JEPA(config.jepa), load_module(run)
    assert "after 3 updates" in continue_all(model, str(file))
    for name, value in before.objective.state_dict().items():
        assert torch.equal(model.objective.state_dict()[name], value), name
    reread = load_meta(file, "target_encoder")
    assert torch.equal(reread.encoder.norm.weight, before.target_encoder.encoder.norm.weight)


def test_a_checkpoint_without_optimiser_state_is_refused(exported: Exported, tmp_path: Path) -> None:
    quick, _, content = exported
    torch.save({name: value for name, value in content.items() if name != "opt"}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="no training checkpoint to go on from: it lacks opt"):
        continue_all(JEPA(load_config(TrainConfig, TINY, quick).jepa), str(tmp_path / "weights.pt"))
