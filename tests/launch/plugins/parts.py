"""Parts of a user's own, one of each kind, in a folder that no package knows."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from probes.features import Features
from probes.fit import Fitted
from probes.kinds import FitContext, head
from vjepa.batch import ClipGroup
from vjepa.config import JepaConfig
from vjepa.encoder import EncoderConfig, build_encoder
from vjepa.masks import ClipRandom, MaskConfig, mask
from vjepa.objectives.objective import Objective, StepContext, StepOutput
from vjepa.patches import gather_tokens
from vjepa.positions import Grid
from vjepa.registry import ENCODERS, OBJECTIVES, REGULARISERS
from vjepa.targets import make_targets


@mask("checkerboard")
def hide_checkerboard(config: MaskConfig, grid: Grid, random: ClipRandom) -> Tensor:
    """Every other token, which half a coin says; options.flip: probability of the other half -> [B, N] bool."""
    t, h, w = grid
    index = torch.arange(t * h * w)
    parity = (index // (h * w) + index // w % h + index % w) % 2
    flipped = random.uniform(1) < config.options.get("flip", 0.5)
    return (parity == 1) ^ flipped


@REGULARISERS.register("shrink")
def shrink(centred: Tensor, freedom: Tensor) -> Tensor:
    """Mean variance of the rows [n, E]: features are pulled together."""
    return centred.square().sum(0).div(freedom).mean()


@ENCODERS.register("convolutions")
class ConvolutionalEncoder(nn.Module):
    """A convolution a tubelet, then one over what is visible alone: hidden tokens are zeros to it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        size = (config.tubelet, config.patch, config.patch)
        self.cut = nn.Conv3d(3, config.shape.width, size, stride=size)
        self.mix = nn.Conv3d(config.shape.width, config.shape.width, 3, padding=1)

    def token_grid(self, video: Tensor) -> Grid:
        """Grid of the tokens of video [B, C, T, H, W]."""
        t, h, w = video.shape[2:]
        return t // self.config.tubelet, h // self.config.patch, w // self.config.patch

    def forward(self, video: Tensor, index: Tensor | None = None) -> Tensor:
        """video [B, C, T, H, W] -> [B, K or N, D]."""
        x = self.cut(video)
        if index is None:
            return torch.relu(self.mix(x)).flatten(2).transpose(1, 2)
        seen = torch.zeros(len(x), x[0, 0].numel(), device=x.device).scatter_(1, index, 1.0)
        mixed = torch.relu(self.mix(x * seen.view(len(x), 1, *x.shape[2:]))).flatten(2).transpose(1, 2)
        return gather_tokens(mixed, index)


@dataclass(frozen=True)
class OrderOptions:
    """Options of the objective below."""

    width: int = 8  # of its hidden layer


@OBJECTIVES.register("order")
class OrderObjective(Objective):
    """Tell a clip from its reverse: no prediction, no mask."""

    Options = OrderOptions

    def __init__(self, config: JepaConfig, frozen: EncoderConfig | None) -> None:
        super().__init__()
        self.config, self.predictor = config, None
        self.context_encoder = build_encoder(config.encoder)
        self.target_encoder = make_targets(config.teacher, self.context_encoder, frozen=frozen)
        width = config.objective_options.width
        self.judge = nn.Sequential(nn.Linear(config.encoder.shape.width, width), nn.GELU(), nn.Linear(width, 1))

    def step(self, batch: ClipGroup, context: StepContext) -> StepOutput:
        """Half of the clips run backwards."""
        reverse = (context.samples % 2).bool()
        video = torch.where(reverse.view(-1, 1, 1, 1, 1), batch.video.flip(2), batch.video)
        said = self.judge(self.context_encoder(video).mean(1))[:, 0].float()
        loss = nn.functional.binary_cross_entropy_with_logits(said, reverse.float())
        return StepOutput(loss, {"order": loss.detach()}, self.context_encoder.token_grid(video))

    def trained_modules(self) -> dict[str, nn.Module]:
        """Encoder and judge."""
        return {"context_encoder": self.context_encoder, "judge": self.judge}

    @classmethod
    def flops(cls, config: JepaConfig, clips: int) -> float:
        """Not counted."""
        return float("nan")


@head("nearest_mean")
def fit_nearest_mean(train: Features, test: Features, context: FitContext) -> Fitted:
    """The class whose mean feature is nearest."""
    means = torch.stack([train.pooled[train.labels == label].mean((0, 1)) for label in range(context.classes)])
    distance = torch.cdist(test.pooled.mean(1), means)
    return Fitted(torch.softmax(-distance, 1), {})
