"""A run that goes on from another's whole training state: both encoders, the predictor and Adam's moments.

That is how the published cooldown starts. The schedules, the guard and the position in the data begin anew.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from launch.training.checkpoints import MODULE, latest_checkpoint, read_checkpoint, read_config_of
from vjepa.formats.loading import is_pretrained
from vjepa.formats.meta_training import Training, read_training
from vjepa.jepa import JEPA

Moments = dict[str, dict[str, Tensor]]
ENCODERS = ("objective.context_encoder.", "objective.target_encoder.", "objective.predictor.")


def continue_all(model: JEPA, path: str) -> str:
    """Load both encoders, the predictor and Adam's moments at `path` into a new run; returns what was loaded, in words.

    `path`: a run, a .ckpt file or an official checkpoint. Raises ValueError if it has no optimiser state, or if any
    tensor is missing or has another shape. Mask tokens that the new run does not use keep their initial value.
    """
    weights, moments = read_official(path) if is_pretrained(path) else read_run(path)
    wanted = {name: value for name, value in model.state_dict().items() if name.startswith(ENCODERS)}
    spare = {name for name, value in model.named_parameters() if "mask_tokens" in name and not value.requires_grad}
    problems = [name for name, value in wanted.items() if name not in spare and not _fits(weights.get(name), value)]
    trained = [name for name, value in model.named_parameters() if value.requires_grad and name in wanted]
    problems += [
        f"exp_avg of {name}" for name in trained if not _fits(moments.get(name, {}).get("exp_avg"), wanted[name])
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{path} does not fit the config with run.start_weights=all: missing or of another shape are "
            f"{'; '.join(problems[:3])}{more}"
        )
    model.load_state_dict({**model.state_dict(), **{name: weights[name] for name in wanted if name not in spare}})
    model.moments = {name: moments[name] for name in trained}
    step = int(next(iter(model.moments.values()))["step"])
    return f"both encoders, the predictor and Adam's moments after {step} updates"


def read_run(path: str) -> tuple[dict[str, Tensor], Moments]:
    """Weights and moments of a run directory or .ckpt file, by parameter name."""
    file = Path(path)
    if file.is_dir():
        file = latest_checkpoint(file) or file / "checkpoints"
    stored = read_checkpoint(file, (*MODULE, "optimizer_states"))
    return stored["state_dict"], read_moments(stored, file)


def read_moments(stored: Mapping[str, Any], file: Path) -> Moments:
    """Adam's state in a checkpoint of ours, by parameter name; parameters without updates are left out."""
    model = JEPA(read_config_of(stored, file))
    names = {id(value): name for name, value in model.named_parameters()}
    own, state = model.configure_optimizers().param_groups, stored["optimizer_states"][0]
    return {
        names[id(parameter)]: dict(state["state"][number])
        for mine, group in zip(own, state["param_groups"], strict=True)
        for parameter, number in zip(mine["params"], group["params"], strict=True)
        if number in state["state"]
    }


def read_official(path: str) -> tuple[dict[str, Tensor], Moments]:
    """Weights and moments of an official checkpoint, under the names of a run."""
    weights, moments = read_training(path)
    places = {
        "encoder": "objective.context_encoder.",
        "target_encoder": "objective.target_encoder.encoder.",
        "predictor": "objective.predictor.",
    }
    named = {places[part] + name: value for part, values in weights.items() for name, value in values.items()}
    return named, {places[part] + name: dict(state) for (part, name), state in moments.items()}


def read_training_of(path: str) -> Training | None:
    """What `export --format meta` adds for a run, to resume in the public trainers; None without an EMA encoder."""
    file = Path(path)
    if file.is_dir():
        file = latest_checkpoint(file) or file / "checkpoints"
    stored = read_checkpoint(file, MODULE)
    names = stored["state_dict"]
    if "optimizer_states" not in stored or not any(name.startswith(ENCODERS[1] + "encoder.") for name in names):
        return None
    config = read_config_of(stored, file)
    parts = {"encoder": ENCODERS[0], "predictor": ENCODERS[2]}
    moments = {
        (part, name.removeprefix(start)): state
        for name, state in read_moments(stored, file).items()
        for part, start in parts.items()
        if name.startswith(start)
    }
    context = {name.removeprefix(ENCODERS[0]): value for name, value in names.items() if name.startswith(ENCODERS[0])}
    steps = int(stored["global_step"])
    return Training(context, moments, config.optim, steps, stored["position"] // max(1, steps))


def _fits(found: Tensor | None, wanted: Tensor) -> bool:
    return found is not None and found.shape == wanted.shape
