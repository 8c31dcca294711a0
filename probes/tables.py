"""Tables as text: aligned for a terminal, or Markdown."""

from collections.abc import Container, Sequence


def align_columns(rows: Sequence[Sequence[str]], left: Container[int] = (0,)) -> str:
    """Align rows of cells (header first) in columns, two spaces apart; columns in `left` flush left, others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def to_markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, from rows of cells (header first)."""
    header, *others = (f"| {' | '.join(row)} |" for row in rows)
    return [header, "| --- " * len(rows[0]) + "|", *others]
