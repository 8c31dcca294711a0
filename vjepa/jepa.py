"""The training algorithm of the V-JEPA family as a LightningModule.

Encode what is visible, predict the representation of what is hidden, compare in latent space. The details are defined
by the objective (vjepa/objectives/); this module has the optimiser, schedules, guard, teacher update and stream
position.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vjepa.batch import ClipGroup, OpenBatch, open_batch
from vjepa.blocks import compile_blocks
from vjepa.config import JepaConfig
from vjepa.guard import Guard
from vjepa.objectives.objective import StepContext, StepOutput, build_objective
from vjepa.optim import (
    lr_schedule,
    make_optimizer,
    momentum_schedule,
    restore_moments,
    set_schedule,
    weight_decay_schedule,
)
from vjepa.predictor import Predictor
from vjepa.targets import Targets

__all__ = ["JEPA", "JepaConfig", "convert_weights"]

# Weight names in checkpoints before version 0.2: these modules now belong to the objective.
OWNED_BEFORE_0_2 = ("context_encoder.", "target_encoder.", "predictor.", "projector.", "regulariser.")


class JEPA(lightning.LightningModule):
    """An objective, and the training loop around it.

    A batch can come from this project's loader, or be a plain uint8 tensor [B, T, H, W, C] or a dict: see
    `vjepa.batch.open_batch`. So `Trainer().fit(JEPA(config), DataLoader(...))` works with any loader.
    """

    def __init__(self, config: JepaConfig, teacher: Any = None) -> None:
        """Initialise weights from the seed; `teacher` is the frozen encoder for teacher.source=frozen.

        Raises ValueError if the config needs such a teacher and none is given.
        """
        super().__init__()
        if teacher is not None:
            config = replace(config, frozen=teacher.config)
        self.config = config
        self.objective = build_objective(config, config.frozen)
        if teacher is not None:
            self.objective.target_encoder.load_teacher(teacher)
        self.guard = Guard(config.optim.spike)
        self.position = 0  # stream position: samples consumed by all ranks
        self.moments: dict[str, dict[str, Tensor]] = {}  # Adam's state to start from, by parameter name
        self.watching = False  # set before a step to keep its output in `watched`
        self.watched: StepOutput | None = None
        self.watched_video: Tensor | None = None  # normalised [B, C, T, H, W]
        self.lr_at = lr_schedule(config.optim, config.steps)
        self.weight_decay_at = weight_decay_schedule(config.optim, config.steps)
        momenta = config.teacher.momenta(config.steps)
        self.momentum_at = momentum_schedule(*momenta, config.steps, config.optim.stretch)

    @property
    def context_encoder(self) -> Any:
        """The encoder trained by gradients."""
        return self.objective.context_encoder

    @property
    def target_encoder(self) -> Targets:
        """The source of the targets."""
        return self.objective.target_encoder

    @property
    def predictor(self) -> Predictor | None:
        """The latent predictor; None if the objective has none."""
        return self.objective.predictor

    @property
    def trained_encoder(self) -> Any:
        """The encoder to evaluate and export: the EMA encoder if there is one, else the context encoder."""
        return self.objective.trained_encoder

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> OpenBatch:
        """Convert a batch on its device and normalise the pixels."""
        return open_batch(batch)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """One step: the objective's loss, averaged over the groups of clips in the batch."""
        opened = open_batch(batch)
        size, ranks = opened.size, self.trainer.world_size if self._trainer else 1
        position = self.position + size * ranks if opened.position is None else opened.position
        first = position - size * (ranks - self.global_rank)
        progress, outputs = self.global_step / self.config.steps, []
        for group in opened.groups:
            count = len(group.video)
            start = first if group.first is None else group.first
            samples = torch.arange(start, start + count, device=group.video.device)
            outputs.append(self.objective.step(group, StepContext(samples, position, progress)))
            first += count
        output = join_outputs(opened.groups, outputs)
        self._report(output, size)
        if self.watching:
            self.watched, self.watched_video = outputs[0].detach(), opened.groups[0].video
        self.position = position
        return output.loss

    def trained_modules(self) -> dict[str, nn.Module]:
        """The modules to optimise, by name; modules without parameters are left out."""
        modules = self.objective.trained_modules()
        return {name: module for name, module in modules.items() if list(module.parameters())}

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile each transformer block: for the numbers of tokens of this config, or for any if they vary."""
        compile_blocks(self.objective, static=not self.config.lengths_vary, backend=backend)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the trained modules, with the state in `moments` if the run starts from another's."""
        optimizer = make_optimizer(self.config.optim, *self.trained_modules().values())
        restore_moments(optimizer, self.named_parameters(), self.moments)
        self.moments = {}
        return optimizer

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the scheduled values, clip gradients per module, and skip the update if the guard rejects it."""
        step, optim = self.global_step, self.config.optim
        set_schedule(optimizer, self.lr_at(step), self.weight_decay_at(step))
        norms = {}
        for name, module in self.trained_modules().items():
            gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
            norms[name] = get_total_norm(gradients)
            if optim.clips_at(step, self.config.steps):
                clip_grads_with_norm_(module.parameters(), optim.clip, norms[name])
        optimizer.found_inf = self.guard.check(list(norms.values()))  # type: ignore[attr-defined]
        self.log_dict({f"grad_norm/{name}": norm for name, norm in norms.items()})

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """The optimiser step, then the teacher update."""
        momentum = self.momentum_at(self.global_step)
        super().optimizer_step(*arguments, **options)
        self.target_encoder.update(self.context_encoder, momentum)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the config as plain data, and the stream position."""
        checkpoint["config"] = asdict(self.config)
        checkpoint["position"] = self.position

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the stream position."""
        self.position = checkpoint["position"]

    def _report(self, output: StepOutput, clips: int) -> None:
        step = self.global_step
        values: dict[str, Tensor] = {
            "loss": output.loss.detach(),
            **{f"loss/{name}": value for name, value in output.parts.items()},
            "schedule/lr": torch.tensor(
                self.lr_at(step)
            ),  # tensors: logging a float would copy it to the device and synchronise
            "schedule/weight_decay": torch.tensor(self.weight_decay_at(step)),
            "schedule/momentum": torch.tensor(self.momentum_at(step)),
        }
        self.log_dict(values, batch_size=clips)


def join_outputs(groups: tuple[ClipGroup, ...], outputs: list[StepOutput]) -> StepOutput:
    """One output for a batch: the weighted mean of its groups' losses; parts are prefixed with the group's name."""
    if not outputs:
        raise ValueError("a batch must hold at least one clip, got none")
    if len(outputs) == 1 and groups[0].weight == 1 and not groups[0].name:
        return outputs[0]
    loss = torch.stack([output.loss * group.weight for group, output in zip(groups, outputs, strict=True)]).mean()
    parts = {
        f"{group.name}/{name}" if group.name else name: value
        for group, output in zip(groups, outputs, strict=True)
        for name, value in output.parts.items()
    }
    return replace(outputs[0], loss=loss, parts=parts)


def convert_weights(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's weights under current names; names from before version 0.2 are converted."""
    return {
        f"objective.{name}" if name.startswith(OWNED_BEFORE_0_2) else name: tensor for name, tensor in stored.items()
    }
