"""Frozen features of a whole set, read in small batches of tokens, never all at once.

n samples, b samples per read, V views, N tokens per view (L layers x S temporal segments x t x h x w), D width.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor


class TokenSource(Protocol):
    """Where tokens are read from: memory, mapped files, or the encoder itself."""

    shape: tuple[int, int]  # tokens N of a view, width D

    def read(self, rows: Tensor, views: Tensor) -> Tensor:
        """Rows int64 [b] of the set, and a view of each int64 [b] -> bf16 [b, N, D]."""
        ...

    def walk(self, places: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """`read` for a sequence of (rows, views); the next ones may be prepared in the background."""
        ...


class Features:
    """A set's labels, keys and pooled features in memory, and its tokens on demand.

    Augmented epochs of a training set are stored as views: epoch e of a head uses view e % V.
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
        self.labels = labels  # int64 [n] (classes; -1: no label) or float32 [n] (regression)
        self.keys = list(keys)  # of the n readable samples, unique
        self.pooled = pooled  # float32 [n, V, D]: mean over a view's last-layer tokens; V=1 if only that view is needed
        self.missing = missing or {}  # unreadable samples, by reason
        self.rows = torch.arange(len(self.keys))  # row of each sample in the source
        self.views = views or pooled.shape[1]  # V: views per sample
        self.clip_tokens = clip_tokens or source.shape[0]  # tokens per segment of a view, over all layers
        self.description = description  # of everything that determines the features
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
        """Features from tokens [n, V, N, D] in memory, with `layers` layers in order along N."""
        pooled = pool(tokens, layers)
        names = keys or [str(number) for number in range(len(tokens))]
        shape = tokens.shape[2], tokens.shape[3]
        return cls(Stored([tokens.to(torch.bfloat16)], shape), labels, names, pooled, missing)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D): tokens per view, over all layers, and their width."""
        return self.source.shape

    def __len__(self) -> int:
        return len(self.keys)

    def pick(self, index: Tensor, view: Tensor) -> Tensor:
        """Sample indices int64 [b], and a view of each int64 [b] -> tokens bf16 [b, N, D]."""
        return self.source.read(self.rows[index], view)

    def walk(self, places: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """`pick` for a sequence of (index, view); faster when tokens are computed on demand."""
        return self.source.walk((self.rows[index], view) for index, view in places)

    def subset(self, index: Tensor) -> "Features":
        """The subset of samples int64 [m], sharing the same tokens."""
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
    """Tokens as consecutive parts [m, V, N, D], in memory or mapped; no parts if only means were kept."""

    def __init__(self, parts: Sequence[Tensor], shape: tuple[int, int]) -> None:
        self.parts = [part for part in parts if len(part)]
        self.kept: object = None  # what must live as long as the tokens are read, such as locks
        self.starts = [0, *accumulate(len(part) for part in self.parts)]
        self.shape = shape

    def read(self, rows: Tensor, views: Tensor) -> Tensor:
        """See `TokenSource`."""
        if not self.parts:
            raise ValueError("only the token means of these features were kept; extract them with tokens")
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
