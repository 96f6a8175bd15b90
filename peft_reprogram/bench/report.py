"""The bench's report: one HTML file that needs nothing else, readable in light and dark, on a desk and on a phone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

from markupsafe import Markup, escape

from ..atomic import replacing
from . import statements
from .columns import MISSING, Cell, Column, cells, columns, count, percent
from .scatter import PALETTE, color_index, scatter
from .summary import ID_ACCURACY, MEAN_SHIFT, TRAINED_PARAMETERS, Bed, Entry, Point, format_alpha, summarize


def write_report(rows: Sequence[Mapping[str, Any]], path: Union[str, Path], score: str = "energy") -> None:
    """
    Writes the report of a results store; the file appears whole or not at all. Needs matplotlib.

    Args:
        rows (sequence of `dict`): Rows of the bench, one a finished cell; their order does not matter.
        path (`str` or `Path`): The HTML file.
        score (`str`, *optional*, defaults to `"energy"`): The out-of-distribution score of tables and drawings, the same for
            all strategies.

    Raises:
        ValueError: If the rows cannot be summed up, see [`summarize`].
        ImportError: If matplotlib is not installed.
    """
    page = render_report(rows, score)
    with replacing(Path(path)) as temporary:
        # Names may hold halves of surrogate pairs, which no encoding knows.
        temporary.write_text(page, "utf-8", errors="replace")


def render_report(rows: Sequence[Mapping[str, Any]], score: str = "energy") -> str:
    """The report as text; see [`write_report`]."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    beds = summarize(rows, score)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["alpha"] = format_alpha
    environment.filters["breakable"] = _breakable
    everything = _every_entry(beds)
    colors = color_index(list(dict.fromkeys(entry.strategy for entry in everything if entry.kind != "only")))
    return environment.get_template("report_template.html").render(
        overview=statements.overview_statement(beds),
        marks_note=statements.MARKS_NOTE,
        shift_note=statements.SHIFT_NOTE,
        score=score,
        palette=PALETTE,
        colors=colors,
        fronts=_fronts(beds, everything),
        beds=[_bed_view(i, bed, beds, everything, colors, score) for i, bed in enumerate(beds)],
        versions=", ".join(_versions(beds)),
        commands="\n".join(
            dict.fromkeys(str(row["command"]) for bed in beds for row in bed.rows if row.get("command"))
        ),
    )


@dataclass(frozen=True)
class _Table:
    caption: str
    titles: list[str]
    lines: list[tuple[Entry, list[Cell]]]
    front: set[int]
    zero_shot: list[Optional[float]]

    @property
    def has_zero_shot(self) -> bool:
        return any(value is not None for value in self.zero_shot)


def _table(bed: Bed, caption: str, shown: Sequence[Column]) -> _Table:
    by_column = [cells(bed, column) for column in shown]
    zero_shot = next((entry for entry in bed.entries if entry.strategy == "zero_shot"), None)
    return _Table(
        caption,
        [column.title for column in shown],
        [(entry, [column[i] for column in by_column]) for i, entry in enumerate(bed.entries)],
        {entry.number for entry in bed.front},
        [zero_shot.get(column.key) if zero_shot else None for column in shown],
    )


def _bed_view(
    index: int, bed: Bed, beds: list[Bed], everything: list[Entry], colors: Mapping[str, int], score: str
) -> dict[str, Any]:
    missing = statements.missing_statement(bed, everything)
    notes = (
        statements.seeds_statement(bed),
        statements.shift_statement(bed),
        statements.robustness_statement(bed),
        missing,
    )
    shown = [Column(name, ("shift", name, "accuracy"), percent, 1) for name in bed.shifts]
    if bed.corruptions:
        shown.append(Column("corruptions (mean)", ("corruption",), percent, 1))
    return {
        "anchor": f"bed-{index}",
        "title": bed.title,
        "entries": bed.entries,
        "front_sentence": statements.front_statement(bed),
        "main": _table(bed, f"Results on {bed.title}", columns(score, beds)),
        "note": " ".join(note for note in notes if note),
        "drawings": _drawings(index, bed, colors, score),
        "shifts": _table(bed, "Accuracy on each shift", shown) if shown else None,
        "parts": list(_parts(bed, score)),
        "fairness": statements.fairness_statement(bed),
        "alpha": statements.alpha_statement(bed),
        "trials": [
            {
                "strategy": search.strategy,
                "options": statements.format_options(options),
                "accuracy": statements.optional_percent(accuracy),
                "seconds": MISSING if spent is None else f"{spent:.1f}",
                "chosen": chosen,
            }
            for search in statements.searches(bed)
            for options, accuracy, spent, chosen in search.trials
        ],
        "chosen_alphas": statements.chosen_alphas(bed),
    }


