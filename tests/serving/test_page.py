"""A person's way through the page, in a real browser: two scans in, a look at the result, a field out."""

import time

import nibabel as nib
import numpy as np
import pytest
import requests
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.browsers import chromium
from tests.scans.test_writing import by_simpleitk
from tests.serving.pairs import phantom_pair

pytestmark = pytest.mark.slow

NAMELESS = """
return [...document.querySelectorAll('input, select, button, canvas, progress, a')].filter(one =>
    !(one.labels?.length || one.getAttribute('aria-label') || one.textContent.trim())).map(one => one.outerHTML)
"""
FAINT = """
const channels = colour => colour.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const ground = one => {
    for (; one; one = one.parentElement) {
        const colour = channels(getComputedStyle(one).backgroundColor);
        if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
};
return [...document.querySelectorAll('body *')].filter(one => one.offsetParent && !one.disabled &&
    [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim())).filter(one => {
        const [dark, bright] = [light(channels(getComputedStyle(one).color)), light(ground(one))].sort((a, b) => a - b);
        return (bright + 0.05) / (dark + 0.05) < 4.5;
    }).map(one => one.outerHTML);
"""
"""Text whose contrast is below what WCAG 2.2 asks for at level AA."""


@pytest.fixture
def browser(tmp_path):
    with chromium(tmp_path / "profile") as driver:
        yield driver


@pytest.fixture
def pair(tmp_path, request):
    """Two hippocampus scans of real patients or, where there are none, phantoms; and the moving one's label map."""
    try:
        folder = request.getfixturevalue("real_data") / "Task04_Hippocampus"
    except pytest.skip.Exception:
        return phantom_pair(tmp_path)
    fixed, moving = sorted((folder / "imagesTr").glob("*.nii.gz"))[:2]
    return {"fixed": fixed, "moving": moving, "moving_label": folder / "labelsTr" / moving.name}


def test_from_two_scans_to_a_field_that_simpleitk_applies(serving, browser, pair, tmp_path):
    _, address, folder = serving()

    def element(name):
        return browser.find_element(By.ID, name)

    def picture(plane, scan):
        return browser.execute_script(
            "return document.querySelectorAll('.plane')[arguments[0]].querySelectorAll('canvas')[arguments[1]]"
            ".toDataURL()",
            plane,
            scan,
        )

    def drawn():
        """The nine pictures as they are after the next time that the screen is painted."""
        browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        return [[picture(plane, scan) for scan in range(3)] for plane in range(3)]

    browser.get(address)
    WebDriverWait(browser, 30).until(lambda _: element("register").is_enabled())
    assert browser.execute_script(NAMELESS) == [] and browser.execute_script(FAINT) == []

    # A file that is no scan: one line, and the form is still there.
    wrong = tmp_path / "<b>wrong<b>.nii.gz"
    wrong.write_text("no scan", encoding="utf-8")
    for name in ("fixed", "moving"):
        element(name).send_keys(str(wrong))
    element("register").click()
    WebDriverWait(browser, 30).until(lambda _: element("error").is_displayed())
    assert "it is no NIfTI" in element("error").text
    (entry,) = browser.get_log("browser")
    assert "400" in entry["message"]  # the browser itself tells of that status

    for name, path in pair.items():
        element(name).send_keys(str(path))
    Select(element("network")).select_by_value("none")
    element("steps").send_keys("20")
    element("register").send_keys(Keys.ENTER)  # by the keyboard
    WebDriverWait(browser, 30).until(lambda _: element("working").is_displayed())
    assert element("cancel").is_displayed() and not element("error").is_displayed()
    WebDriverWait(browser, 180).until(lambda _: element("result").is_displayed() or element("error").is_displayed())
    assert element("error").text == "" and "NCC" in element("report").text and not element("working").is_displayed()
    assert browser.switch_to.active_element.get_attribute("id") == "result-title"

    # Every control changes the pictures that it should, and no others.
    before = drawn()
    assert len({image for plane in before for image in plane}) == 9
    browser.find_element(By.ID, "slice-axial").send_keys(Keys.ARROW_RIGHT)
    after = drawn()
    assert all(new != old for new, old in zip(after[0], before[0], strict=True))
    for control, key in (("blend", Keys.HOME), ("grid", Keys.SPACE), ("jacobian", Keys.SPACE)):
        before = after
        element(control).send_keys(key)
        after = drawn()
        for new, old in zip(after, before, strict=True):
            assert new[:2] == old[:2] and new[2] != old[2], control
    element("blend").send_keys(Keys.END)
    for control in ("grid", "jacobian", "contours"):
        element(control).send_keys(Keys.SPACE)
    assert all(new[2] != old[2] for new, old in zip(drawn(), after, strict=True))

    # The page can be read in the dark and on a phone, and finds its result again.
    for scheme in ("dark", "light"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        time.sleep(0.3)  # the change of a button's colour takes a while
        assert browser.execute_script(NAMELESS) == [] and browser.execute_script(FAINT) == [], scheme
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.refresh()
    WebDriverWait(browser, 60).until(lambda _: element("result").is_displayed())

    # What is downloaded is what SimpleITK makes the same picture of.
    links = {link.text: link.get_attribute("href") for link in browser.find_elements(By.CSS_SELECTOR, "#files a")}
    for name in ("moved.nii.gz", "field_itk.nii.gz"):
        (tmp_path / name).write_bytes(requests.get(links[name], proxies={"http": ""}).content)
    moved = nib.load(tmp_path / "moved.nii.gz").get_fdata()
    theirs = by_simpleitk(pair["moving"], pair["fixed"], tmp_path / "field_itk.nii.gz")
    inside = theirs > 0  # ITK has 0 where the moving scan does not reach, the course its lowest value
    assert np.abs(theirs - moved)[inside].mean() < 0.005 * np.ptp(moved)

    element("remove").click()
    WebDriverWait(browser, 30).until(lambda _: not any(folder.iterdir()))
    assert not element("result").is_displayed()
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
