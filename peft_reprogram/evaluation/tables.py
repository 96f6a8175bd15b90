"""Results as tables, for people: Markdown and HTML from one description."""

from __future__ import annotations

import html as html_escaping
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .results import ModelMeasures, Results


# More classes than this make a table that nobody reads.
MOST_CLASSES = 30


@dataclass(frozen=True)
class Table:
    """
    One table.

    Args:
        title (`str`): What it shows.
        header (`list[str]`): Column titles.
        rows (`list[list[str]]`): Cells.
        note (`str`, *optional*): How to read it.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


def tables(results: Results) -> Iterator[Table]:
    """The tables of an evaluation, those that have something to show."""
    models = results.models
    yield _accuracy_table(models, results)
    by_class = next(iter(models.values())).id["class_accuracy"]
    if len(by_class) <= MOST_CLASSES:
        rows = [
            [name, *(_percent(model.id["class_accuracy"].get(name)) for model in models.values())] for name in by_class
        ]
        yield Table("In-distribution accuracy by class (%)", ["class", *models], rows)
    if any(model.shifts for model in models.values()):
        yield _shift_table(models)
    if any(model.corruptions for model in models.values()):
        yield _corruption_table(models)
    convention = results.conventions
    note = f"AUROC / FPR at TPR {convention['tpr']:.0%} / the same with OOD positive. Convention {convention['preset']}: {convention['preset_description']}."
    yield from _ood_tables("Out-of-distribution detection (%)", {name: m.ood for name, m in models.items()}, note)
    yield from _ood_tables(
        "Full-spectrum detection (%)",
        {name: m.ood_full_spectrum for name, m in models.items()},
        f"Shifted images count as in-distribution. {note}",
    )
    yield _calibration_table(models, convention)


def markdown(results: Results) -> str:
    """See [`Results.to_markdown`]."""
    blocks = []
    for table in tables(results):
        cells = [[escape_markdown(cell) for cell in row] for row in (table.header, *table.rows)]
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        lines.insert(1, "|" + " --- |" * 1 + " ---: |" * (len(table.header) - 1))
        # Notes name sets and quote conventions, which are anybody's.
        note = f"\n\n{escape_markdown(table.note)}" if table.note else ""
        blocks.append(f"### {table.title}\n\n" + "\n".join(lines) + note)
    return "\n\n".join([*blocks, escape_markdown(_provenance(results))]) + "\n"


def html(results: Results) -> str:
    """See [`Results.to_html`]."""
    escape = html_escaping.escape
    blocks = []
    for table in tables(results):
        head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
        body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
        note = f"\n<p>{escape(table.note)}</p>" if table.note else ""
        blocks.append(
            f"<section>\n<h3>{escape(table.title)}</h3>\n<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"
            f"</table>{note}\n</section>"
        )
    return "\n".join([*blocks, f"<p>{escape(_provenance(results))}</p>"]) + "\n"


def _accuracy_table(models: Mapping[str, ModelMeasures], results: Results) -> Table:
    has_shifts = any(model.shifts for model in models.values())
    has_corruptions = any(model.corruption_summary for model in models.values())
    columns: dict[str, Callable[[ModelMeasures], Any]] = {
        "ID": lambda m: m.id["accuracy"],
        "ID balanced": lambda m: m.id["balanced_accuracy"],
    }
    if has_shifts:
        columns["mean shift"] = lambda m: m.shift_summary.get("mean")
        columns["worst shift"] = lambda m: m.shift_summary.get("worst")
        columns["kept of ID"] = lambda m: m.shift_summary.get("mean_relative_robustness")
    if has_corruptions:
        columns["mCE raw"] = lambda m: m.corruption_summary.get("none", {}).get("mce")
    if any("alexnet" in model.corruption_summary for model in models.values()):
        columns["mCE / AlexNet"] = lambda m: m.corruption_summary.get("alexnet", {}).get("mce")
    rows = [[name, *(_percent(get(measures)) for get in columns.values())] for name, measures in models.items()]
    counts = ", ".join(
        f"{name} {entry['n']:,}" for name, entry in results.sets.items() if entry["role"] in ("id", "shift")
    )
    note = f"Images: {counts}. Weights selected by: {results.selection}."
    return Table("Accuracy (%)", ["model", *columns], rows, note)


def _shift_table(models: Mapping[str, ModelMeasures]) -> Table:
    rows = []
    for name in _keys(model.shifts for model in models.values()):
        for title, key in (("accuracy", "accuracy"), ("balanced", "balanced_accuracy")):
            cells = [_percent(model.shifts.get(name, {}).get(key)) for model in models.values()]
            rows.append([f"{name}, {title}", *cells])
        kept = [model.shift_summary.get("relative_robustness", {}).get(name) for model in models.values()]
        rows.append([f"{name}, kept of ID", *map(_percent, kept)])
    return Table("Accuracy under shift (%)", ["shift", *models], rows)


def _corruption_table(models: Mapping[str, ModelMeasures]) -> Table:
    rows = []
    for name in _keys(model.corruptions for model in models.values()):
        means = []
        for model in models.values():
            accuracies = list(model.corruptions.get(name, {}).values())
            means.append(sum(accuracies) / len(accuracies) if accuracies else None)
        rows.append([name, *map(_percent, means)])
    severities = _keys(entry for model in models.values() for entry in model.corruptions.values())
    return Table(
        "Accuracy under corruption (%)", ["corruption", *models], rows, f"Mean of severities {', '.join(severities)}."
    )


def _ood_tables(title: str, ood: Mapping[str, dict[str, dict[str, dict[str, Any]]]], note: str) -> Iterator[Table]:
    sets = _keys(by_set for scores in ood.values() for by_set in scores.values())
    if not sets:
        return
    rows = []
    for score in _keys(ood.values()):
        for model, scores in ood.items():
            if score in scores:
                cells = [_ood_cell(scores[score].get(name)) for name in sets]
                rows.append([score, model, *cells, _ood_cell(_mean(list(scores[score].values())))])
    yield Table(title, ["score", "model", *sets, "mean"], rows, note)


def _calibration_table(models: Mapping[str, ModelMeasures], convention: dict[str, Any]) -> Table:
    rows = []
    for name, model in models.items():
        scaled = model.calibration.get("scaled")
        for label, entry in (
            (name, model.calibration),
            (f"{name}, T = {scaled['temperature']:.3g}" if scaled else "", scaled),
        ):
            if entry:
                rows.append(
                    [label, *(_percent(entry[key]) for key in ("ece", "ece_equal_mass", "confidence")),
                     *(f"{entry[key]:.3f}" for key in ("nll", "brier"))]
                )  # fmt: skip
    header = ["model", "ECE (%)", "ECE equal mass (%)", "confidence (%)", "NLL", "Brier"]
    return Table("Calibration on the in-distribution set", header, rows, f"{convention['calibration_bins']} bins.")


def _provenance(results: Results) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    return f"Seed {results.seed}. Made with {packages}."


def _mean(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: sum(entry[key] for entry in entries) / len(entries) for key in ("auroc", "fpr", "fpr_ood_positive")}


def _ood_cell(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return "–"
    return " / ".join(_percent(metrics[key]) for key in ("auroc", "fpr", "fpr_ood_positive"))


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def _keys(mappings: Any) -> list[str]:
    """The keys of all mappings, in the order in which they turn up."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def escape_markdown(text: str) -> str:
    """Text as it is, on one line of a Markdown table."""
    text = html_escaping.escape(" ".join(text.split()), quote=False)
    # An underscore within a word is one; elsewhere it may begin emphasis.
    return re.sub(r"([\\`*\[\]|]|\b_|_\b)", r"\\\1", text)
