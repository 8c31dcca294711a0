"""The task of a head, classification or regression: its loss, the meaning of its outputs, and how to rank heads.

K heads, n clips, C classes; regression has one output.
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional

Loss = Literal["l1", "l2"]


@dataclass(frozen=True)
class Task:
    """Classification into `classes` classes or, with 0, regression of a value: outputs * `spread` + `centre`."""

    classes: int
    loss: Loss = "l1"  # of regression
    centre: float = 0.0
    spread: float = 1.0

    @classmethod
    def of(cls, labels: Tensor, classes: int, loss: Loss = "l1") -> "Task":
        """The task for training labels [n]: floating-point labels are values, integers are classes."""
        if not labels.is_floating_point():
            return cls(classes)
        spread = float(labels.std(correction=0))
        return cls(0, loss, float(labels.mean()), spread if spread > 0 else 1.0)

    @property
    def outputs(self) -> int:
        """Number of outputs of a head."""
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
        """Outputs [.., C] -> probabilities [.., C], or the value [.., 1]."""
        return outputs.softmax(-1) if self.classes else outputs * self.spread + self.centre

    def grade(self, answers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Quality of answers [K, n, C], and a tie-breaker where lower is better: [K, n] each.

        Classification: correct (1 or 0), then the negative log-likelihood. Regression: minus the absolute error, then
        the squared error. NaN if an answer is not finite.
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
    """The candidate with the highest `good` [K]; ties go to the lowest `bad` [K], then to the first.

    NaN, from a head that diverged, ranks last.
    """
    ranked = sorted(
        range(len(good)), key=lambda number: (-_finite(float(good[number]), -1), _finite(float(bad[number]), 1))
    )
    return ranked[0]


def _finite(value: float, sign: int) -> float:
    return sign * math.inf if math.isnan(value) else value
