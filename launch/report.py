"""One HTML page about a run: what was learned, how it went, what it looks like. No script, no outside file."""

import html
from dataclasses import dataclass
from pathlib import Path

from probes.evaluate import Result
from probes.metrics import Score

STYLE = """
body { font: 15px/1.55 system-ui, sans-serif; color: #1d2433; max-width: 1080px; margin: 2.5rem auto;
  padding: 0 1.2rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.lead { color: #56607a; margin-top: 0 } img { max-width: 100%; height: auto }
table { border-collapse: collapse; margin: .6rem 0 }
th, td { padding: .35rem .9rem; text-align: right; white-space: nowrap }
th { font-weight: 600; border-bottom: 2px solid #1d2433 } td { border-bottom: 1px solid #e3e7ef }
th:first-child, td:first-child { text-align: left } tr.ours td { font-weight: 600; background: #f0f5ff }
span { color: #7a8499; font-weight: 400; font-size: .85em }
"""


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph of plain words, and a picture or table as HTML."""

    title: str
    words: str
    body: str


def write_report(path: Path, title: str, lead: str, sections: list[Section]) -> None:
    """Write the page to `path`."""
    parts = [f"<h2>{html.escape(s.title)}</h2><p>{html.escape(s.words)}</p>{s.body}" for s in sections]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>{"".join(parts)}</body></html>\n'
    )


def result_table(results: list[Result], ours: str = "encoder") -> str:
    """Top-1 with its interval: a row a kind of features, a column a head."""
    heads = list(dict.fromkeys(result.head for result in results))
    found = {(result.features, result.head): result.score for result in results}
    rows = []
    for name in dict.fromkeys(result.features for result in results):
        cells = []
        for head in heads:
            score = found.get((name, head))
            cells.append(f"<td>{_percent(score)}</td>" if score else "<td>-</td>")
        mark = ' class="ours"' if name == ours else ""
        rows.append(f"<tr{mark}><td>{html.escape(name)}</td>{''.join(cells)}</tr>")
    header = "".join(f"<th>{head}</th>" for head in heads)
    return f"<table><tr><th>features</th>{header}</tr>{''.join(rows)}</table>"


def _percent(score: Score) -> str:
    return f"{100 * score.top1:.1f} % <span>{100 * score.low:.1f} to {100 * score.high:.1f}</span>"
