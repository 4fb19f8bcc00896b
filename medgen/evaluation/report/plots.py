"""Plots of a report as SVG text, readable in black and white."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medgen.evaluation.statistics.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.hashsalt": "medgen",  # the same numbers make the same file
    "svg.fonttype": "path",
}


@contextmanager
def _axes(width: float = 6.0, height: float = 3.2) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on; the SVG is appended to the list afterwards."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib; run: pip install "medgen[eval]"') from error
    result: list[str] = []
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure.add_subplot(), result
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    result.append(text[text.index("<svg") :])


def intervals_plot(rows: Mapping[str, Interval], *, label: str, reference: float | None = None) -> str:
    """Plot values with their intervals, one row each, the first at the top."""
    with _axes(6.0, 0.6 + 0.32 * len(rows)) as (axes, result):
        for y, (_, (value, low, high)) in enumerate(reversed(list(rows.items()))):
            axes.plot([low, high], [y, y], color="0.4", linewidth=1.5)
            axes.plot([value], [y], "o", color="C0", markersize=5)
        if reference is not None:
            axes.axvline(reference, color="0.5", linestyle=":", linewidth=1)
        axes.set_yticks(range(len(rows)), list(rows)[::-1])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(label)
    return result[0]


def scaled_to_two_dimensions(squared: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (n, 2) whose squared distances approximate a matrix (n, n).

    Source: Torgerson 1952, "Multidimensional scaling: theory and method" (classical scaling).
    """
    centring = np.eye(len(squared)) - 1 / len(squared)
    values, vectors = np.linalg.eigh(-0.5 * centring @ squared @ centring)
    points: NDArray[np.float64] = vectors[:, ::-1][:, :2] * np.sqrt(np.clip(values[::-1][:2], 0, None))
    return points


def distances_plot(matrix: NDArray[np.float64], names: Sequence[str]) -> str:
    """Plot sets as points whose distances approximate a matrix of squared distances."""
    points = scaled_to_two_dimensions(matrix)
    with _axes(5.0, 4.0) as (axes, result):
        for (x, y), name in zip(points, names, strict=True):
            axes.plot([x], [y], "o", color="C1" if name.startswith("generated") else "C0")
            right = x > points[:, 0].mean()
            axes.annotate(
                name,
                (x, y),
                textcoords="offset points",
                xytext=(-5 if right else 5, 5),
                ha="right" if right else "left",
            )
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.25)
        axes.set_xlabel("square root of the Fréchet distance, scaled to two dimensions")
    return result[0]


def dendrogram_plot(matrix: NDArray[np.float64], names: Sequence[str]) -> str:
    """Plot the tree of sets by average linkage of a matrix of distances."""
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    symmetric = (matrix + matrix.T) / 2
    np.fill_diagonal(symmetric, 0)
    tree: Any = linkage(squareform(np.clip(symmetric, 0, None), checks=False), method="average")
    with _axes(5.0, 0.8 + 0.35 * len(names)) as (axes, result):
        dendrogram(
            tree,
            labels=list(names),
            orientation="right",
            ax=axes,
            color_threshold=0,
            above_threshold_color="C0",
            leaf_font_size=9,
        )
        axes.grid(visible=False)
        axes.set_xlim(0, 1.1 * float(tree[:, 2].max()) or 1.0)
        axes.set_xlabel("Fréchet distance")
    return result[0]


def curve_plot(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str) -> str:
    """Plot lines through points, such as a distance against the number of steps."""
    with _axes() as (axes, result):
        for marker, (name, (xs, ys)) in zip("osD^v*", curves.items(), strict=False):
            axes.plot(xs, ys, marker=marker, label=name, markersize=4)
        axes.set_xscale("log")
        ticks = sorted({value for xs, _ in curves.values() for value in xs})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if len(curves) > 1:
            axes.legend(frameon=False)
    return result[0]


def histogram_plot(groups: Mapping[str, NDArray[np.float64]], *, label: str) -> str:
    """Plot distributions as steps on common bins."""
    bins = np.histogram_bin_edges(np.concatenate(list(groups.values())), bins=30)
    with _axes() as (axes, result):
        for style, (name, values) in zip(("-", "--", ":"), groups.items(), strict=False):
            axes.hist(
                values, bins=bins.tolist(), histtype="step", density=True, label=name, linestyle=style, linewidth=1.5
            )
        axes.legend(frameon=False)
        axes.set_xlabel(label)
        axes.set_ylabel("density")
    return result[0]
