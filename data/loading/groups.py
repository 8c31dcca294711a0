"""Images beside clips in one stream: which samples of a step are images, and which of them a rank reads.

A step takes a fixed number of clips and of images, over all ranks. Stream positions count both: in the step that begins
at position p, clips come first, then images. Which rank reads a sample changes nothing else: its position, its crop and
its masks stay the same. With `ranks`, some ranks read only images and the others only clips (V-JEPA 2.1); otherwise,
and with a single rank, every rank reads its part of both.
"""

from dataclasses import dataclass

CLIPS, IMAGES = "clips", "images"  # names of the groups


@dataclass(frozen=True)
class ImageConfig:
    """The images of a step, read from the parts of data.mix with `images: true`."""

    share: float = 0.5  # of the samples of a step; run.batch counts clips and images
    weight: float = 0.5  # of the images' loss; the clips' has the rest
    ranks: float | None = (
        None  # fraction of the ranks that read images only, the others clips only; null: all read both
    )
    crop: int | None = None  # pixels; null: data.crop

    def __post_init__(self) -> None:
        for name in ("share", "weight", "ranks"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"data.images.{name} must lie in (0, 1), got {value}")
        if self.crop is not None and self.crop < 1:
            raise ValueError(f"data.images.crop must be at least 1, or null for data.crop, got {self.crop}")


@dataclass(frozen=True)
class Portion:
    """The part of one group that a rank reads in every step."""

    name: str
    per_step: int  # samples of the group in a step, over all ranks
    before: int  # samples of a step that come before the group
    first: int  # of this rank, counted in the group
    count: int  # of this rank
    weight: float  # of the group's loss on this rank: the mean over ranks and groups is the weighted loss


def divide(config: ImageConfig | None, batch: int, rank: int, world: int) -> tuple[Portion, ...]:
    """The groups that `rank` of `world` reads, for an average of `batch` samples a rank; no config: clips only.

    Raises ValueError if a step or a group cannot be divided evenly.
    """
    total = batch * world
    if config is None:
        return (Portion(CLIPS, total, 0, rank * batch, batch, 1.0),)
    images = round(config.share * total)
    if abs(images - config.share * total) > 1e-6 * total or not 0 < images < total:
        raise ValueError(
            f"data.images.share={config.share:g} of the {total} samples of a forward pass over all ranks must be "
            f"a whole number of images, got {config.share * total:g}"
        )
    sizes, weights = (total - images, images), (1 - config.weight, config.weight)
    chosen = min(max(round((config.ranks or 0) * world), 1), world - 1) if config.ranks else 0
    if not chosen:  # both groups on every rank, also on a single one
        spans = [(rank, world)] * 2
        factors = (2.0, 2.0)
    else:
        apart = world - chosen  # the first ranks read clips, so that rank 0, which logs, does
        own = rank >= apart
        spans = [(-1 if own else rank, apart), (rank - apart if own else -1, chosen)]
        factors = (world / apart, world / chosen)
    found = []
    for number, name in enumerate((CLIPS, IMAGES)):
        (position, parts), size = spans[number], sizes[number]
        if size % parts:
            raise ValueError(
                f"the {size} {name} of a forward pass must be divisible by the {parts} ranks that read them; change "
                f"run.batch, run.accumulate, data.images.share or data.images.ranks"
            )
        if position >= 0:
            count, before = size // parts, number * sizes[0]
            weight = factors[number] * weights[number]
            found.append(Portion(name, size, before, position * count, count, weight))
    return tuple(found)
