"""Tables as text."""

from probes.tables import align_columns, to_markdown

ROWS = [["run", "steps", ""], ["a", "12000", "<- fastest"], ["longer", "-", ""]]


def test_columns_are_aligned_and_lines_end_without_blanks() -> None:
    assert align_columns(ROWS, left=(0, 2)) == (
        "run     steps\n"
        "a       12000  <- fastest\n"
        "longer      -"
    )  # fmt: skip


def test_markdown_has_a_rule_below_the_header() -> None:
    assert to_markdown([["a", "b"], ["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]
