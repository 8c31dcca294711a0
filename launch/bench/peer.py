"""Times the training step of a checkout of the public V-JEPA 2 beside ours, on equal work.

Nothing of it is copied: its own modules are imported from the folder given (`src/`, `app/vjepa/`, as in
facebookresearch/vjepa2). Both get the same clips and the same masks, so the numbers of tokens are equal; the peer's
pixels are normalised beforehand, as its loader does. B clips, N tokens, K context tokens, M target tokens.
"""

import copy
import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from launch.bench.step import Clips, OurStep, StepBench
from launch.meter import Border, PartClock, time_in_turn
from launch.training.config import TrainConfig
from launch.training.ranks import share_of_device
from vjepa.masks import draw_all
from vjepa.patches import gather_tokens
from vjepa.pixels import normalise

NAMES = {
    "tiny": "vit_tiny", "small": "vit_small", "base": "vit_base", "large": "vit_large", "huge": "vit_huge",
    "giant": "vit_giant_xformers", "gigantic": "vit_gigantic_xformers",
}  # fmt: skip
PARTS = ("app", "src")  # its top-level packages
NEEDED = ("src/models/vision_transformer.py", "app/vjepa/utils.py")


@contextmanager
def imported_from(folder: Path) -> Iterator[Any]:
    """The checkout's `app.vjepa.utils`; afterwards its packages can no longer be imported by others.

    Raises FileNotFoundError if the folder is no such checkout.
    """
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"--peer {folder} must be a checkout of facebookresearch/vjepa2; it lacks {missing[0]}")
    sys.path.insert(0, str(folder))
    before = logging.root.manager.disable
    logging.disable(logging.INFO)  # it prints its models
    try:
        yield importlib.import_module("app.vjepa.utils")
    finally:
        logging.disable(before)
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] in PARTS]:
            del sys.modules[name]


class PeerStep:
    """The step of the public trainer: targets, contexts, predictions, loss, AdamW, moving average."""

    keeps_casts = True  # autocast's default

    def __init__(self, utils: Any, config: TrainConfig, device: torch.device) -> None:
        jepa, self.half = config.jepa, config.run.precision != "fp32"
        encoder, predictor = jepa.encoder, jepa.predictor
        if jepa.objective_class.__name__ != "MaskedObjective" or encoder.size not in NAMES:
            raise ValueError(
                f"--peer compares objective=masked with a named encoder.size, got {jepa.objective} and {encoder.size}"
            )
        self.encoder, self.predictor = utils.init_video_model(
            device=device, patch_size=encoder.patch, max_num_frames=encoder.frames, tubelet_size=encoder.tubelet,
            model_name=NAMES[encoder.size], crop_size=encoder.crop, pred_depth=predictor.depth,
            pred_num_heads=predictor.heads, pred_embed_dim=predictor.width, uniform_power=True, use_mask_tokens=True,
            num_mask_tokens=len(jepa.masks), zero_init_mask_tokens=True, use_sdpa=True,
            use_rope=encoder.positions == "rotary", use_activation_checkpointing=encoder.checkpoint_activations,
        )  # fmt: skip
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        self.optimizer, self.scaler, *_ = utils.init_opt(
            is_anneal=False, encoder=self.encoder, predictor=self.predictor, iterations_per_epoch=300, start_lr=1e-4,
            ref_lr=5e-4, warmup=40, num_epochs=100, wd=0.04, final_wd=0.04, final_lr=5e-4,
            mixed_precision=self.half and device.type == "cuda",
        )  # fmt: skip
        self.config = jepa
        self.tokens: dict[str, Any] = {}
        self.loss: Tensor | None = None

    def forward(self, batch: Clips) -> Tensor:
        """Loss of a batch."""
        video, size = normalise(batch.clips), len(batch.clips)
        samples = torch.arange(batch.position - size, batch.position, device=video.device)
        masks = draw_all(self.config.masks, self.config.encoder.grid, samples, self.config.seed)
        contexts, targets = [mask.context for mask in masks], [mask.target for mask in masks]
        with torch.no_grad():
            wanted = functional.layer_norm(self.teacher([video])[0], (self.config.encoder.shape.width,))
        found = self.predictor(self.encoder([video], [contexts]), [contexts], [targets])[0]
        self.tokens = {
            "targets": wanted.shape[1], "context": [index.shape[1] for index in contexts],
            "predicted": [one.shape[1] for one in found],
        }  # fmt: skip
        errors = [(one - gather_tokens(wanted, index)).abs().mean() for one, index in zip(found, targets, strict=True)]
        self.loss = torch.stack(errors).mean()
        return self.loss if self.scaler is None else self.scaler.scale(self.loss)

    def clear(self) -> None:
        """Zero the gradients."""
        self.optimizer.zero_grad()

    def optimise(self) -> None:
        """The optimiser's step, as the public trainer takes it."""
        if self.scaler is None:
            self.optimizer.step()
            return
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def follow(self) -> None:
        """The moving average; the public trainer also reads the loss in every step."""
        with torch.no_grad():
            mine, theirs = list(self.teacher.parameters()), list(self.encoder.parameters())
            torch._foreach_mul_(mine, 0.999)
            torch._foreach_add_(mine, theirs, alpha=0.001)
        assert self.loss is not None
        float(self.loss.detach())

    def borders(self) -> list[Border]:
        """Its parts are not timed."""
        return []


def bench_peer(folder: Path, config: TrainConfig, repeats: int, warm_up: int = 3) -> dict[str, Any]:
    """Our step and the peer's in turn: milliseconds, clips per second, and the tokens of each."""
    clips = share_of_device(config.run).clips
    bench = StepBench(config, clips)
    off = PartClock(bench.device, on=False)
    with imported_from(folder) as utils:
        peer, ours = PeerStep(utils, config, bench.device), OurStep(config, bench.device)
        batches = {name: bench.made_clips() for name in ("ours", "peer")}
        works = [
            lambda: bench.take(ours, next(batches["ours"]), off),
            lambda: bench.take(peer, next(batches["peer"]), off),
        ]
        mine, theirs = time_in_turn(works, repeats, warm_up, bench.device)
        masks = draw_all(config.jepa.masks, config.encoder.grid, torch.arange(clips), config.jepa.seed)
    t, h, w = config.encoder.grid
    own = {
        "targets": t * h * w, "context": [mask.context.shape[1] for mask in masks],
        "predicted": [mask.target.shape[1] for mask in masks],
    }  # fmt: skip
    return {
        "clips": clips,
        "ours": {"step_ms": round(1000 * mine, 2), "clips_per_s": round(clips / mine, 2), "tokens": own},
        "peer": {"step_ms": round(1000 * theirs, 2), "clips_per_s": round(clips / theirs, 2), "tokens": peer.tokens},
        "speedup": round(theirs / mine, 3),
    }
