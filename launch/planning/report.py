"""The page about a planning run: the table, animated episodes, imagined and real paths."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from launch.planning.config import PlanConfig
from launch.planning.episodes import Track
from launch.reports.page import Section, lay_out_table, write_report
from launch.reports.pictures import INK, embed, make_gif

SCALE = 2  # enlargement of the frames in an animation
FRAME_MS, END_MS = 80, 1200  # how long a frame and the last frame of an animation are shown
SHOWN_PLANS = 4  # plans of an episode in the picture of paths


def write_page(
    path: Path, results: dict[str, Any], rows: list[list[str]], tracks: Sequence[Track], config: PlanConfig
) -> None:
    """Write the report, and its animations as files beside it."""
    chosen = [
        *[(track, "success") for track in tracks if track.success][: config.pictures],
        *[(track, "failure") for track in tracks if not track.success][: config.pictures],
    ]
    cells = []
    for number, (track, word) in enumerate(chosen):
        content = animate(track)
        (path.parent / f"{word}-{number}.gif").write_bytes(content)
        data = base64.b64encode(content).decode()
        cells.append(
            f'<figure><img src="data:image/gif;base64,{data}" alt="{word}"><figcaption>{word}</figcaption></figure>'
        )
    header, *lines = rows
    sections = [
        Section(
            "Success", TEXTS["table"], lay_out_table(header, [[html.escape(cell) for cell in line] for line in lines])
        ),
        Section("Episodes", TEXTS["episodes"], f'<div class="grid">{"".join(cells)}</div>'),
    ]
    drawn = [(track, word) for track, word in chosen if track.planned]
    if drawn:
        sections.append(Section("Imagined and real paths", TEXTS["paths"], embed(draw_paths(drawn), "paths")))
    sections.append(Section("The world model", TEXTS["gauges"], show_gauges(results["gauges"])))
    lead = f"{config.model} in {config.env}, {config.episodes} episodes of {config.steps} actions, seed {config.seed}."
    write_report(path, "Planning in a world model", lead, sections)


def animate(track: Track) -> bytes:
    """A GIF of an episode: what happens on the left, the goal on the right."""
    gap = np.full((track.goal_frame.shape[0], 2, 3), 255, np.uint8)
    pictures = [
        Image.fromarray(np.concatenate([frame, gap, track.goal_frame], 1)).resize(
            (SCALE * (2 * frame.shape[1] + 2), SCALE * frame.shape[0]), Image.Resampling.NEAREST
        )
        for frame in track.frames
    ]
    return make_gif(pictures, FRAME_MS, END_MS)


def draw_paths(tracks: Sequence[tuple[Track, str]]) -> Figure:
    """Each episode's real path over its first frame, and what some of its plans imagined."""
    figure = Figure(figsize=(3.2 * len(tracks), 3.5))
    axes = figure.subplots(1, len(tracks), squeeze=False)[0]
    for axis, (track, word) in zip(axes, tracks, strict=True):
        axis.imshow(track.frames[0])
        if track.positions:
            real = np.stack(track.positions)
            axis.plot(real[:, 0], real[:, 1], color=INK, linewidth=2, label="real")
        times = list(track.planned)
        for number, time in enumerate(times[:: max(1, len(times) // SHOWN_PLANS)][:SHOWN_PLANS]):
            path: npt.NDArray[Any] = track.planned[time]
            label = "imagined" if number == 0 else None
            axis.plot(
                path[:, 0], path[:, 1], "o-", color="#e8743b", markersize=2.5, linewidth=1, alpha=0.8, label=label
            )
        axis.set_title(word, fontsize=10)
        axis.set_axis_off()
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    return figure


def show_gauges(gauges: dict[str, Any]) -> str:
    """The gauges as tables."""
    facts = [["linear probe of position, R2", f"{gauges['probe_r2']:.3f}"]]
    if "within_clip" in gauges:
        facts.append(["within-clip share of the variance", f"{gauges['within_clip']:.3f}"])
    for steps, share in gauges.get("through_walls", {}).items():
        facts.append([f"imagined through a wall after {steps} steps of pushing", f"{100 * share:.0f} %"])
    lines = [
        [steps, f"{row['relative']:.3f}", f"{row['position']:.2f}", f"{row['still']:.2f}"]
        for steps, row in gauges.get("rollout", {}).items()
    ]
    header = ["steps imagined", "error / standing still", "error of position", "standing still"]
    return lay_out_table(["gauge", "value"], facts) + (lay_out_table(header, lines) if lines else "")


TEXTS = {
    "table": (
        "Share of episodes with success after the last action, and at any time, with 95 % Wilson intervals. Every row "
        "plays the same episodes. The planner on the true simulator is the ceiling: what it misses, no model can gain."
    ),
    "episodes": "Left: the episode. Right: the goal that the planner is shown.",
    "paths": (
        "Dark: the path taken. Orange: what some plans imagined, read from the latents by a linear probe. An imagined "
        "path through a wall shows that the model does not know the wall; one beside the dark line, that it drifts."
    ),
    "gauges": (
        "The error of imagined rollouts against a state that stands still, and what happens to imagined dots that are "
        "pushed at a wall."
    ),
}
