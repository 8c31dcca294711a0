"""Many attentive heads trained on the same batches, each independently of the others.

The heads are rows of one matrix [K, P]. At depth 1 their cross-attention is one product over tokens that are read and
standardised once; deeper heads transform the tokens, so they process each batch one after the other. K heads, P
parameters per head, n clips, N tokens, D width, C outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from probes.heads import AttentiveHead, Style, apply_many, pool_many, standardise_tokens

TOKENS_AT_ONCE = 2**16  # per pass of a deep head in training: 16 GB of activations at width 1024

Measure = Callable[[Tensor, Tensor], Tensor]  # outputs [K, n, C], labels [n] -> loss of each sample [K, n]


@dataclass(frozen=True)
class Candidate:
    """One head of a sweep."""

    lr: float  # initial; cosine to 0
    weight_decay: float
    seed: int  # of its initial weights


class Stack:
    """Heads of one shape, trained by AdamW, each with its own learning rate and weight decay."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        shape: tuple[int, int, int, int],
        steps: int,
        device: str = "cpu",
        style: Style = "transformers",
    ) -> None:
        """shape: width, attention heads, outputs and depth of a head; steps: of the whole training."""
        self.candidates, self.shape, self.device, self.style = list(candidates), shape, device, style
        self.template = self._draw(0)
        self.names = [name for name, _ in self.template.named_parameters()]
        self.sizes = [parameter.shape for parameter in self.template.parameters()]
        self.weights = torch.stack([_flatten(self._draw(candidate.seed)) for candidate in candidates]).to(device)
        self.gradients = torch.zeros_like(self.weights)
        self.rows = [row.detach().requires_grad_() for row in self.weights]
        for row, gradient in zip(self.rows, self.gradients, strict=True):
            row.grad = gradient
        self.whole = self.weights.detach().requires_grad_()
        self.whole.grad = self.gradients
        self.template.to(device)
        groups = [
            {"params": [row], "lr": candidate.lr, "weight_decay": candidate.weight_decay}
            for row, candidate in zip(self.rows, candidates, strict=True)
        ]
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, max(1, steps))

    def step(self, tokens: Tensor, labels: Tensor, measure: Measure) -> None:
        """One step of every head on the same tokens [n, N, D] with labels [n]."""
        self.gradients.zero_()
        labels = labels.to(self.device)
        if self.template.depth == 1:
            ready = standardise_tokens(tokens.to(self.device), self.template.epsilon)
            measure(self._classify(self.whole, ready), labels).mean(1).sum().backward()
        else:
            for part in torch.arange(len(labels)).split(max(1, TOKENS_AT_ONCE // tokens.shape[1])):
                some, truth = tokens[part].to(self.device), labels[part.to(self.device)]
                for row in self.rows:
                    (measure(self._run(row, some)[None], truth).sum() / len(labels)).backward()
        self.optimizer.step()
        self.schedule.step()

    @torch.no_grad()
    def answer(self, tokens: Tensor) -> Tensor:
        """Outputs of every head for tokens [n, N, D] -> [K, n, C]."""
        tokens = tokens.to(self.device)
        if self.template.depth == 1:
            return self._classify(self.weights, standardise_tokens(tokens, self.template.epsilon))
        return torch.stack([self._run(row, tokens) for row in self.weights])

    def head(self, number: int) -> AttentiveHead:
        """A single head, on the CPU."""
        head = self._draw(0)
        head.load_state_dict(self._name(self.weights[number].cpu()))
        return head.eval().requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        """The state needed to resume training."""
        return {
            "weights": self.weights,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        self.weights.copy_(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    def _classify(self, weights: Tensor, ready: Tensor) -> Tensor:
        """All heads of depth 1 at once on standardised tokens [n, N, D] -> [K, n, C]."""
        named = self._name(weights)
        return apply_many(named, "linear", pool_many(named, self.template.heads, ready, self.template.epsilon))

    def _run(self, row: Tensor, tokens: Tensor) -> Tensor:
        """One deep head on tokens [n, N, D] -> [n, C]; in bf16 on a GPU, where attention is much faster."""
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu"):
            output: Tensor = functional_call(self.template, self._name(row), (tokens,))
        return output.float()

    def _name(self, weights: Tensor) -> dict[str, Tensor]:
        """Weights [.., P] as parameters by name [.., *shape]."""
        parts = weights.split([size.numel() for size in self.sizes], -1)
        return {name: part.unflatten(-1, size) for name, part, size in zip(self.names, parts, self.sizes, strict=True)}

    def _draw(self, seed: int) -> AttentiveHead:
        width, heads, outputs, depth = self.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AttentiveHead(width, heads, outputs, depth, self.style)


def _flatten(head: AttentiveHead) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in head.parameters()])
