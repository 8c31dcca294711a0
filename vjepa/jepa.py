"""The training algorithm of the V-JEPA family as a LightningModule.

Encode what is visible, predict the representation of what is hidden, compare in latent space. What that means in
detail is the objective's (vjepa/objectives/); here are optimiser, schedules, guard, teacher update and position.
"""

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
from vjepa.optim import lr_schedule, make_optimizer, momentum_schedule, set_schedule, weight_decay_schedule
from vjepa.predictor import Predictor
from vjepa.targets import Targets

__all__ = ["JEPA", "JepaConfig", "convert_weights"]

# Where weights of checkpoints before version 0.2 went: the module owned what an objective owns now.
OWNED_BEFORE_0_2 = ("context_encoder.", "target_encoder.", "predictor.", "projector.", "regulariser.")


class JEPA(lightning.LightningModule):
    """An objective, and the step that trains it.

    A batch may be one of this project's loader, a plain uint8 tensor [B, T, H, W, C], or a dict: see
    `vjepa.batch.open_batch`. So `Trainer().fit(JEPA(config), DataLoader(...))` works with anybody's loader.
    """

    def __init__(self, config: JepaConfig, teacher: Any = None) -> None:
        """Fresh weights from the seed alone; `teacher` is the frozen encoder of teacher.source=frozen.

        Raises ValueError where such a teacher is asked for and there is none.
        """
        super().__init__()
        if teacher is not None:
            config = replace(config, frozen=teacher.config)
        self.config = config
        self.objective = build_objective(config, config.frozen)
        if teacher is not None:
            weights = {f"encoder.{name}": value for name, value in teacher.state_dict().items()}
            self.objective.target_encoder.load_state_dict(weights)
        self.guard = Guard(config.optim.spike)
        self.position = 0  # samples consumed by all ranks
        self.watching = False  # set before a step: leave behind what it worked out
        self.watched: StepOutput | None = None
        self.watched_video: Tensor | None = None  # normalised [B, C, T, H, W]
        self.lr_at = lr_schedule(config.optim, config.steps)
        self.weight_decay_at = weight_decay_schedule(config.optim, config.steps)
        momenta = config.teacher.momenta(config.steps)
        self.momentum_at = momentum_schedule(*momenta, config.steps, config.optim.stretch)

    @property
    def context_encoder(self) -> Any:
        """The encoder that gradients train."""
        return self.objective.context_encoder

    @property
    def target_encoder(self) -> Targets:
        """Where targets come from."""
        return self.objective.target_encoder

    @property
    def predictor(self) -> Predictor | None:
        """The latent predictor, where the objective has one."""
        return self.objective.predictor

    @property
    def trained_encoder(self) -> Any:
        """The encoder to evaluate and export: the moving average where there is one, else the one that is trained."""
        return self.objective.trained_encoder

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> OpenBatch:
        """Read a batch on its device and normalise its pixels."""
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
            samples = torch.arange(first, first + count, device=group.video.device)
            outputs.append(self.objective.step(group, StepContext(samples, position, progress)))
            first += count
        output = join_outputs(opened.groups, outputs)
        self._report(output, size)
        if self.watching:
            self.watched, self.watched_video = outputs[0].detach(), opened.groups[0].video
        self.position = position
        return output.loss

    def trained_modules(self) -> dict[str, nn.Module]:
        """What the optimiser moves, by name."""
        modules = self.objective.trained_modules()
        return {name: module for name, module in modules.items() if list(module.parameters())}

    def compile_blocks(self) -> None:
        """Compile the transformer blocks, one by one, for any number of tokens (torch.compile)."""
        compile_blocks(self.objective)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over what is trained."""
        return make_optimizer(self.config.optim, *self.trained_modules().values())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the step's schedule; limit the gradient norm of each module by itself; skip an update that does harm."""
        step, optim = self.global_step, self.config.optim
        set_schedule(optimizer, self.lr_at(step), self.weight_decay_at(step))
        norms = {}
        for name, module in self.trained_modules().items():
            gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
            norms[name] = get_total_norm(gradients)
            if optim.clip and not (optim.clip_after_warmup and step < optim.warmup(self.config.steps)):
                clip_grads_with_norm_(module.parameters(), optim.clip, norms[name])
        optimizer.found_inf = self.guard.judge(list(norms.values()))  # type: ignore[attr-defined]
        self.log_dict({f"grad_norm/{name}": norm for name, norm in norms.items()})

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """The optimiser's step, then the teacher's."""
        momentum = self.momentum_at(self.global_step)
        super().optimizer_step(*arguments, **options)
        self.target_encoder.update(self.context_encoder, momentum)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the config as plain data, and the position in the data."""
        checkpoint["config"] = asdict(self.config)
        checkpoint["position"] = self.position

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the position in the data back."""
        self.position = checkpoint["position"]

    def _report(self, output: StepOutput, clips: int) -> None:
        step = self.global_step
        values: dict[str, Tensor] = {
            "loss": output.loss.detach(),
            **{f"loss/{name}": value for name, value in output.parts.items()},
            "schedule/lr": torch.tensor(
                self.lr_at(step)
            ),  # tensors: a number would be copied to the device, and waited for
            "schedule/weight_decay": torch.tensor(self.weight_decay_at(step)),
            "schedule/momentum": torch.tensor(self.momentum_at(step)),
        }
        self.log_dict(values, batch_size=clips)


def join_outputs(groups: tuple[ClipGroup, ...], outputs: list[StepOutput]) -> StepOutput:
    """One output for a batch: the mean loss of its groups, each normalised by itself; parts carry the group's name."""
    if not outputs:
        raise ValueError("a batch must hold at least one clip, got none")
    if len(outputs) == 1:
        return outputs[0]
    loss = torch.stack([output.loss for output in outputs]).mean()
    parts = {
        f"{group.name}/{name}" if group.name else name: value
        for group, output in zip(groups, outputs, strict=True)
        for name, value in output.parts.items()
    }
    return replace(outputs[0], loss=loss, parts=parts)


def convert_weights(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint under today's names; those of checkpoints before version 0.2 are renamed."""
    return {
        f"objective.{name}" if name.startswith(OWNED_BEFORE_0_2) else name: tensor for name, tensor in stored.items()
    }
