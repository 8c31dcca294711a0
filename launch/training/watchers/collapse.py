"""Reads the collapse gauges, warns when the representation loses rank or spread, and stops a run that stays so."""

from concurrent.futures import Future, ThreadPoolExecutor

import pytorch_lightning as lightning
import torch
from torch import Tensor

from launch.training.watchers.board import log_numbers, warn
from launch.training.watchers.skips import DivergedError
from vjepa.gauges import measure_step
from vjepa.jepa import JEPA
from vjepa.objectives.objective import StepOutput

RECOVERY_FACTOR = 1.25  # a collapse counts as over above this multiple of the limits
ADVICE = (
    "lower optim.lr, and keep regulariser.covariance at 1/25 of regulariser.variance: raising both equally shrinks the "
    "features (docs/health.md)"
)


class CollapseReader:
    """Logs the gauges; warns once per collapse, in the log and in TensorBoard.

    With `max_collapsed`, raises DivergedError after more than that many readings in a row of a collapsed state.

    Freshly initialised weights may have a low rank: nothing counts as a collapse until the features have been healthy
    once or the learning-rate warm-up is over. On a GPU the spectra are computed on the host while training goes on, so
    that the other ranks need not wait for rank 0: the numbers are logged a few steps later.
    """

    name = "gauges"

    def __init__(
        self,
        every: int,
        min_rank: float,
        min_spread: float,
        max_collapsed: int | None = None,
        background: bool | None = None,
    ) -> None:
        self.every, self.min_rank, self.min_spread, self.max_collapsed = every, min_rank, min_spread, max_collapsed
        self.background = background  # None: on a GPU
        self.armed = self.collapsed = False
        self.in_a_row = 0
        self.pending: tuple[Future[dict[str, float]], int] | None = None  # gauges being computed, and the width

    def read(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, output: StepOutput, video: Tensor
    ) -> None:
        """Log the gauges of a step and check them, or begin to compute them in the background."""
        assert isinstance(module, JEPA)
        self.settle(trainer, wait=True)
        features = learned_features(trainer, module, output, video)
        measured = measure_step(output, features).to_host()
        self.armed |= trainer.global_step > module.config.optim.warmup(module.config.steps)
        thread = ThreadPoolExecutor(1, "gauges")
        self.pending = thread.submit(measured.finish), features.shape[-1]
        thread.shutdown(wait=False)
        in_background = features.device.type == "cuda" if self.background is None else self.background
        self.settle(trainer, wait=not in_background)

    def settle(self, trainer: lightning.Trainer, wait: bool) -> None:
        """Log and check the gauges under way, if they are ready or `wait` says so."""
        if self.pending is None or not (wait or self.pending[0].done()):
            return
        (future, width), self.pending = self.pending, None
        gauges = future.result()
        self.check(trainer, gauges["gauges/rank"], gauges["gauges/spread"], width)
        log_numbers(trainer, {**gauges, "warnings/collapsed": float(self.collapsed)})
        self.in_a_row = self.in_a_row + 1 if self.collapsed else 0
        if self.max_collapsed is not None and self.in_a_row > self.max_collapsed:
            raise DivergedError(
                f"the representation has been collapsed for {self.in_a_row} readings of the gauges, the last after "
                f"step {trainer.global_step} (health.max_collapsed allows {self.max_collapsed}): effective rank "
                f"{gauges['gauges/rank']:.1f} of {width}. Start again, with another run.output: {ADVICE}"
            )

    def check(self, trainer: lightning.Trainer, rank: float, spread: float, width: int) -> None:
        """Warn when features of this width fall below a limit, or recover."""
        least = self.min_rank * width
        if rank > RECOVERY_FACTOR * least and spread > RECOVERY_FACTOR * self.min_spread:
            if self.collapsed:
                warn(trainer, "collapse", f"the representation has recovered: effective rank {rank:.1f} of {width}")
            self.armed, self.collapsed = True, False
        elif self.armed and not self.collapsed and (rank < least or spread < self.min_spread):
            self.collapsed = True
            warn(
                trainer,
                "collapse",
                f"THE REPRESENTATION IS COLLAPSING: effective rank {rank:.1f} of {width} (health.min_rank requires "
                f"{least:.1f}), spread across clips {spread:.3f} (health.min_spread requires {self.min_spread:g}). The "
                f"loss may still look good. Stop, resume from a checkpoint before the collapse, {ADVICE}",
            )


def learned_features(trainer: lightning.Trainer, module: JEPA, output: StepOutput, video: Tensor) -> Tensor:
    """Features of whole clips in which a collapse would show: [B, N, D].

    The last level of the targets if they follow the encoder; otherwise, since frozen targets and pixels cannot
    collapse, the context encoder's features of the clips [B, C, T, H, W].
    """
    width = module.config.encoder.shape.width
    if output.targets is not None and module.target_encoder.follows_encoder:
        return output.targets[..., -width:]
    # Eager mode: compiled blocks would be recompiled for the full token count.
    with trainer.precision_plugin.train_step_context(), torch.compiler.set_stance("force_eager"):
        features: Tensor = module.context_encoder(video)
    return features
