"""What the plots share: style, colours, panels, and figures read from a run's files.

matplotlib is imported on the first figure (it is slow, and most commands draw nothing) and used without pyplot,
so no figure and no style outlives a call. Colours: Okabe and Ito, safe for the colour-blind.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedem_flwr.errors import FedemError
from fedem_flwr.report.run_directory import Json, number_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ImageFormat: TypeAlias = Literal["svg", "png"]
Floats: TypeAlias = NDArray[np.float64]

BLUE, ORANGE, GREEN, INK, GREY = "#0072B2", "#D55E00", "#009E73", "#333333", "#777777"
RUN_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
UNITS = {"hr@10": "HR@10 (share of users)", "ndcg@10": "NDCG@10 (0 to 1)"}
RHO_UNIT = "ρ (0 = own row, 1 = global row)"
FEW_POINTS = 16
_STYLE: dict[str, object] = {
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **{"axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left"},
    **{"axes.edgecolor": GREY, "axes.axisbelow": True, "grid.color": "#E6E6E6"},
    "svg.hashsalt": "fedem-flwr",  # the same figures give the same bytes
    "text.parse_math": False,  # a name with dollars is no formula
}


class NothingToDrawError(FedemError):
    """The run did not record what the plot shows; the message says what is missing."""


@contextmanager
def panels(count: int, widths: Sequence[float] | None = None) -> Iterator[tuple[Figure, list[Axes]]]:
    """Make a figure with panels side by side in the house style."""
    import matplotlib
    from matplotlib.figure import Figure as NewFigure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]  # the stub lists every key as a literal
        size = (12.5 if count == 3 else 10.0, 3.9)
        figure = NewFigure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1))
        axes: list[Axes] = list(figure.subplots(1, count, squeeze=False, width_ratios=widths)[0])
        yield figure, axes


def image_bytes(figure: Figure, image_format: ImageFormat) -> bytes:
    """Encode a figure; nothing of an SVG depends on when it was drawn."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=image_format, dpi=110, metadata={"Date": None} if image_format == "svg" else {})
    return buffer.getvalue()


def numbers(value: object, what: str, dimensions: int = 1) -> Floats:
    """Return recorded figures as an array (null is NaN), or raise if there are none of this shape."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise NothingToDrawError(f"{what} are not numbers") from error
    if array.ndim != dimensions or not np.isfinite(array).any():
        raise NothingToDrawError(f"{what} were not recorded")
    return array


def series(lines: Sequence[Json], *keys: str) -> tuple[list[int], list[float]]:
    """Return rounds and values of a figure, without the rounds that lack it (not evaluated or not finite)."""
    kept = [(int(line["round"]), value) for line in lines if (value := number_at(line, *keys)) is not None]
    return [number for number, _ in kept], [value for _, value in kept]


def marker_for(points: int) -> str:
    """Return the marker of a curve: dots show where a few points were measured, many would hide the line."""
    return "o" if points < FEW_POINTS else ""
