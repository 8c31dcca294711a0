"""The report of `decode`: pictures of what the model imagines, and how close they are."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.reports.page import Section, lay_out_table, write_report
from launch.reports.pictures import embed
from launch.seeing.pictures import Frames, draw_still

SHOWN = 3  # clips per kind of mask
NOTE = (
    "PSNR and SSIM over the hidden pixels of held-out clips, mean with 95 % interval. Decoded targets are no upper "
    "bound of understanding: features of an encoder with random weights often decode better. What counts is how far "
    "predictions stand above the mean visible frame and above another clip's predictions."
)


def write_page(
    path: Path,
    source: str,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    panels: Mapping[str, Sequence[tuple[str, Mapping[str, Frames]]]],
) -> None:
    """Write the page; `panels` has (caption, panels) of some clips for each kind of mask."""
    sections = []
    for name, rows in results.items():
        pictures = "".join(
            f"<figure>{embed(draw_still(shown), f'clip, visible, imagined, truth: {caption}')}"
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            for caption, shown in panels[name][:SHOWN]
        )
        sections.append(Section(f"Mask {name}: what it imagines", "Frames from left to right.", pictures))
        whole = [row for row in rows if row["class"] == "all"]
        table = lay_out_table(
            ["shown", "PSNR, dB", "SSIM", "dB above the mean frame"],
            [[html.escape(row["features"]), *(_cell(row, key) for key in ("psnr", "ssim", "gain"))] for row in whole],
        )
        sections.append(Section(f"Mask {name}: how close", NOTE, _scrolling(table)))
        by_class = _class_table(rows)
        if by_class:
            text = "PSNR of the predictions (decoder on predictions) minus that of the mean visible frame, in dB."
            sections.append(Section(f"Mask {name}: by class", text, _scrolling(by_class)))
    write_report(path, "What it imagines", source, sections)


def result_lines(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """Rows of a text table: mask, what is shown, PSNR, SSIM, gain."""
    lines = [["mask", "shown", "PSNR", "SSIM", "above mean frame"]]
    for name, rows in results.items():
        for row in rows:
            if row["class"] == "all":
                numbers = [f"{row['psnr']:.2f}", f"{row['ssim']:.3f}", f"{row['gain']:+.2f}"]
                lines.append([name, row["features"], *numbers])
    return lines


def _class_table(rows: Sequence[Mapping[str, Any]]) -> str:
    chosen = [row for row in rows if row["features"] == "predictions, decoder on predictions" and row["class"] != "all"]
    if not chosen:
        return ""
    lines = [[html.escape(row["class"]), str(row["clips"]), _cell(row, "gain"), _cell(row, "psnr")] for row in chosen]
    return lay_out_table(["class", "clips", "dB above the mean frame", "PSNR, dB"], lines)


def _cell(row: Mapping[str, Any], key: str) -> str:
    digits = 3 if key == "ssim" else 2
    low, high = row[f"{key}_interval"]
    return f"{row[key]:.{digits}f} <span>{low:.{digits}f} to {high:.{digits}f}</span>"


def _scrolling(table: str) -> str:
    """A table that scrolls by itself where the screen is narrower than it."""
    return f'<div style="overflow-x:auto">{table}</div>'