def _drawings(index: int, bed: Bed, colors: Mapping[str, int], score: str) -> list[dict[str, Any]]:
    x = (ID_ACCURACY, "ID accuracy")
    found = []
    for number, (title, y) in enumerate(
        (
            ("ID accuracy and accuracy under shift", (MEAN_SHIFT, "mean shift accuracy")),
            ("ID accuracy and OOD detection", (("ood", score, "auroc"), "mean OOD AUROC")),
        )
    ):
        drawing = scatter(bed, x, y, colors, f"d{index}-{number}")
        if drawing is not None:
            label = f'<svg role="img" aria-label="{title}"'
            found.append({"title": title, "svg": Markup(drawing.replace("<svg", label, 1))})
    return found


def _parts(bed: Bed, score: str) -> Iterable[_Table]:
    """The tables that are folded away."""
    if bed.shifts:
        shown = [Column(name, ("shift", name, "balanced_accuracy"), percent, 1) for name in bed.shifts]
        yield _table(bed, "Balanced accuracy on each shift", shown)
    if bed.corruptions:
        shown = [Column(name.replace("_", " "), ("corruption", name), percent, 1) for name in bed.corruptions]
        yield _table(bed, "Accuracy under each corruption", shown)
    if score in bed.ood:
        near = statements.near_sets(bed)
        shown = []
        for name in bed.ood[score]:
            title = f"{name} (near)" if name in near else name
            shown.append(Column(f"{title}: AUROC", ("ood", score, name, "auroc"), percent, 1))
            shown.append(Column("FPR95", ("ood", score, name, "fpr"), percent, -1))
        yield _table(bed, f"Each out-of-distribution set, score {score}", shown)
    if bed.ood:
        shown = []
        for name in bed.ood:
            shown.append(Column(f"{name}: AUROC", ("ood", name, "auroc"), percent, 1))
            shown.append(Column("FPR95", ("ood", name, "fpr"), percent, -1))
        yield _table(bed, "All scores, means over the out-of-distribution sets", shown)
    if bed.curves:
        yield _curve_table(bed, score)


def _curve_table(bed: Bed, score: str) -> _Table:
    shown = [
        Column("validation accuracy", ("validation_accuracy",), percent),
        Column("ID accuracy", ID_ACCURACY, percent),
        Column("mean shift", MEAN_SHIFT, percent),
        Column("OOD AUROC", ("ood", score, "auroc"), percent),
    ]
    numbers = {entry.strategy: entry.number for entry in reversed(bed.entries)}
    points = [
        _curve_entry(point, numbers.get(strategy, 0), strategy)
        for strategy, curve in bed.curves.items()
        for point in curve
    ]
    return _Table(
        "The whole curves over α",
        [column.title for column in shown],
        [
            (point, [Cell(column.format(mean)) if (mean := point.get(column.key)) is not None else Cell(MISSING) for column in shown])
            for point in points
        ],
        set(),
        [],
    )  # fmt: skip


def _curve_entry(point: Point, number: int, strategy: str) -> Entry:
    return Entry(point.alphas, point.statistics, number, strategy, "curve", strategy)


def _breakable(name: str) -> Markup:
    """A name that a narrow column may break where a reader would."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _every_entry(beds: Iterable[Bed]) -> list[Entry]:
    by_number = {entry.number: entry for bed in beds for entry in bed.entries}
    return [by_number[number] for number in sorted(by_number)]


def _fronts(beds: Sequence[Bed], everything: Sequence[Entry]) -> list[tuple[Entry, list[str], str, str]]:
    lines = []
    for entry in everything:
        marks = [_front_mark(bed, entry.number) for bed in beds]
        costs = {
            count(cost)
            for bed in beds
            for other in bed.entries
            if other.number == entry.number and (cost := other.get(TRAINED_PARAMETERS)) is not None
        }
        measured = sum(mark != MISSING for mark in marks)
        trained = sorted(costs)[0] if len(costs) == 1 else "differs" if costs else MISSING
        # What was chosen differs from bed to bed.
        plain = Entry((), entry.statistics, entry.number, entry.strategy, entry.kind, entry.label)
        lines.append((plain, marks, f"{marks.count('◆')} of {measured}" if measured else MISSING, trained))
    return lines


def _front_mark(bed: Bed, number: int) -> str:
    entry = next((entry for entry in bed.entries if entry.number == number), None)
    if entry is None or not all(axis in entry.statistics for axis in bed.axes):
        return MISSING
    return "◆" if entry in bed.front else "·"


def _versions(beds: Iterable[Bed]) -> list[str]:
    found: dict[str, None] = {}
    for bed in beds:
        for row in bed.rows:
            for name, version in (row.get("versions") or {}).items():
                found[f"{name} {version}"] = None
    return list(found)
