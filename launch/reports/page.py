"""A self-contained HTML page about a run or a probe: pictures, tables and text. No scripts, no external files."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STYLE = """
body { font: 15px/1.55 system-ui, sans-serif; color: #1d2433; background: #fff; max-width: 1080px;
  margin: 2.5rem auto; padding: 0 1.2rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.lead { color: #56607a; margin-top: 0 } img { max-width: 100%; height: auto }
table { border-collapse: collapse; margin: .6rem 0; display: block; overflow-x: auto; max-width: 100% }
th, td { padding: .35rem .9rem; text-align: right; white-space: nowrap }
th { font-weight: 600; border-bottom: 2px solid #1d2433 } td { border-bottom: 1px solid #e3e7ef }
th:first-child, td:first-child { text-align: left } tr.ours td { font-weight: 600; background: #f0f5ff }
span { color: #7a8499; font-weight: 400; font-size: .85em }
div.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(31rem, 100%), 1fr)); gap: .8rem 1.4rem }
div.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: .6rem }
div.thumbs { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.6rem, 1fr)); gap: .6rem; margin: .9rem 0;
  max-width: 60rem }
div.pairs { display: flex; flex-wrap: wrap; gap: .8rem 1.6rem } div.pairs > div { display: flex; gap: .3rem }
div.pairs figure { width: 7rem } div.wide { overflow-x: auto } div.wide img { max-width: none }
div.map { display: grid; grid-template-columns: repeat(7, 1fr); gap: .25rem; max-width: 50rem; padding: .4rem;
  background: #f4f6fa; border-radius: 6px }
div.map figcaption { font-size: .62rem; line-height: 1.2; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap }
img.clip { width: 100%; display: block } figure.first img { outline: 2px solid #2f6fde; outline-offset: 1px }
figure.first figcaption { font-weight: 600 } figure.other img { outline: 2px dashed #c4475b; outline-offset: 1px }
figure { margin: 0 } figure img { border-radius: 4px } figcaption { font-size: .85em; overflow-wrap: anywhere }
h3 { font-size: 1rem; margin-bottom: .3rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.4rem }
dt { color: #56607a } dd { margin: 0; overflow-wrap: anywhere } ul { padding-left: 1.2rem }
@media (max-width: 600px) { body { margin: 1rem auto; padding: 0 .8rem } th, td { padding: .3rem .5rem }
  dl { grid-template-columns: 1fr } dd { margin: 0 0 .4rem } div.thumbs { grid-template-columns: repeat(3, 1fr) } }
"""


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph of text, and a picture or table as HTML."""

    title: str
    text: str
    body: str


def write_report(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page to `path`."""
    parts = [f"<h2>{html.escape(s.title)}</h2><p>{html.escape(s.text)}</p>{s.body}" for s in sections]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>{"".join(parts)}</body></html>\n'
    )


def result_table(rows: Sequence[Mapping[str, Any]], ours: str = "encoder") -> str:
    """Top-1, or the mean absolute error, with its interval: one row per feature type, one column per head.

    rows: those of a results.json.
    """
    heads = list(dict.fromkeys(row["head"] for row in rows))
    found = {(row["features"], row["head"]): show_score(row) for row in rows}
    lines = []
    for name in dict.fromkeys(row["features"] for row in rows):
        cells = "".join(f"<td>{found.get((name, head), '-')}</td>" for head in heads)
        mark = ' class="ours"' if name == ours else ""
        lines.append(f"<tr{mark}><td>{html.escape(name)}</td>{cells}</tr>")
    header = "".join(f"<th>{head}</th>" for head in heads)
    return f"<table><tr><th>features</th>{header}</tr>{''.join(lines)}</table>"


def lay_out_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """An HTML table; the cells are HTML."""
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in header)}</tr>{rows}</table>"


def show_score(row: Mapping[str, Any]) -> str:
    """The main score of a row of results.json with its interval, as HTML."""
    if "top1" in row:
        return show_share(row["top1"], (row["low"], row["high"]))
    low, high = row["bootstrap"]["mae"]
    return f"{row['mae']:.4g} <span>{low:.4g} to {high:.4g}</span>"


def show_share(value: float, interval: Sequence[float]) -> str:
    """A fraction as a percentage with its interval, as HTML."""
    return f"{100 * value:.1f} % <span>{100 * interval[0]:.1f} to {100 * interval[1]:.1f}</span>"
