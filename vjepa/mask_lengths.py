"""Fixed lengths of masks: measured from the mask's own distribution, and met by drawing again.

`hide` draws masks: random numbers of B clips -> hidden [B, N] bool. A key names the mask and its grid; what is measured
is computed once per key. N tokens, K of them kept as context, M to predict.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vjepa.draws import ClipRandom
from vjepa.positions import Grid

Hide = Callable[[ClipRandom], Tensor]
Key = tuple[str, Grid]

BATCHES = 128  # batches drawn to measure lengths
RETRIES = 8  # further draws of a mask with too few tokens; after these it becomes one of the spares
SPARES = 64  # masks known to have enough tokens
TRIALS = 256  # masks drawn to find them

_measured: dict[Key, tuple[int, int]] = {}
_spares: dict[tuple[Key, tuple[int, int]], Tensor] = {}


def measure_lengths(key: Key, hide: Hide, clips: int) -> tuple[int, int]:
    """Mean K and M over many batches of `clips` clips, each truncated to its shortest mask."""
    if key not in _measured:
        total, tokens = torch.zeros(2, dtype=torch.float64), 0
        for batch in range(BATCHES):
            hidden = hide(ClipRandom(batch, torch.arange(clips)))
            counts, tokens = hidden.sum(1), hidden.shape[1]
            total += torch.stack([tokens - counts.max(), counts.min()])
        keep, predict = (round(mean) for mean in (total / BATCHES).tolist())
        _measured[key] = keep, min(predict, tokens - keep)
    return _measured[key]


def find_spares(key: Key, hide: Hide, lengths: tuple[int, int], name: str) -> Tensor:
    """Up to SPARES masks with at least `lengths` (K, M) tokens, on the CPU [S, N]; ValueError if none is found."""
    if (key, lengths) not in _spares:
        drawn = hide(ClipRandom(0, torch.arange(TRIALS)))
        enough = drawn[_have_enough(drawn, lengths)]
        if not len(enough):
            least, most = int((~drawn).sum(1).max()), int(drawn.sum(1).max())
            raise ValueError(
                f"{name}: {lengths[0]} context and {lengths[1]} target tokens are wanted, but none of {TRIALS} masks "
                f"leaves both (at most {least} tokens visible, at most {most} hidden of {drawn.shape[1]}); lower "
                f"masks.keep and masks.predict (or raise masks.lengths_of_batch), or set masks.borrow=true"
            )
        _spares[key, lengths] = enough[:SPARES]
    return _spares[key, lengths]


def draw_enough(
    hide: Hide, hidden: Tensor, lengths: tuple[int, int], spares: Tensor, source: tuple[Tensor, int]
) -> Tensor:
    """`hidden` [B, N], in which masks with fewer than `lengths` (K, M) tokens are drawn again.

    `source`: stream positions of the clips [B] and the seed; a clip's mask depends only on these. On a GPU all redraws
    are made, because asking whether one is needed would synchronise.
    """
    clips, seed = source
    for attempt in range(1, RETRIES + 2):
        short = ~_have_enough(hidden, lengths)
        if hidden.device.type == "cpu" and not short.any():
            break
        random = ClipRandom((attempt << 40) + seed, clips)
        if attempt <= RETRIES:
            other = hide(random)
        else:
            chosen = (random.uniform(1)[:, 0] * len(spares)).long()
            other = spares.to(hidden.device, non_blocking=True)[chosen]
        hidden = torch.where(short[:, None], other, hidden)
    return hidden


def _have_enough(hidden: Tensor, lengths: tuple[int, int]) -> Tensor:
    counts, (keep, predict) = hidden.sum(1), lengths
    return (counts >= predict) & (hidden.shape[1] - counts >= keep)
