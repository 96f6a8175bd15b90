"""The bench's results in Markdown, for READMEs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.tables import escape_markdown as escape
from . import statements
from .columns import Cell, cells, columns
from .summary import Bed, format_alpha, summarize


def to_markdown(rows: Sequence[Mapping[str, Any]], score: str = "energy") -> str:
    """
    The big tables of a results store and how to read them.

    Args:
        rows (sequence of `dict`): Rows of the bench, one a finished cell; their order does not matter.
        score (`str`, *optional*, defaults to `"energy"`): The out-of-distribution score that is shown.

    Returns:
        `str`: GitHub-flavoured Markdown with headings of the third level.

    Raises:
        ValueError: If the rows cannot be summed up, see [`summarize`].
    """
    beds = summarize(rows, score)
    everything = list({entry.number: entry for bed in beds for entry in bed.entries}.values())
    blocks = []
    for bed in beds:
        blocks += [f"### {escape(bed.title)}", _table(bed, beds, score), escape(statements.front_statement(bed))]
        notes = (
            statements.seeds_statement(bed),
            statements.shift_statement(bed),
            statements.robustness_statement(bed),
            statements.missing_statement(bed, everything),
            statements.fairness_statement(bed),
            statements.alpha_statement(bed),
        )
        blocks.append(escape(" ".join(note for note in notes if note)))
    blocks.append(
        escape(
            f"In per cent but for the costs; mean ± standard deviation over seeds. Bold: best; ≈: within noise of it; ◆: on the "
            f"Pareto front. {statements.MARKS_NOTE} OOD AUROC and FPR95: mean over the out-of-distribution sets, score {score}. "
            f"{statements.SHIFT_NOTE}"
        )
    )
    return "\n\n".join(blocks) + "\n"


def _table(bed: Bed, beds: Sequence[Bed], score: str) -> str:
    shown = columns(score, beds)
    by_column = [cells(bed, column) for column in shown]
    front = {entry.number for entry in bed.front}
    lines = [
        "| " + " | ".join(["strategy", *(column.title for column in shown)]) + " |",
        "| --- |" + " ---: |" * len(shown),
    ]
    for i, entry in enumerate(bed.entries):
        name = escape(entry.label) + (" ◆" if entry.number in front else "")
        if entry.kind == "chosen":
            name += f" α {', '.join(map(format_alpha, entry.alphas))}"
        lines.append("| " + " | ".join([name, *(_cell(column[i]) for column in by_column)]) + " |")
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    text = f"{cell.text} ± {cell.spread}" if cell.spread else cell.text
    if cell.mark == "best":
        text = f"**{text}**"
    elif cell.mark == "noise":
        text = f"{text} ≈"
    return f"{text} (n={cell.seeds})" if cell.seeds else text
