"""What heads are asked for, a class or a value: their loss, what their outputs mean, and which answer is better.

K heads, n clips, C classes; a value is one output.
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional

Loss = Literal["l1", "l2"]


@dataclass(frozen=True)
class Task:
    """One of `classes` classes, or, where there are none, a value that is `centre` plus outputs times `spread`."""

    classes: int
    loss: Loss = "l1"  # of values
    centre: float = 0.0
    spread: float = 1.0

    @classmethod
    def of(cls, labels: Tensor, classes: int, loss: Loss = "l1") -> "Task":
        """The task of training labels [n]: floating point numbers are values, integers classes."""
        if not labels.is_floating_point():
            return cls(classes)
        spread = float(labels.std(correction=0))
        return cls(0, loss, float(labels.mean()), spread if spread > 0 else 1.0)

    @property
    def outputs(self) -> int:
        """Outputs of a head."""
        return self.classes or 1

    def measure(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Loss of each sample: outputs [K, n, C], labels [n] -> [K, n]."""
        if self.classes:
            repeated = labels.expand(len(outputs), -1).flatten()
            loss: Tensor = functional.cross_entropy(outputs.flatten(0, 1), repeated, reduction="none")
            each: Tensor = loss.unflatten(0, outputs.shape[:2])
            return each
        error: Tensor = outputs[..., 0] - (labels - self.centre) / self.spread
        return error.abs() if self.loss == "l1" else error.square()

    def answer(self, outputs: Tensor) -> Tensor:
        """Outputs [.., C] as probabilities [.., C], or as the value [.., 1]."""
        return outputs.softmax(-1) if self.classes else outputs * self.spread + self.centre

    def grade(self, answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """How good answers [K, n, C] are, and, between equally good ones, how bad: [K, n] each.

        Hit or miss, then -log of the truth's probability; of a value minus its absolute error, then the squared one.
        Not a number where an answer is not finite.
        """
        if self.classes:
            truth = answers.gather(2, labels.expand(len(answers), -1)[..., None])[..., 0]
            good, bad = (answers.argmax(2) == labels).double(), -truth.double().clamp(min=1e-12).log()
        else:
            error = (answers[..., 0] - labels).double()
            good, bad = -error.abs(), error.square()
        diverged = ~answers.isfinite().all(2)
        return good.masked_fill(diverged, math.nan), bad.masked_fill(diverged, math.nan)


def choose_best(good: Tensor, bad: Tensor) -> int:
    """The candidate with the highest `good` [K]; of several the one with the lowest `bad` [K], of these the first.

    What is not a number is worst: a head that diverged.
    """
    ranked = sorted(
        range(len(good)), key=lambda number: (-_finite(float(good[number]), -1), _finite(float(bad[number]), 1))
    )
    return ranked[0]


def _finite(value: float, sign: int) -> float:
    return sign * math.inf if math.isnan(value) else value
