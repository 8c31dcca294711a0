"""Reads the collapse gauges and warns where the representation loses its directions."""

import pytorch_lightning as lightning
import torch
from torch import Tensor

from launch.training.watchers.board import log_numbers, warn
from vjepa.gauges import step_gauges
from vjepa.jepa import JEPA
from vjepa.objectives.objective import StepOutput

RELIEF = 1.25  # times the limit: above that a crossing counts as over


class CollapseReader:
    """Gauges to the log; a warning once a crossing, in the log and in TensorBoard.

    Fresh weights may have few directions: nothing is called a collapse before the features were healthy once, or the
    warm-up of the learning rate is over.
    """

    name = "gauges"

    def __init__(self, every: int, min_rank: float, min_spread: float) -> None:
        self.every, self.min_rank, self.min_spread = every, min_rank, min_spread
        self.armed = self.collapsed = False

    def read(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, output: StepOutput, video: Tensor
    ) -> None:
        """Log the gauges of a step and judge them."""
        assert isinstance(module, JEPA)
        features = learned_features(trainer, module, output, video)
        gauges = step_gauges(output, features)
        self.armed |= trainer.global_step > module.config.optim.warmup(module.config.steps)
        self.judge(trainer, gauges["gauges/rank"], gauges["gauges/spread"], features.shape[-1])
        log_numbers(trainer, {**gauges, "warnings/collapsed": float(self.collapsed)})

    def judge(self, trainer: lightning.Trainer, rank: float, spread: float, width: int) -> None:
        """Warn where features of this width have come under a limit, or have left it behind."""
        least = self.min_rank * width
        if rank > RELIEF * least and spread > RELIEF * self.min_spread:
            if self.collapsed:
                warn(trainer, "collapse", f"the representation has recovered: effective rank {rank:.1f} of {width}")
            self.armed, self.collapsed = True, False
        elif self.armed and not self.collapsed and (rank < least or spread < self.min_spread):
            self.collapsed = True
            warn(
                trainer,
                "collapse",
                f"THE REPRESENTATION IS COLLAPSING: effective rank {rank:.1f} of {width} (health.min_rank asks for "
                f"{least:.1f}), spread across clips {spread:.3f} (health.min_spread asks for {self.min_spread:g}). The "
                "loss may look wonderful. Stop, go back to a checkpoint before the fall, lower optim.lr, and keep "
                "regulariser.covariance at a 25th of regulariser.variance: raising both alike shrinks the features "
                "(docs/health.md)",
            )


def learned_features(trainer: lightning.Trainer, module: JEPA, output: StepOutput, video: Tensor) -> Tensor:
    """Features of whole clips in which a collapse shows: [B, N, D].

    The targets where they follow the encoder (their last level); else, as frozen targets and pixels cannot collapse,
    what the encoder makes of the clips [B, C, T, H, W].
    """
    width = module.config.encoder.shape.width
    if output.targets is not None and module.target_encoder.follows_encoder:
        return output.targets[..., -width:]
    # Compiled blocks are left alone: they would be compiled once more, for all tokens.
    with trainer.precision_plugin.train_step_context(), torch.compiler.set_stance("force_eager"):
        features: Tensor = module.context_encoder(video)
    return features
