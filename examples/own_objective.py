"""An objective of your own: were the two halves of a clip swapped? Neither masks nor a teacher.

vjepa train small data.path=SHARDS run.output=runs/swap run.plugins=[examples/own_objective.py] objective=swap
"""

from dataclasses import dataclass

import torch
from torch import nn

from vjepa.batch import ClipGroup
from vjepa.config import JepaConfig
from vjepa.encoder import EncoderConfig, build_encoder
from vjepa.objectives.objective import Objective, StepContext, StepOutput
from vjepa.registry import OBJECTIVES
from vjepa.targets import make_targets


@OBJECTIVES.register("swap")
class SwapObjective(Objective):
    @dataclass(frozen=True)
    class Options:  # the config section `swap`
        width: int = 64  # of the hidden layer of the classifier

    def __init__(self, config: JepaConfig, frozen: EncoderConfig | None) -> None:
        super().__init__()
        self.config, self.predictor = config, None
        self.context_encoder = build_encoder(config.encoder)
        self.target_encoder = make_targets(config.teacher, self.context_encoder, frozen=frozen)
        hidden = config.objective_options.width
        self.classifier = nn.Sequential(nn.Linear(config.encoder.shape.width, hidden), nn.GELU(), nn.Linear(hidden, 1))

    def step(self, batch: ClipGroup, context: StepContext) -> StepOutput:
        swapped = (context.samples % 2).bool()  # the sample's number in the run decides, so resuming is exact
        video = torch.where(swapped.view(-1, 1, 1, 1, 1), batch.video.roll(batch.video.shape[2] // 2, 2), batch.video)
        score = self.classifier(self.context_encoder(video).mean(1))[:, 0].float()
        loss = nn.functional.binary_cross_entropy_with_logits(score, swapped.float())
        return StepOutput(loss, {"swap": loss.detach()}, self.context_encoder.token_grid(video))

    def trained_modules(self) -> dict[str, nn.Module]:
        return {"context_encoder": self.context_encoder, "classifier": self.classifier}

    @classmethod
    def flops(cls, config: JepaConfig, clips: int) -> float:
        return float("nan")  # not counted: speed/utilisation is left out
