"""What all figures share: the class, the colours, the line styles, the width, colour bars and legends."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import matplotlib.figure
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.typing import LineStyleType

from course_utils.plotting.alt_text import alt_text

Place = Literal["outside lower center", "outside upper center"]

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
"""The palette of Okabe and Ito (2002) without black."""
ON_WHITE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""The palette for curves and boxes on white: dark colours first, without yellow."""
STYLES: tuple[LineStyleType, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1)))
"""Line styles: the next one each time that the colours of a palette begin again."""
GREY = "#777777"
"""The colour of what is only for comparison: references, and the state before registration."""
WIDTH = 9.5
"""Width of the widest figure in inches: at 100 dots an inch it fits a notebook's column without being shrunk."""


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows as a cell's result, also where pyplot was never imported, with a text beside it.

    nbconvert writes the text into the pages that it makes; screen readers read it there.
    """

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, bytes], dict[str, dict[str, str]]]:
        # Not _repr_png_: where pyplot was imported, IPython draws every figure in a way of its own, and takes from here
        # no more than the text.
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=self.dpi, bbox_inches="tight")
        return {"image/png": buffer.getvalue()}, {"image/png": {"alt": alt_text(self)}}


def looks(count: int, colours: Sequence[str] = COLOURS) -> list[tuple[str, LineStyleType]]:
    """Colour and line style of each of `count` things; colours begin again in another style."""
    return [(colours[i % len(colours)], STYLES[i // len(colours) % len(STYLES)]) for i in range(count)]


def intensity_range(images: Iterable[np.ndarray]) -> tuple[float, float]:
    """Smallest and largest finite value of all images."""
    finite = [image[np.isfinite(image)] for image in images]
    return min(float(values.min()) for values in finite), max(float(values.max()) for values in finite)


def colour_bar(figure: Figure, axes: Sequence[Axes], picture: ScalarMappable, label: str, **options: Any) -> Colorbar:
    """Draw one colour bar for all panels; the figure becomes wider by what the bar takes."""
    figure.set_figwidth(figure.get_figwidth() + 0.9)
    bar = figure.colorbar(picture, ax=axes, label=label, **options)
    bar.ax.tick_params(labelsize="small")
    return bar


def legend_outside(figure: Figure, handles: Sequence[Artist], place: Place = "outside lower center") -> None:
    """Draw a legend of as many columns as fit below or above the axes; the figure becomes higher by what it takes."""
    widest = 0.6 + 0.075 * max(len(str(handle.get_label())) for handle in handles)  # inches
    columns = max(1, min(len(handles), int(figure.get_figwidth() / widest)))
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.2 * -(-len(handles) // columns))
    figure.legend(handles=handles, loc=place, ncols=columns, frameon=False, fontsize="small")
