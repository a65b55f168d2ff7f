"""Figures that a slider turns over, in a notebook, in Colab and on a page without a kernel."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from html import escape

from course_utils.plotting.alt_text import alt_text
from course_utils.plotting.figure import Figure

_SCRIPT = """\
(() => {
  const box = document.querySelector(`#${%(id)s}:not([data-ready])`), picture = box.querySelector("img");
  box.dataset.ready = "";  // the same slider may be on the page twice
  const frames = %(frames)s, names = %(names)s, texts = %(texts)s;
  const row = document.createElement("label"), knob = document.createElement("input");
  const value = document.createElement("output");
  row.style.cssText = "display:flex;gap:.75rem;align-items:center;max-width:40rem";
  Object.assign(knob, {type: "range", min: 0, max: frames.length - 1, value: %(start)s});
  knob.style.flex = "1";
  const show = () => {
    picture.src = frames[knob.value];
    picture.alt = texts[knob.value];
    value.textContent = names[knob.value];
    knob.setAttribute("aria-valuetext", names[knob.value]);
  };
  knob.addEventListener("input", show);
  row.append(%(label)s, knob, value);
  box.prepend(row);
  show();
})();"""


class Slider:
    """One figure for each position of a slider: it is computed before, so that no kernel has to run to turn it.

    Where no script may run (GitHub, print), one figure is shown.

    Args:
        figures: What is written beside the slider to the figure, in order. All should be of one size.
        label: What the slider changes, such as "time".
        start: The position shown at first, and where no script runs; the middle if None.

    Raises:
        ValueError: fewer than two figures, or a start that is none of them.
    """

    def __init__(self, figures: Mapping[str, Figure], label: str, start: str | None = None) -> None:
        if len(figures) < 2:
            raise ValueError(f"a slider turns over at least 2 figures, not {len(figures)}")
        self.names = list(figures)
        if start is not None and start not in figures:
            raise ValueError(f"start={start!r} is none of the slider's positions: {', '.join(self.names)}")
        self.label = label
        self.start = len(self.names) // 2 if start is None else self.names.index(start)
        self.texts = [f"{label} {name}. {alt_text(figure)}" for name, figure in figures.items()]
        self._frames = [_picture(figure, "webp") for figure in figures.values()]
        self._still = _picture(list(figures.values())[self.start], "png")

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, bytes | str], dict[str, dict[str, str]]]:
        frames = [f"data:image/webp;base64,{base64.b64encode(frame).decode()}" for frame in self._frames]
        name = f"slider-{hashlib.sha256(''.join(frames).encode()).hexdigest()[:12]}"
        values = {
            "id": name,
            "frames": frames,
            "names": self.names,
            "texts": self.texts,
            "label": self.label,
            "start": self.start,
        }
        script = _SCRIPT % {key: json.dumps(value).replace("</", "<\\/") for key, value in values.items()}
        shown = f'<img src="{frames[self.start]}" alt="{escape(self.texts[self.start])}">'
        html = f'<div id="{name}">{shown}</div><script>{script}</script>'
        return {"text/html": html, "image/png": self._still}, {"image/png": {"alt": self.texts[self.start]}}


def _picture(figure: Figure, form: str) -> bytes:
    buffer = io.BytesIO()
    # Not cut to what is drawn, as a single figure is: all frames must have one size.
    figure.savefig(buffer, format=form, dpi=figure.dpi)
    return buffer.getvalue()
