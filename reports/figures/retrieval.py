"""Whom a method asks: test samples with the training samples that it retrieved, their labels and their weights."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.findings import Example
from harness.reports.details import Picture, Show
from harness.reports.figures.style import new, short
from harness.reports.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Test samples of a figure, neighbours of each, and lines of a caption.
MOST_QUERIES = 6
MOST_NEIGHBOURS = 5
_LINES = 3
_LETTERS = 20
_START = "data:image/webp;base64,"


def draw(table: Table, examples: Sequence[Example], show: Show | None = None) -> Figure | None:
    """One line a test sample, the sample itself first; None without examples.

    Pictures and captions stand where `show` finds them.  A check mark says that the label is the query's; the bar under
    a neighbour is its weight.
    """
    chosen = _spread(examples)
    if not chosen:
        return None
    ids = dict.fromkeys(
        name for one in chosen for name in (one.sample, *(other.sample for other in one.neighbours[:MOST_NEIGHBOURS]))
    )
    known = show(table.key.dataset, table.key.dataset_fingerprint, list(ids)) if show else {}
    columns = 1 + max(len(one.neighbours[:MOST_NEIGHBOURS]) for one in chosen)
    figure, grid = new(1.35 * columns + 0.4, 1.9 * len(chosen), nrows=len(chosen), ncols=columns, squeeze=False)
    for line, one in zip(grid, chosen, strict=True):
        wants = f"asks for {one.use}" if one.use else "asks for the label"
        _cell(line[0], known, one.sample, f"{short(one.label, 22)}\nshown {short(one.pattern, 16)}", short(wants, 24))
        for axes, other in zip(line[1:], one.neighbours[:MOST_NEIGHBOURS], strict=False):
            sign = {None: "", 0.0: "✗ ", 1.0: "✓ "}.get(other.agrees, f"{100 * (other.agrees or 0.0):.0f} % ")
            _cell(axes, known, other.sample, f"{sign}{short(other.label, 20)}\nweight {other.weight:.3f}", "")
            axes.add_patch(_bar(axes, other.weight))
        for axes in line[1 + len(one.neighbours[:MOST_NEIGHBOURS]) :]:
            axes.axis("off")
    return figure


def _spread(examples: Sequence[Example]) -> list[Example]:
    """At most `MOST_QUERIES`, taken in turn from every pattern and use."""
    groups: dict[tuple[str, str], list[Example]] = {}
    for one in examples:
        if one.neighbours:
            groups.setdefault((one.use, one.pattern), []).append(one)
    turns = [one for turn in range(MOST_QUERIES) for group in groups.values() for one in group[turn : turn + 1]]
    return sorted(turns[:MOST_QUERIES], key=lambda one: (one.use, one.pattern))


def _cell(axes: Axes, known: Mapping[str, Picture], sample: str, title: str, below: str) -> None:
    """One sample: its picture, else its id; its text below."""
    picture = known.get(sample, Picture())
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(True)
        side.set_linewidth(0.5)
    axes.set_title(title, loc="left", fontsize=6.5)
    pixels = _pixels(picture.image)
    if pixels is not None:
        high, wide = (size / max(pixels.shape[:2]) / 2 for size in pixels.shape[:2])
        axes.imshow(pixels, extent=(0.5 - wide, 0.5 + wide, 0.5 - high, 0.5 + high), interpolation="nearest")
    else:
        axes.text(0.5, 0.5, short(sample, 18), ha="center", va="center", fontsize=6)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_box_aspect(1)
    words = textwrap.wrap(short(picture.text, _LINES * _LETTERS), _LETTERS)[:_LINES]
    axes.set_xlabel("\n".join(filter(None, [below, *words])), fontsize=6, labelpad=7)


def _bar(axes: Axes, weight: float) -> Any:
    """A bar along the lower edge, as long as the weight."""
    from matplotlib.patches import Rectangle

    return Rectangle((0, -0.05), max(0.0, weight), 0.05, color="#0072B2", clip_on=False, transform=axes.transAxes)


def _pixels(address: str) -> Any:
    """A picture as matplotlib takes it; None without one."""
    if not address.startswith(_START):
        return None
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(address.removeprefix(_START)))) as picture:
        return np.asarray(picture.convert("RGB"))
