"""Page of a report: self-contained HTML, numbers as JSON and CSV, pictures as files."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from jinja2 import Environment
from markupsafe import Markup

from medgen.evaluation.checks import CHECKS, load_check
from medgen.evaluation.checks.case import Case, Figure, Findings
from medgen.evaluation.metrics import METRICS
from medgen.evaluation.scores import SECTIONS, Meaning, Score, write_scores
from medgen.evaluation.sets import FeatureSet
from medgen.images import image_grid

EXAMPLES = 24
"""Images of each example grid."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Findings of each check for one generator or folder of images; metrics on features stand under ``metrics``."""

    name: str
    case: Case
    findings: dict[str, Findings]

    @property
    def scores(self) -> list[Score]:
        """All numbers."""
        return [score for found in self.findings.values() for score in found.scores]

    @property
    def warnings(self) -> list[str]:
        """All warnings."""
        return [warning for found in self.findings.values() for warning in found.warnings]


@cache
def meanings() -> dict[str, Meaning]:
    """Meanings of the scores of all metrics and checks, by name, in the order of the rows of a report."""
    tables = [*(metric.meanings for metric in METRICS.values()), *(load_check(name).meanings for name in CHECKS)]
    return {name: meaning for table in tables for name, meaning in table.items()}


def meaning(name: str) -> Meaning:
    """Meaning of a score: that of the longest known name which the score's name continues."""
    plain = name.partition(":")[0]
    known = [key for key in meanings() if plain == key or plain.startswith(f"{key}_")]
    return meanings()[max(known, key=len)] if known else Meaning("fidelity", name, 0, "")


class Column(NamedTuple):
    """Column of the tables; only columns of kind ``judged`` compete, not ``real`` and ``control``."""

    name: str  # `Score.generated` of its numbers
    title: str
    kind: str


class Cell(NamedTuple):
    """Number of a table, its interval if there is one, and whether it is the best of its row."""

    text: str
    interval: str
    best: bool


class Row(NamedTuple):
    """Row of a table: one cell, or None, for each column."""

    title: str
    note: str  # class, network and the like
    text: str  # meaning; empty if the row above has it
    arrow: str  # up where higher is better, down where lower is
    cells: list[Cell | None]


class Section(NamedTuple):
    """Tables of one section: all numbers, and those of single classes if `rows` has them for all classes together."""

    name: str
    columns: list[Column]
    rows: list[Row]
    per_class: list[Row]


