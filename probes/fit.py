"""Training heads on cached features, and choosing among them on held-out training samples.

The set that is reported is never looked at before the choice is made. n clips, V views, N tokens, D width, C classes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from probes.heads import AttentiveHead, LinearHead, standardise_tokens

LINEAR_DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class AttentiveConfig:
    """Attentive heads, one for each pair of learning rate and weight decay, trained side by side on one pass."""

    lrs: tuple[float, ...] = (3e-3, 1e-3, 3e-4)  # at the start; cosine to 0
    weight_decays: tuple[float, ...] = (0.01, 0.1)
    epochs: int = 20
    batch: int = 64
    heads: int = 0  # attention heads; 0: as many as the encoder
    held_out: float = 0.2  # share of the training samples on which the head is chosen

    def __post_init__(self) -> None:
        if not self.lrs or not self.weight_decays:
            raise ValueError("attentive.lrs and attentive.weight_decays must name at least one value each")
        if not 0 < self.held_out < 1:
            raise ValueError(f"attentive.held_out must lie in (0, 1), got {self.held_out}")


class Fitted(NamedTuple):
    """A chosen head's verdict on the reported set, and what was chosen."""

    probabilities: Tensor  # [n, C], averaged over views
    choice: dict[str, float]  # hyper-parameters, and `held_out`: the accuracy they were chosen by
    head: AttentiveHead | LinearHead | None = None  # none where nothing was trained


def split_held_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (kept, held out) of labels [n], the same share of every class, at least one of each where it has two."""
    generator = torch.Generator().manual_seed(seed)
    held = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = max(1, round(share * len(members))) if len(members) > 1 else 0
        held.append(members[torch.randperm(len(members), generator=generator)[:count]])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.cat(held)] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def fit_linear(
    train: Tensor, labels: Tensor, test: Tensor, classes: int, held_out: float = 0.2, seed: int = 0
) -> Fitted:
    """Logistic regression on train [n, V, D]; weight decay chosen on held-out samples, then fitted on all."""
    kept, held = split_held_out(labels, held_out, seed)
    scores = {}
    for decay in LINEAR_DECAYS:
        head = _logistic_regression(train[kept], labels[kept], classes, decay)
        scores[decay] = _accuracy(_linear_probabilities(head, train[held]), labels[held])
    decay = max(scores, key=lambda known: (scores[known], known))
    head = _logistic_regression(train, labels, classes, decay)
    choice = {"weight_decay": decay, "held_out": scores[decay]}
    return Fitted(_linear_probabilities(head, test), choice, head)


def fit_attentive(
    train: Tensor, labels: Tensor, test: Tensor, classes: int, config: AttentiveConfig, seed: int = 0
) -> Fitted:
    """Attentive heads on tokens train [n, V, N, D]; the best on held-out samples speaks on test [m, V, N, D]."""
    kept, held = split_held_out(labels, config.held_out, seed)
    heads = train_attentive(train[kept], labels[kept], classes, config, seed)
    scores = {
        choice: _accuracy(attentive_probabilities(head, train[held]), labels[held]) for choice, head in heads.items()
    }
    best = max(scores, key=lambda choice: scores[choice])
    choice = {"lr": best[0], "weight_decay": best[1], "held_out": scores[best]}
    return Fitted(attentive_probabilities(heads[best], test), choice, heads[best])


def train_attentive(
    tokens: Tensor, labels: Tensor, classes: int, config: AttentiveConfig, seed: int
) -> dict[tuple[float, float], AttentiveHead]:
    """One head a (lr, weight decay), all fed the same batches of tokens [n, V, N, D]; each as if it were alone."""
    width = tokens.shape[-1]
    heads = {}
    for choice in [(lr, decay) for lr in config.lrs for decay in config.weight_decays]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads[choice] = AttentiveHead(width, config.heads or max(1, width // 64), classes)
    groups = [
        {"params": list(head.parameters()), "lr": lr, "weight_decay": decay} for (lr, decay), head in heads.items()
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    steps = config.epochs * -(-len(tokens) // config.batch)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(config.epochs):
        for chosen in torch.randperm(len(tokens), generator=generator).split(config.batch):
            view = torch.randint(tokens.shape[1], (len(chosen),), generator=generator)
            batch = standardise_tokens(tokens[chosen, view])
            loss = torch.stack([functional.cross_entropy(head(batch), labels[chosen]) for head in heads.values()]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cosine.step()
    return heads


@torch.no_grad()
def attentive_probabilities(head: AttentiveHead, tokens: Tensor, batch: int = 256) -> Tensor:
    """Class probabilities of tokens [n, V, N, D], averaged over views -> [n, C]."""
    parts = []
    for some in tokens.split(batch):
        logits = head(standardise_tokens(some.flatten(0, 1)))
        parts.append(logits.softmax(1).unflatten(0, some.shape[:2]).mean(1))
    return torch.cat(parts)


def _logistic_regression(features: Tensor, labels: Tensor, classes: int, weight_decay: float) -> LinearHead:
    flat, repeated = features.flatten(0, 1), labels.repeat_interleave(features.shape[1])
    head = LinearHead(flat.shape[1], classes)
    head.measure(flat)
    ready = head.standardise(flat)  # once, not in every evaluation of the loss
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = weight_decay * head.linear.weight.square().sum()
        loss = functional.cross_entropy(head.linear(ready), repeated) + penalty
        loss.backward()
        return loss

    optimizer.step(closure)
    return head


@torch.no_grad()
def _linear_probabilities(head: nn.Module, features: Tensor) -> Tensor:
    logits: Tensor = head(features.flatten(0, 1))
    probabilities: Tensor = logits.softmax(1).unflatten(0, features.shape[:2])
    return probabilities.mean(1)


def _accuracy(probabilities: Tensor, labels: Tensor) -> float:
    return float((probabilities.argmax(1) == labels).float().mean())
