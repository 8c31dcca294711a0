"""Online probe: k-NN and linear classification on a small labelled set during pretraining.

Training is not affected: random states, train and eval modes, the loader and the compiled blocks stay unchanged.
The ranks share the encoding of the clips; rank 0 fits the heads while the others wait. n clips, D width.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, cast

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn

from data.loading.loader import DataConfig, EvalLoader, Request
from probes.fit import fit_linear
from probes.heads import knn_probabilities
from probes.metrics import Score, score
from vjepa.encoder import Encoder
from vjepa.pixels import normalise

logger = logging.getLogger(__name__)

HEADS = ("linear", "knn")


class HasEncoder(Protocol):
    """A training module with an encoder to evaluate."""

    @property
    def trained_encoder(self) -> Encoder: ...


class OnlineProbe(Callback):
    """Accuracy of linear and k-NN classification with its 95 % interval, every `every` steps, before and after the run.

    `train` and `test` are folders of labelled shards; `clips` of each (0: all) are chosen once, randomly with `seed`.
    """

    def __init__(
        self, train: str, test: str, data: DataConfig, batch: int, every: int, clips: int = 0, seed: int = 0
    ) -> None:
        self.loaders = [EvalLoader(replace(data, path=path, mix=[]), batch) for path in (train, test)]
        classes = [loader.manifest.classes for loader in self.loaders]
        if not classes[0] or classes[0] != classes[1]:
            raise ValueError(
                f"the online probe needs labels and the same classes in both sets: {train} has "
                f"{len(classes[0])} classes and {test} {len(classes[1])}; pack both with the same labels, or leave "
                "health.probe_train and health.probe_test empty"
            )
        self.classes = len(classes[0])
        self.samples = [choose_samples(loader.manifest.samples, clips, seed) for loader in self.loaders]
        self.every = every

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Set up curves with intervals in TensorBoard; probe the initial weights of a new run."""
        for board in trainer.loggers:
            if isinstance(board, TensorBoardLogger) and trainer.is_global_zero:
                curves = {head: ["Margin", [f"probe/{head}{end}" for end in ("", "_low", "_high")]] for head in HEADS}
                board.experiment.add_custom_scalars({"online probe": curves})
        if trainer.global_step == 0:
            self.probe(trainer, module)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Probe when due, unless the run is being stopped: it needs the remaining time to save a checkpoint."""
        step, stepped = trainer.global_step, (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if stepped and not trainer.should_stop and (step % self.every == 0 or step == trainer.max_steps):
            self.probe(trainer, module)

    def probe(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Encode both sets, fit the heads, log their scores."""
        begun = time.perf_counter()
        encoder = cast(HasEncoder, module).trained_encoder
        with undisturbed(encoder, module.device), trainer.precision_plugin.train_step_context():
            parts = [self._encode(trainer, encoder, number, module.device) for number in range(2)]
        (train, labels), (test, truth) = (_join(trainer, *part) for part in parts)
        self._check(labels, truth)  # on all ranks: if only one failed, the others would wait for it
        if trainer.is_global_zero:
            with undisturbed(encoder, module.device):
                train, labels, test = (one.to(module.device) for one in (train, labels, test))
                found = score_heads(train, labels, test, truth, self.classes)
            values = {"probe/seconds": time.perf_counter() - begun}
            for head, result in found.items():
                values |= {f"probe/{head}": result.top1, f"probe/{head}_low": result.low}
                values[f"probe/{head}_high"] = result.high
                logger.info("step %d: %s probe %s", trainer.global_step, head, result)
            for one in trainer.loggers:
                one.log_metrics(values, max(0, trainer.global_step - 1))
        trainer.strategy.barrier("online probe")

    def _encode(
        self, trainer: lightning.Trainer, encoder: Encoder, number: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """This rank's share of set `number`: mean tokens float32 [n, D] and labels int64 [n]."""
        loader, samples, rank = self.loaders[number], self.samples[number], trainer.global_rank
        share = samples[len(samples) * rank // trainer.world_size : len(samples) * (rank + 1) // trainer.world_size]
        requests = (Request(share[first : first + loader.batch]) for first in range(0, len(share), loader.batch))
        pooled, labels = [torch.empty(0, encoder.config.shape.width)], [torch.empty(0, dtype=torch.int64)]
        for batch in loader.read(requests):
            if batch.keys:
                tokens = encoder(normalise(batch.clips.flatten(0, 1).to(device)))
                pooled.append(tokens.mean(1, dtype=torch.float32).cpu())
                labels.append(batch.labels)
        return torch.cat(pooled), torch.cat(labels)

    def _check(self, *found: Tensor) -> None:
        for loader, labels in zip(self.loaders, found, strict=True):
            if not len(labels) or int(labels.min()) < 0:
                raise ValueError(
                    f"the online probe needs readable clips with labels: of {len(labels)} chosen in "
                    f"{loader.config.path}, {int((labels < 0).sum())} have none"
                )


def score_heads(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, classes: int) -> dict[str, Score]:
    """Fit each head on train [n, D] with labels [n], on their device; scores on test against `truth`, by head name."""
    with torch.enable_grad():
        fitted = fit_linear(train.unsqueeze(1), labels, test.unsqueeze(1), classes)
    votes = knn_probabilities(train, labels, test, classes)
    return {"linear": score(fitted.probabilities, truth), "knn": score(votes.cpu(), truth)}


def choose_samples(samples: int, clips: int, seed: int) -> list[int]:
    """Indices of at most `clips` (0: all) of a set's samples, chosen at random, in ascending order."""
    if not clips or clips >= samples:
        return list(range(samples))
    chosen = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))[:clips]
    return sorted(chosen.tolist())


@contextmanager
def undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluate a module in the middle of its training without side effects.

    Preserves the random states, the train or eval mode of each submodule, and the compiled blocks, which would
    otherwise be recompiled for another batch size and might then round differently.
    """
    modes = [(part, part.training) for part in module.modules()]
    devices = [device] if device.type == "cuda" else []
    module.eval()
    try:
        with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"), torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _join(trainer: lightning.Trainer, pooled: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gather and join the shares of all ranks, in rank order."""
    if trainer.world_size == 1:
        return pooled, labels
    shares: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(shares, (pooled, labels))
    return torch.cat([one for one, _ in shares]), torch.cat([other for _, other in shares])