def write_page(
    judged: Sequence[Judged], out: str | Path, about: Mapping[str, object], *, patients: bool = True
) -> None:
    """Write ``index.html``, ``metrics.json``, ``metrics.csv`` and the pictures; replaces an earlier report.

    Pictures of real patients are left out unless `patients`; `about` holds further entries of page and JSON file.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_pictures(folder)
    scores = all_scores(judged)
    figures: list[list[tuple[Figure, Markup]]] = []
    files_written: list[str] = []
    for i, item in enumerate(judged):
        suffix = f"_{i + 1}" if len(judged) > 1 else ""
        shown: list[tuple[Figure, Markup]] = []
        found_figures = [figure for found in item.findings.values() for figure in found.figures]
        copied = any(score.name == "near_copies" and score.value > 0 for score in item.scores)
        examples = replace(_examples(item.case.generated), patients=copied)  # near copies show patients
        for figure in (examples, *found_figures):
            if figure.patients and not patients:
                continue
            kind, content = figure.content()
            files_written.append(f"{figure.name}{suffix}{kind}")
            (folder / files_written[-1]).write_bytes(content)
            shown.append((figure, _embedded(figure, kind, content)))
        figures.append(shown)
    warnings = {item.name: item.warnings for item in judged}
    write_scores(
        scores, folder, sources=[item.name for item in judged], warnings=warnings, pictures=files_written, **about
    )
    columns, judge = _columns(judged, scores), judged[0].case.judge.name
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("medgen.evaluation.report").joinpath("report.html.jinja").read_text())
    real = judged[0].case.real
    grid = _examples(real)
    page = template.render(
        judged=[
            {"name": item.name, "warnings": item.warnings, "figures": shown, "n": item.case.generated.n}
            for item, shown in zip(judged, figures, strict=True)
        ],
        columns=columns,
        sections=[section for name in SECTIONS if (section := _section(scores, name, columns, judge)).rows],
        real={"name": real.name, "n": real.n, "grid": _embedded(grid, *grid.content()) if patients else ""},
        judge=judged[0].case.judge,
        about=about,
    )
    (folder / "index.html").write_text(page)


def _remove_pictures(folder: Path) -> None:
    """Remove the pictures of an earlier report, which may show what this one must not."""
    table = folder / "metrics.json"
    if not table.is_file():
        return
    try:
        names = [str(name) for name in json.loads(table.read_text())["pictures"]]
    except (ValueError, KeyError, TypeError):  # not a report's file
        return
    for name in names:
        (folder / Path(name).name).unlink(missing_ok=True)


def all_scores(judged: Sequence[Judged]) -> list[Score]:
    """Scores of everything judged; those of the real images, which come with each source, once."""
    return list(dict.fromkeys(score for item in judged for score in item.scores))


def _columns(judged: Sequence[Judged], scores: Sequence[Score]) -> list[Column]:
    """Columns: judged sources, the real images, then the controls."""
    columns = [Column(name=item.name, title=item.name, kind="judged") for item in judged]
    real = judged[0].case.real.name
    if any(score.generated == real for score in scores):
        columns.append(Column(name=real, title=f"{real} (real)", kind="real"))
    known = {column.name for column in columns}
    others = dict.fromkeys(score.generated for score in scores if score.generated not in known)
    return columns + [Column(name=name, title=name, kind="control") for name in others]


def _section(scores: Sequence[Score], section: str, columns: Sequence[Column], judge: str) -> Section:
    """Build the tables of a section."""
    found: dict[str, dict[str, Score]] = {}
    for score in scores:
        if meaning(score.name).section == section:
            plain, colon, label = score.name.partition(":")
            # The column tells generated from real images.
            key = plain.removesuffix("_real").removesuffix("_generated") + colon + label
            found.setdefault(key, {})[score.generated] = score
    columns = [column for column in columns if any(column.name in by_column for by_column in found.values())]
    rows: list[Row] = []
    per_class: list[Row] = []
    for name, by_column in sorted(found.items(), key=lambda item: _place(item[0])):
        what = meaning(name)
        values = [
            by_column[column.name].value
            for column in columns
            if column.kind == "judged" and column.name in by_column and math.isfinite(by_column[column.name].value)
        ]
        best = max(values, key=lambda value: what.better * value) if len(values) > 1 and what.better else None
        if name.startswith("fd") and len({score.n_generated for score in by_column.values()}) > 1:
            best = None  # they do not compare
        cells = [
            _cell(by_column[column.name], best if column.kind == "judged" else None)
            if column.name in by_column
            else None
            for column in columns
        ]
        part = per_class if ":" in name and name.partition(":")[0] in found else rows
        part.append(
            Row(
                title=what.title,
                note=_note(name, by_column, judge),
                text="" if part and part[-1].title == what.title else what.text,
                arrow={1: "↑", -1: "↓", 0: ""}[what.better],
                cells=cells,
            )
        )
    return Section(name=section, columns=columns, rows=rows, per_class=per_class)


def _place(name: str) -> int:
    """Position of a row, in the order of `meanings`; unknown names come last."""
    order = list(meanings().values())
    return order.index(meaning(name)) if meaning(name) in order else len(order)


def _cell(score: Score, best: float | None) -> Cell:
    interval = "" if score.low is None or score.high is None else f"{_number(score.low)} to {_number(score.high)}"
    return Cell(text=_number(score.value), interval=interval, best=score.value == best)


def _note(name: str, by_column: Mapping[str, Score], judge: str) -> str:
    """Difference between rows of one title: neighbours, kind, class or way, network."""
    plain, _, label = name.partition(":")
    kind = "on training images" if plain.endswith(("_mse_train", "_psnr_train", "_ssim_train")) else ""
    k = plain.partition("_k")[2] if "_k" in plain else ""
    network = next(iter(by_column.values())).network
    parts = [f"k = {k}" if k.isdigit() else "", kind, label.strip(), network if network != judge else ""]
    return ", ".join(part for part in parts if part)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "n/a"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _examples(part: FeatureSet) -> Figure:
    """Images drawn at random by a fixed seed."""
    rows = torch.randperm(part.n, generator=torch.Generator().manual_seed(0))[:EXAMPLES].tolist()
    images = torch.cat([part.images[row : row + 1] for row in rows])
    return Figure(
        name="examples",
        title=f"{len(rows)} images at random",
        caption="Drawn by a fixed seed, none chosen.",
        image=image_grid(images, columns=8, scale=max(1, 96 // images.shape[-1])),
    )


def _embedded(figure: Figure, kind: str, content: bytes) -> Markup:
    """Convert a figure to HTML."""
    if kind == ".svg":
        return Markup(content.decode())
    data = base64.b64encode(content).decode()
    return Markup('<img src="data:image/png;base64,{}" alt="{}">').format(data, figure.title)
