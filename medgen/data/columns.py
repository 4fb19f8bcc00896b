"""Text tables by column, and labels from their columns."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from csv import reader
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.labels import LabelSpace

LabelPolicy: TypeAlias = Literal["ones", "zeros", "ignore", "drop"]

_UNCERTAIN = -1.0


@dataclass(frozen=True)
class Columns:
    """A table of text: the stripped cells of each column, and the path that messages name."""

    path: str
    values: dict[str, list[str]]

    @classmethod
    def parse(cls, data: bytes, path: str) -> Columns:
        """Parse a CSV file with a header line, separated by commas, semicolons or tabs.

        Raises:
            ValueError: If it is empty or not text.
        """
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a UTF-8 text table: {error}") from error
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        rows = list(reader(io.StringIO(text, newline=""), delimiter=delimiter))
        if len(rows) < 2:
            raise ValueError(f"{path} holds no rows; it needs a header line and one line per image")
        header = rows.pop(0)
        cells = [row + [""] * (len(header) - len(row)) for row in rows if row]
        return cls(path, {name.strip(): [row[place].strip() for row in cells] for place, name in enumerate(header)})

    def __len__(self) -> int:
        return len(next(iter(self.values.values()), []))

    def __getitem__(self, name: str) -> list[str]:
        if name not in self.values:
            raise ValueError(f"{self.path} has no column {name!r}; its columns are {', '.join(self.values)}")
        return self.values[name]

    def keep(self, mask: NDArray[np.bool_]) -> Columns:
        """Keep the rows where the mask is true."""
        rows = np.flatnonzero(mask).tolist()
        return Columns(self.path, {name: [cells[row] for row in rows] for name, cells in self.values.items()})

    def joined(self, more: Columns) -> Columns:
        """Append the rows of another table with the same columns."""
        return Columns(self.path, {name: cells + more[name] for name, cells in self.values.items()})

    def with_column(self, name: str, cells: list[str]) -> Columns:
        """Add a column."""
        return Columns(self.path, self.values | {name: cells})

    def where(self, conditions: Mapping[str, str | Sequence[str]]) -> Columns:
        """Keep the rows whose cells are among the allowed values of every named column.

        Raises:
            ValueError: If a column does not exist or no row is left.
        """
        mask = np.ones(len(self), dtype=bool)
        for name, allowed in conditions.items():
            choices = {allowed} if isinstance(allowed, str) else set(allowed)
            mask &= np.array([cell in choices for cell in self[name]], dtype=bool)
        if not mask.any():
            raise ValueError(f"no row of {self.path} is left by where: {dict(conditions)}")
        return self.keep(mask)


@dataclass(frozen=True)
class Labels:
    """Labels of all rows.

    Attributes:
        space: Kind and names of the labels.
        values: (n,) int64 classes with -1 for unknown, or (n, K) float32 with NaN for unknown.
        keep: (n,) false for rows that a policy drops.
    """

    space: LabelSpace
    values: Tensor
    keep: NDArray[np.bool_]


def class_labels(
    columns: Columns, name: str, classes: Sequence[str] | None, uncertain: LabelPolicy, blank: LabelPolicy
) -> Labels:
    """One class per row, from a column of class names or numbers.

    Args:
        columns: The table.
        name: The label column.
        classes: Class names in order; by default all that occur, sorted (by size if all are numbers).
        uncertain: Meaning of -1 unless it is a class: class 1 (``ones``), class 0 (``zeros``), unknown (``ignore``), or
            the row is left out (``drop``).
        blank: Meaning of an empty cell, as for ``uncertain``.

    Raises:
        ValueError: If a label is not among ``classes``, or a policy of ones or zeros meets other than two classes.
    """
    cells = columns[name]
    occurring = {cell for cell in cells if cell and _number(cell) != _UNCERTAIN}
    order = list(classes) if classes is not None else sorted(occurring)
    if classes is None and all(_number(label) is not None for label in order):
        order.sort(key=float)  # 0, 1, 2, 10, not 0, 1, 10, 2
    number = {label: position for position, label in enumerate(order)}
    codes = np.empty(len(cells))
    unknown: Counter[str] = Counter()
    for row, cell in enumerate(cells):
        if cell in number:
            codes[row] = number[cell]
        elif not cell:
            codes[row] = np.nan
        elif (value := _number(cell)) is not None and (value == _UNCERTAIN or value in range(len(order))):
            codes[row] = value
        else:
            unknown[cell] += 1
    if unknown:
        listed = ", ".join(f"{label!r} ({count} rows)" for label, count in unknown.most_common(5))
        raise ValueError(
            f"column {name!r} of {columns.path} holds labels that are not in label_names {order}: {listed}; add them, "
            f"spell both alike, or leave their rows out with where: {{{name}: {order}}}"
        )
    values, keep = _settle(codes[:, None], name, uncertain, blank, binary=len(order) == 2)
    numbers = np.nan_to_num(values[:, 0], nan=-1).astype(np.int64)
    return Labels(LabelSpace("single", tuple(order)), torch.from_numpy(numbers), keep)


def finding_labels(columns: Columns, names: Sequence[str], uncertain: LabelPolicy, blank: LabelPolicy) -> Labels:
    """Findings of each row, from one column of 1, 0, -1 (uncertain) or empty per finding.

    Raises:
        ValueError: If a cell holds anything else.
    """
    values = _numbers(columns, names)
    wrong = np.argwhere(~np.isin(values, (0, 1, _UNCERTAIN)) & ~np.isnan(values))
    if len(wrong):
        row, place = wrong[0]
        raise ValueError(
            f"column {names[place]!r} of {columns.path} holds {columns[names[place]][row]!r}; a finding is 1, 0, -1 "
            "(uncertain) or empty; for numbers such as an age use label_kind 'continuous'"
        )
    values, keep = _settle(values, ", ".join(names), uncertain, blank, binary=True)
    return Labels(LabelSpace("multi", tuple(names)), torch.from_numpy(values.astype(np.float32)), keep)


def listed_labels(
    columns: Columns, name: str, separator: str, findings: Sequence[str] | None, blank: LabelPolicy
) -> Labels:
    """Findings of each row, listed in one column: ``Edema|Effusion``.

    Raises:
        ValueError: If a finding is not among ``findings`` (by default all that occur, sorted).
    """
    lists = [[item.strip() for item in cell.split(separator) if item.strip()] for cell in columns[name]]
    occurring = Counter(item for items in lists for item in items)
    order = list(findings) if findings is not None else sorted(occurring)
    unknown = [f"{item!r} ({count} rows)" for item, count in occurring.most_common() if item not in order]
    if unknown:
        raise ValueError(
            f"column {name!r} of {columns.path} holds findings that are not in label_names {order}: "
            f"{', '.join(unknown[:5])}; add them or spell both alike"
        )
    values = np.array([[float(finding in items) if items else np.nan for finding in order] for items in lists])
    values, keep = _settle(values, name, "ignore", blank, binary=True)
    return Labels(LabelSpace("multi", tuple(order)), torch.from_numpy(values.astype(np.float32)), keep)


def continuous_labels(columns: Columns, names: Sequence[str], blank: LabelPolicy) -> Labels:
    """Numbers of each row, one per named column."""
    values = _numbers(columns, names)
    missing = np.asarray(np.isnan(values).any(axis=1))
    if blank not in ("ignore", "drop"):
        raise ValueError(f"blank is {blank!r}; empty cells of continuous conditions can be 'ignore' or 'drop'")
    keep = ~missing if blank == "drop" else np.ones_like(missing)
    return Labels(LabelSpace("continuous", tuple(names)), torch.from_numpy(values.astype(np.float32)), keep)


def _settle(
    values: NDArray[np.float64], name: str, uncertain: LabelPolicy, blank: LabelPolicy, *, binary: bool
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Apply both policies to (n, K) values: the values with NaN for unknown, and the rows to keep."""
    keep = np.ones(len(values), dtype=bool)
    values = values.copy()
    for which, policy, cells in (("uncertain", uncertain, values == _UNCERTAIN), ("blank", blank, np.isnan(values))):
        if policy not in ("ones", "zeros", "ignore", "drop"):
            raise ValueError(f"{which} is {policy!r}; use 'ones', 'zeros', 'ignore' or 'drop'")
        if not cells.any():
            continue
        if policy in ("ones", "zeros") and not binary:
            raise ValueError(
                f"{which}={policy!r} needs two classes, but column {name!r} has others; use 'ignore' or 'drop'"
            )
        if policy == "drop":
            keep &= ~cells.any(axis=1)
        values[cells] = {"ones": 1.0, "zeros": 0.0}.get(policy, np.nan)
    return values, keep


def _numbers(columns: Columns, names: Sequence[str]) -> NDArray[np.float64]:
    values = np.empty((len(columns), len(names)))
    for place, name in enumerate(names):
        for row, cell in enumerate(columns[name]):
            number = _number(cell) if cell else np.nan
            if number is None:
                raise ValueError(f"column {name!r} of {columns.path} holds {cell!r}, which is not a number")
            values[row, place] = number
    return values


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
