"""A slider turns over figures without a kernel; one of them stands for all where no script runs."""

import base64
import io
import re

import numpy as np
import PIL.Image
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from course_utils.plotting import Slider, panel
from tests.browsers import chromium


def frames():
    pictures = {str(k): np.pad(np.full((4, 8), 1.0), ((k, 9 - k), (0, 0))) for k in range(5)}
    return {name: panel({f"bar at {name}": picture}) for name, picture in pictures.items()}


def bundle(slider):
    data, metadata = slider._repr_mimebundle_()
    return data["text/html"], data["image/png"], metadata["image/png"]["alt"]


def test_the_middle_stands_for_all_and_says_so():
    html, still, alt = bundle(Slider(frames(), "place"))
    assert alt == "place 2. bar at 2."
    shown = re.findall(r'<img src="([^"]+)" alt="([^"]+)">', html)
    assert [text for _, text in shown] == [alt]
    size = PIL.Image.open(io.BytesIO(still)).size
    first = PIL.Image.open(io.BytesIO(base64.b64decode(shown[0][0].split(",")[1])))
    assert first.size == size and first.format == "WEBP"
    assert bundle(Slider(frames(), "place"))[0] == html  # the same page each time that it is built
    assert bundle(Slider(frames(), "place", start="4"))[2] == "place 4. bar at 4."


def test_what_a_name_says_ends_no_script():
    figures = dict(zip(["</script><b>", '"'], frames().values(), strict=False))
    html, _, _ = bundle(Slider(figures, "place"))
    assert html.count("</script>") == 1 and html.endswith("</script>")


def test_what_cannot_be_turned_over():
    with pytest.raises(ValueError, match="at least 2 figures, not 1"):
        Slider({"0": frames()["0"]}, "place")
    with pytest.raises(ValueError, match="start='9' is none of the slider's positions: 0, 1, 2, 3, 4"):
        Slider(frames(), "place", start="9")


@pytest.mark.slow
def test_keys_turn_it_and_say_where_it_is(tmp_path):
    first, second = (Slider(frames(), label) for label in ("place", "time & more"))
    (tmp_path / "page.html").write_text(f"{bundle(first)[0]}{bundle(second)[0]}", encoding="utf-8")
    with chromium(tmp_path / "profile") as browser:
        browser.get((tmp_path / "page.html").as_uri())
        knobs = browser.find_elements(By.CSS_SELECTOR, "input[type=range]")
        pictures = browser.find_elements(By.TAG_NAME, "img")
        assert [knob.accessible_name for knob in knobs] == ["place", "time & more"]
        before = [picture.get_attribute("src") for picture in pictures]
        knobs[1].send_keys(Keys.ARROW_RIGHT)
        assert pictures[0].get_attribute("src") == before[0]
        assert pictures[1].get_attribute("src") != before[1]
        assert pictures[1].get_attribute("alt") == "time & more 3. bar at 3."
        assert knobs[1].get_attribute("aria-valuetext") == "3"
        knobs[1].send_keys(Keys.HOME)
        assert pictures[1].get_attribute("alt") == "time & more 0. bar at 0."
        assert pictures[1].size == pictures[0].size
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
