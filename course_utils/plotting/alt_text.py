"""What a figure shows in words, for those who cannot see it."""

from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOUR_BAR = "<colorbar>"
"""What matplotlib labels the axes of a colour bar with."""


def alt_text(figure: Figure) -> str:
    """Describe a figure by its titles, its axes' labels and its legends.

    Returns:
        Sentences in one line: the figure's title, what each panel is, what the colours mean. What is drawn alike in
        several panels is said once.
    """
    panels = [axes for axes in figure.axes if axes.get_label() != COLOUR_BAR and axes.get_visible()]
    bars = [axes for axes in figure.axes if axes.get_label() == COLOUR_BAR]
    sentences = [figure.get_suptitle()]
    described = _once(filter(None, map(_panel, panels)))
    if len(panels) > 1:
        sentences.append(f"{len(panels)} panels{': ' if described else ''}{'; '.join(described)}")
    else:
        sentences += described
    outside = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    if outside:
        sentences.append(f"Legend: {'; '.join(_once(outside))}")
    scales = _once(filter(None, (axes.get_ylabel() or axes.get_xlabel() for axes in bars)))
    if scales:
        sentences.append(f"Colours show {', '.join(scales)}")
    return " ".join(f"{_plain(sentence)}." for sentence in sentences if sentence) or "A figure without any words."


def _panel(axes: Axes) -> str:
    """What one panel shows."""
    title = next((axes.get_title(loc=place) for place in ("center", "left", "right") if axes.get_title(loc=place)), "")
    across, up = axes.get_xlabel(), axes.get_ylabel()
    if axes.images or axes.get_aspect() == 1:  # of space, whose axes say little
        kind = "" if title else "picture"
    else:
        kind = f"{up} against {across}" if up and across else up or across
    inside = axes.get_legend()
    names = [] if inside is None else [text.get_text() for text in inside.get_texts()]
    legend = f" ({'; '.join(_once(names))})" if names else ""
    return f"{title}{': ' if title and kind else ''}{kind}{legend}"


def _once(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _plain(text: str) -> str:
    return " ".join(text.replace("$", "").split()).rstrip(".")
