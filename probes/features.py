"""Frozen features of a whole set: many small reads of few tokens at a time, never all of them at once.

n samples, b of them in a read, V views, L layers of S segments in time of h x w x t tokens each: N tokens of a view in
all, D width.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor


class TokenSource(Protocol):
    """Where tokens are read from: memory, files mapped into it, or the encoder itself."""

    shape: tuple[int, int]  # tokens N of a view, width D

    def read(self, rows: Tensor, views: Tensor) -> Tensor:
        """Rows int64 [b] of the set, a view int64 [b] of each -> bf16 [b, N, D]."""
        ...

    def walk(self, places: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """`read` for one (rows, views) after the other; what comes next may be prepared meanwhile."""
        ...


class Features:
    """What is known of a set: labels, keys, one vector a view in memory, and tokens for whoever asks for them.

    Augmented epochs of a training set are views of it: epoch e of a head takes view e % V.
    """

    def __init__(
        self,
        source: TokenSource,
        labels: Tensor,
        keys: Sequence[str],
        pooled: Tensor,
        missing: dict[str, list[str]] | None = None,
        views: int = 0,
        clip_tokens: int = 0,
        description: str = "",
    ) -> None:
        self.source = source
        self.labels = labels  # int64 [n] (classes; -1 where there is none) or float32 [n] (values to regress)
        self.keys = list(keys)  # of the n readable samples, each once
        self.pooled = pooled  # float32 [n, V, D]: mean over a view's tokens of the last layer; V=1 if only that is read
        self.missing = missing or {}  # unreadable samples, by reason
        self.rows = torch.arange(len(self.keys))  # where the samples lie in the source
        self.views = views or pooled.shape[1]  # V: views of a sample
        self.clip_tokens = clip_tokens or source.shape[0]  # of one segment of a view, those of all layers counted
        self.description = description  # of all that decides what they are
        if not len(labels) == len(self.keys) == len(pooled) == len(self.rows):
            found = f"{len(labels)}, {len(self.keys)}, {len(pooled)}, {len(self.rows)}"
            raise ValueError(f"features need as many labels as keys, pooled vectors and rows, got {found}")

    @classmethod
    def from_tokens(
        cls,
        tokens: Tensor,
        labels: Tensor,
        keys: Sequence[str] = (),
        missing: dict[str, list[str]] | None = None,
        layers: int = 1,
    ) -> "Features":
        """Features of tokens [n, V, N, D] that are in memory, of `layers` layers, the last one last."""
        pooled = pool(tokens, layers)
        names = keys or [str(number) for number in range(len(tokens))]
        shape = tokens.shape[2], tokens.shape[3]
        return cls(Stored([tokens.to(torch.bfloat16)], shape), labels, names, pooled, missing)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D): tokens of a view, those of all layers counted, and their width."""
        return self.source.shape

    def __len__(self) -> int:
        return len(self.keys)

    def pick(self, index: Tensor, view: Tensor) -> Tensor:
        """Samples int64 [b], a view int64 [b] of each -> tokens bf16 [b, N, D]."""
        return self.source.read(self.rows[index], view)

    def walk(self, places: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """`pick` for one (index, view) after the other; faster where tokens come from afar."""
        return self.source.walk((self.rows[index], view) for index, view in places)

    def subset(self, index: Tensor) -> "Features":
        """The samples int64 [m] alone, with the same tokens behind them."""
        found = copy(self)
        found.keys = [self.keys[number] for number in index.tolist()]
        found.labels, found.pooled, found.rows = self.labels[index], self.pooled[index], self.rows[index]
        return found

    def relabel(self, labels: Tensor) -> "Features":
        """The same features with other labels [n]."""
        found = copy(self)
        found.labels = labels
        return found


class Stored:
    """Tokens in parts [m, V, N, D] one after the other, in memory or mapped into it; no parts where none were kept."""

    def __init__(self, parts: Sequence[Tensor], shape: tuple[int, int]) -> None:
        self.parts = [part for part in parts if len(part)]
        self.kept: object = None  # what must live as long as the tokens are read, such as locks
        self.starts = [0, *accumulate(len(part) for part in self.parts)]
        self.shape = shape

    def read(self, rows: Tensor, views: Tensor) -> Tensor:
        """See `TokenSource`."""
        if not self.parts:
            raise ValueError("of these features only the means of the tokens were kept; extract them with tokens")
        if len(self.parts) == 1:
            return self.parts[0][rows, views]
        found = torch.empty(len(rows), *self.shape, dtype=torch.bfloat16)
        for number, (row, view) in enumerate(zip(rows.tolist(), views.tolist(), strict=True)):
            part = bisect_right(self.starts, row) - 1
            found[number] = self.parts[part][row - self.starts[part], view]
        return found

    def walk(self, places: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """See `TokenSource`."""
        for rows, views in places:
            yield self.read(rows, views)


def pool(tokens: Tensor, layers: int = 1) -> Tensor:
    """The mean over the tokens of the last of `layers` layers: [n, V, N, D] -> float32 [n, V, D]."""
    last: Tensor = tokens.unflatten(2, (layers, -1))[:, :, -1]
    return last.mean(2, dtype=torch.float32)
