"""Learn a world model: predict the latents of later frames from the first frame and the actions between them.

    teacher forcing   mean_t d(f(z_t, a_t), y_t+1)         each step from the true latent
    rollout           mean_k d(f(f(.., a_k-1), a_k), y_k)  every step from the prediction before it, from frame 0
    inverse dynamics  |g(s_t, s_t+1) - a_t|^2              what the action changes must be in the latent
    similarity        |s_t+1 - s_t|^2                      neighbours in time are near
    regulariser       variance, covariance, within-clip variance (`temporal`), SIGReg of the summaries s = read(z)

z: latents of the context encoder; y: the target encoder's (the same one, with or without gradient, or its moving
average). B clips, T frames, N cells of a state, D width, A numbers of an action, S actions between two frames.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vjepa.batch import ClipGroup
from vjepa.config import JepaConfig
from vjepa.encoder import EncoderConfig, build_encoder
from vjepa.flops import encoder_flops
from vjepa.loss import prediction_loss
from vjepa.objectives.objective import Objective, StepContext, StepOutput
from vjepa.registry import OBJECTIVES
from vjepa.regularise import Regulariser
from vjepa.targets import make_targets
from vjepa.world.frames import encode_frames, within_clip_share
from vjepa.world.model import Transition, WorldModel, WorldOptions

SMALL = 1e-6  # added to a squared error before its logarithm


@dataclass(frozen=True)
class RolloutOptions(WorldOptions):
    """The world model and the weights of its losses. The distance is set by loss.power, the targets by teacher."""

    teacher_forcing: float = 1.0  # weight of predictions one step ahead
    rollout: float = 1.0  # weight of predictions from the first frame on
    steps_ahead: int | None = None  # length of that rollout; null: to the last frame of the clip
    target_gradient: bool = False  # let the gradient into the targets; needs teacher.source=stop_gradient
    inverse: float = 0.0  # weight of inverse dynamics
    similarity: float = 0.0  # weight of the squared distance of consecutive summaries
    freeze_encoder: bool = False  # train the predictor alone, on the encoder that run.start loads

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("teacher_forcing", "rollout", "inverse", "similarity"):
            if getattr(self, name) < 0:
                raise ValueError(f"rollout.{name} must be at least 0, got {getattr(self, name)}")
        if not self.teacher_forcing + self.rollout:
            raise ValueError("rollout.teacher_forcing or rollout.rollout must be above 0, got 0 and 0")
        if self.steps_ahead is not None and self.steps_ahead < 1:
            raise ValueError(f"rollout.steps_ahead must be at least 1, or null, got {self.steps_ahead}")


@OBJECTIVES.register("rollout")
class RolloutObjective(Objective):
    """Predicts latents under actions. Batches need an array `actions`: data.arrays={actions: steps}."""

    Options = RolloutOptions

    def __init__(self, config: JepaConfig, frozen: EncoderConfig | None) -> None:
        super().__init__()
        self.config, self.predictor = config, None
        options = config.objective_options
        self.context_encoder = build_encoder(config.encoder)
        self.transition = Transition(options, config.encoder)
        self.target_encoder = make_targets(config.teacher, self.context_encoder, frozen=frozen)
        self.regulariser = Regulariser(config.regulariser, self.transition.summary_width)
        self.context_encoder.requires_grad_(not options.freeze_encoder)
        self.transition.inverse.requires_grad_(options.inverse > 0)

    @classmethod
    def check(cls, config: JepaConfig) -> None:
        """Reject targets and regularisers that do not fit."""
        options = config.objective_options
        if config.teacher.source not in ("average", "stop_gradient"):
            raise ValueError(
                f"objective=rollout needs teacher.source average or stop_gradient, got {config.teacher.source}; a "
                "fixed encoder is used with rollout.freeze_encoder=true and run.start"
            )
        if options.target_gradient and config.teacher.source != "stop_gradient":
            raise ValueError(
                "rollout.target_gradient=true needs teacher.source=stop_gradient, the context encoder itself; an "
                "average of it takes no gradient"
            )
        if options.freeze_encoder and config.teacher.source != "stop_gradient":
            raise ValueError("rollout.freeze_encoder=true needs teacher.source=stop_gradient: nothing is averaged")
        if config.regulariser.motion:
            raise ValueError("regulariser.motion works on tokens of a clip, not on the states of objective=rollout")

    @property
    def world(self) -> WorldModel:
        """The encoder to use and the transition, as one model that shares their weights."""
        return WorldModel(self.trained_encoder, self.transition)

    def step(self, batch: ClipGroup, context: StepContext) -> StepOutput:
        """One step for B clips of T frames."""
        options, video = self.config.objective_options, batch.video
        actions = read_actions(batch, options.action_values)
        latents = self.transition.prepare(encode_frames(self.context_encoder, video))
        targets = self._targets(video, latents)
        summaries = self.transition.read(latents)
        ahead = min(options.steps_ahead or actions.shape[1], actions.shape[1])
        imagined = self.transition.imagine(self.transition.begin(latents[:, 0]), actions[:, :ahead])
        losses = {"rollout": options.rollout * self._distance(imagined, targets[:, 1 : ahead + 1])}
        if options.teacher_forcing or options.surprise:
            following = self.transition.dynamics.teach(latents, actions)
            losses["teacher_forcing"] = options.teacher_forcing * self._distance(following, targets[:, 1:])
            if options.surprise:
                losses["surprise"] = self._surprise(following, summaries, targets, actions)
        if options.inverse:
            pairs = torch.cat([summaries[:, :-1], summaries[:, 1:]], -1)
            losses["inverse"] = options.inverse * (self.transition.inverse(pairs) - actions).square().mean()
        if options.similarity:
            losses["similarity"] = options.similarity * summaries.diff(dim=1).square().mean()
        losses["regulariser"] = self._regularise(summaries, context.position)
        parts = {name: loss.detach() for name, loss in losses.items()}
        grid = self.context_encoder.token_grid(video)
        with torch.no_grad():
            parts |= self._gauges(imagined, targets, summaries)
        flat = targets.detach().flatten(1, 2)
        return StepOutput(torch.stack(list(losses.values())).sum(), parts, grid, flat)

    def trained_modules(self) -> dict[str, nn.Module]:
        """Encoder, unless it is frozen, and transition."""
        if self.config.objective_options.freeze_encoder:
            return {"transition": self.transition}
        return {"context_encoder": self.context_encoder, "transition": self.transition, "regulariser": self.regulariser}

    @classmethod
    def flops(cls, config: JepaConfig, clips: int) -> float:
        """Encoder over all frames and predictor over all steps, forward and backward; targets of an average."""
        options, (frames, h, w) = config.objective_options, config.encoder.grid
        encoder = encoder_flops(config.encoder, h * w, embedded=True) * frames
        with torch.device("meta"):
            step: float = Transition(options, config.encoder).dynamics.count_flops()
        steps: int = (options.steps_ahead or frames - 1) + (frames - 1) * (options.teacher_forcing > 0)
        passes = (1 if options.freeze_encoder else 3) + (config.teacher.source == "average")
        return passes * encoder + 3 * step * steps

    def _targets(self, video: Tensor, latents: Tensor) -> Tensor:
        """Target latents [B, T, N, D]."""
        average = self.target_encoder.moving_average
        if average is not None:
            with torch.no_grad():
                return self.transition.prepare(encode_frames(average, video))
        return latents if self.config.objective_options.target_gradient else latents.detach()

    def _distance(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Distance of states [B, H, N, D] and, with a read-out, of their summaries too, whose scale is regularised."""
        power = self.config.loss.power
        distance = prediction_loss(predicted, targets, power)
        if self.config.objective_options.readout:
            read = self.transition.read
            distance = distance + prediction_loss(read(predicted), read(targets), power)
        return distance

    def _surprise(self, following: Tensor, summaries: Tensor, targets: Tensor, actions: Tensor) -> Tensor:
        """Squared error of the expected log error; trains nothing but its own head."""
        with torch.no_grad():
            error = (self.transition.read(following) - self.transition.read(targets[:, 1:])).square().mean(-1)
        expected = self.transition.expect_error(summaries[:, :-1].detach(), actions)
        return (expected - (error + SMALL).log()).square().mean()

    def _regularise(self, summaries: Tensor, draw: int) -> Tensor:
        """Terms of the summaries [B, T, R], centred at each frame number over the batch."""
        clips, frames = summaries.shape[:2]
        index = torch.arange(frames, device=summaries.device).expand(clips, -1)
        penalty: Tensor = self.regulariser(summaries, index, frames, draw, grid=(frames, 1, 1))
        return penalty

    def _gauges(self, imagined: Tensor, targets: Tensor, summaries: Tensor) -> dict[str, Tensor]:
        """Within-clip share of the variance; error after 1, 2, 4, ... steps relative to standing still."""
        found = {"within_clip": within_clip_share(summaries)}
        truth, predicted = self.transition.read(targets), self.transition.read(imagined)
        for exponent in range(int(math.log2(imagined.shape[1])) + 1):
            ahead = 2**exponent
            error = (predicted[:, ahead - 1] - truth[:, ahead]).square().sum()
            still = (truth[:, 0] - truth[:, ahead]).square().sum()
            found[f"error_{ahead}"] = error / still.clamp(min=SMALL)
        return found


def read_actions(batch: ClipGroup, values: int) -> Tensor:
    """Actions [B, T-1, A] of a batch, S actions of a step joined; ValueError if missing or of another size."""
    frames, actions = batch.video.shape[2], batch.arrays.get("actions")
    if actions is None:
        raise ValueError(
            "objective=rollout needs the actions between the frames: set data.arrays={actions: steps} for shards whose "
            f"samples have them; this batch has {', '.join(batch.arrays) or 'no arrays'}"
        )
    if actions.shape[1] != frames - 1 or frames < 2:
        raise ValueError(f"a clip of {frames} frames needs {frames - 1} steps of actions, found {actions.shape[1]}")
    joined = actions.flatten(2).float() if actions.ndim > 2 else actions.unsqueeze(2).float()
    if joined.shape[2] != values:
        raise ValueError(
            f"rollout.action_values must be data.stride x the numbers of one action, here {joined.shape[2]}, got "
            f"{values}"
        )
    return joined
