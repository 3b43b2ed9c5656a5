"""What all figures share: fonts, colours, markers, and files that are the same every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.reports.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's palette, without its yellow, which is too pale for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (9, 3)), (0, (3, 1, 1, 1, 1, 1)))
#: Colour, marker and fill of a row by its kind.
KINDS = {
    "method": {"color": "#0072B2", "marker": "o"},
    "floor": {"color": "#A65E00", "marker": "s"},
    "oracle": {"color": "#00795A", "marker": "D"},
}
#: Without dates, so that the same runs give the same files.
METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": "missing-modality-harness"},
    "pdf": {"CreationDate": None, "Creator": "missing-modality-harness"},
    "png": {"Software": "missing-modality-harness"},
}
#: Longer names are cut: they would leave no room for the figure.
NAME_LENGTH = 34


@contextmanager
def style() -> Iterator[None]:
    """Settings for drawing and saving; text stays text in SVG and PDF, and nothing in a name is read as mathematics."""
    import matplotlib

    settings = {
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.unicode_minus": False,
        "grid.color": "#DDDDDD",
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.3,
        "lines.markersize": 4,
        "legend.frameon": False,
        "savefig.dpi": 200,
        "savefig.bbox": "tight",
        "svg.fonttype": "none",
        "svg.hashsalt": "harness",
        "pdf.fonttype": 42,
        "text.parse_math": False,
    }
    with matplotlib.rc_context(settings):
        yield


def new(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    """A figure of a size in inches and its axes, without pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**grid)


def kind(row: Row) -> str:
    """`oracle`, `floor` or `method`."""
    return "oracle" if row.oracle else "floor" if row.reference == "floor" else "method"


def scored(table: Table) -> list[tuple[int, Row]]:
    """Rows with a score and their positions."""
    return [(index, row) for index, row in enumerate(table.rows) if row.score is not None]


def short(name: str, length: int = NAME_LENGTH) -> str:
    """A name that fits, with every letter that a font may lack in a form that can be drawn.

    What is too long is cut in the middle: names begin with the method, and end with what tells its rows apart.
    """
    plain = "".join(char if char.isprintable() else "?" for char in name)
    return plain if len(plain) <= length else f"{plain[: length // 2]}…{plain[len(plain) - (length - 1) // 2 :]}"


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names on the vertical axis, the first on top."""
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
