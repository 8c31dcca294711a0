"""Looking at a set through an encoder: a map of its clips, and the nearest neighbours of some of them. No labels used.

N clips, D width.
"""

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from launch.reports.moving import figure_of, rows_of
from launch.reports.page import Section
from launch.reports.pictures import COLOURS, GREY, embed, tidy
from vjepa.encoder import Encoder
from vjepa.pixels import normalise

ROWS, NEAREST = 5, 5  # clips shown, and neighbours of each
CELLS = 7  # rows and columns of the moving map
NAMED = 12  # classes with a colour of their own
FEWEST = 10  # clips for t-SNE

Points = npt.NDArray[np.float64]


def look_sections(clips: Tensor, names: Sequence[str], encoder: Encoder) -> list[Section]:
    """Map and neighbours of clips uint8 [N, T, H, W, 3] with their class names ("" for none)."""
    means = mean_features(clips, encoder)
    points, method = project(means)
    return [
        Section("Nearest neighbours", NEIGHBOURS, show_neighbours(clips, names, means)),
        Section(
            "Map of the clips", MAP.format(count=len(clips), method=method), embed(draw_map(points, names, method))
        ),
        Section("The same map, moving", MOVING, show_map(clips, names, points)),
    ]


def mean_features(clips: Tensor, encoder: Encoder) -> Tensor:
    """The mean token of every clip, standardised over the clips and of length 1: [N, D]."""
    with torch.inference_mode():
        means = torch.cat([encoder(normalise(part)).mean(1) for part in clips.split(8)]).float()
    spread = means.std(0, correction=0).clamp(min=1e-6)
    return functional.normalize((means - means.mean(0)) / spread, dim=1)


def find_neighbours(means: Tensor, rows: int, nearest: int) -> Tensor:
    """Index [rows, 1 + nearest] into means [N, D]: a clip, then those with the most similar mean feature."""
    asked = torch.arange(len(means))[:: max(1, len(means) // rows)][:rows]
    similar = means[asked] @ means.T
    similar[torch.arange(len(asked)), asked] = 2.0  # a clip comes first in its own row
    return similar.topk(min(1 + nearest, len(means)), dim=1).indices


def show_neighbours(clips: Tensor, names: Sequence[str], means: Tensor) -> str:
    """Some clips, each followed by its nearest neighbours; a neighbour of another class is marked."""
    rows = []
    for index in find_neighbours(means, ROWS, NEAREST).tolist():
        first, *others = index
        row = [figure_of(clips[first], names[first] or f"clip {first + 1}", "first")]
        for place, other in enumerate(others, 1):
            mark = "other" if names[first] and names[other] != names[first] else ""
            row.append(figure_of(clips[other], names[other] or f"neighbour {place}", mark))
        rows.append(row)
    return rows_of(rows)


def project(means: Tensor) -> tuple[Points, str]:
    """Two coordinates for every clip [N, 2], and the method: t-SNE, or two principal components where it cannot be."""
    if len(means) >= FEWEST and find_spec("sklearn") is not None:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(means) - 1) / 3)
        points = TSNE(2, perplexity=perplexity, metric="cosine", init="pca", random_state=0).fit_transform(
            means.numpy()
        )
        return np.asarray(points, np.float64), "t-SNE"
    centred = (means - means.mean(0)).double()
    _, directions = torch.linalg.eigh(centred.T @ centred)
    return (centred @ directions[:, -2:].flip(1)).numpy(), "PCA"


def draw_map(points: Points, names: Sequence[str], method: str) -> Figure:
    """A dot for every clip at points [N, 2], coloured by class, with printed axes."""
    figure = Figure(figsize=(6.4, 5.2))
    axis = figure.subplots()
    classes = sorted({name for name in names if name}, key=lambda name: (-names.count(name), name))
    for number, name in enumerate([*classes[:NAMED], ""]):
        rest = name == ""
        chosen = [row for row, one in enumerate(names) if (one not in classes[:NAMED] if rest else one == name)]
        if chosen:
            label = name or ("other classes" if classes else "clips")
            colour, marker = (GREY, "o") if rest else (COLOURS[number % len(COLOURS)], "os^"[number // len(COLOURS)])
            axis.plot(*points[chosen].T, marker, color=colour, markersize=5, alpha=0.8, label=label)
    axis.set_xlabel(f"{method} 1", fontsize=9)
    axis.set_ylabel(f"{method} 2", fontsize=9)
    if classes:
        axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
    tidy(axis)
    figure.tight_layout()
    return figure


def show_map(clips: Tensor, names: Sequence[str], points: Points) -> str:
    """The clips themselves at their place: in each cell of the map the clip nearest to its centre."""
    low, high = points.min(0), points.max(0)
    place = (points - low) / np.maximum(high - low, 1e-9) * CELLS
    cells = np.minimum(place.astype(int), CELLS - 1)
    distance = np.abs(place - cells - 0.5).sum(1)
    found = []
    for cell in sorted(set(map(tuple, cells.tolist()))):
        inside = np.flatnonzero((cells == cell).all(1))
        clip = int(inside[distance[inside].argmin()])
        where = f"grid-column:{cell[0] + 1};grid-row:{CELLS - cell[1]}"
        found.append(f'<div style="{where}">{figure_of(clips[clip], names[clip])}</div>')
    return f'<div class="map">{"".join(found)}</div>'


NEIGHBOURS = (
    "Left: a clip; then the clips with the most similar mean features, the most similar first. No labels were used. "
    "Where there are any, a neighbour of another class has a dashed frame."
)
MAP = (
    "{count} clips, one dot each: {method} of their mean features. Clips that the encoder finds alike are near each "
    "other; distances between groups, and the axes themselves, mean nothing. Colours are classes, if there "
    "are any; training did not see them."
)
MOVING = "One clip for every part of the map that has any."
