"""A reader's way through a notebook: JupyterLab in a browser, Run All Cells, a figure on the page."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from notebooks.build import ROOT
from tests.browsers import chromium

pytestmark = pytest.mark.slow

FIGURE = ".jp-Notebook .jp-OutputArea-output img[src^='data:image/png']"
OUTPUTS = ".jp-Notebook .jp-OutputArea-output"
SLIDING = ".jp-Notebook .jp-OutputArea-output [id^='slider-'] img"
PROMPTS = ".jp-Notebook .jp-CodeCell .jp-InputPrompt"


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on a free port of the loopback address, over a folder with notebook 00 stripped of its outputs.

    Gives the address of the notebook, token included.
    """
    folder = tmp_path / "notebooks"
    folder.mkdir()
    notebook = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / "00_start_here.ipynb")

    settings = {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are on the page too
    }
    for name, values in settings.items():
        file = tmp_path / "config" / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values), encoding="utf-8")

    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    options = [f"--ServerApp.root_dir={folder}", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", "--no-browser"]
    options += ["--allow-root", "--ServerApp.log_level=WARN"]
    with open(tmp_path / "server.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            cwd=tmp_path,
            env=os.environ | own | {"IPYTHONDIR": str(tmp_path / "ipython")},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 120
        while not (found := list((tmp_path / "runtime").glob("jpserver-*.json"))):
            assert server.poll() is None and time.monotonic() < end, (tmp_path / "server.log").read_text(
                encoding="utf-8"
            )
            time.sleep(0.2)
        info = json.loads(found[0].read_text(encoding="utf-8"))
        yield f"http://127.0.0.1:{info['port']}/lab/tree/00_start_here.ipynb?token={info['token']}"
    finally:
        server.terminate()  # ends its kernels too
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.fixture
def browser(tmp_path):
    with chromium(tmp_path / "profile") as driver:
        yield driver
        driver.save_screenshot(str(tmp_path / "notebook.png"))


def test_run_all_cells_shows_the_figures(lab, browser):
    def shown(css):
        return [element for element in browser.find_elements(By.CSS_SELECTOR, css) if element.is_displayed()]

    def texts(css):
        return browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", css
        )

    def tracebacks():
        return [text for text in texts(OUTPUTS) if "Traceback (most recent call last)" in text]

    def wait(seconds, condition, message):
        # JupyterLab redraws while it loads: an element found a moment ago may be gone, so look again.
        patient = WebDriverWait(browser, seconds, ignored_exceptions=[StaleElementReferenceException])
        patient.until(lambda _: condition(), message)

    browser.get(lab)
    wait(120, lambda: shown(".jp-Notebook .jp-CodeCell"), "the notebook did not open")
    assert not shown(FIGURE), "the copy must be without outputs, or the test proves nothing"
    # The notebook's own sign, not the status bar's: that is empty until the notebook has the focus.
    wait(120, lambda: shown(".jp-Notebook-ExecutionIndicator[data-status='idle']"), "no kernel became ready")

    def chosen():
        first = next(iter(shown(".jp-Notebook .jp-MarkdownCell")), None)  # none while the page is drawn anew
        return first is not None and (first.click() or True)

    wait(60, chosen, "no cell could be chosen")

    menu = "//div[contains(@class, 'lm-MenuBar-itemLabel') and text()='Run']"
    browser.find_element(By.XPATH, menu).click()
    entry = ".lm-Menu-item[data-command='runmenu:run-all']"
    wait(30, lambda: shown(entry), "the Run menu has no entry for all cells")
    shown(entry)[0].click()

    def executed():
        return all(prompt.strip("[]: ").isdigit() for prompt in texts(PROMPTS))

    wait(600, lambda: executed() or tracebacks(), "not every cell was executed")
    assert tracebacks() == []
    assert shown(FIGURE)
    knobs = shown(f"{OUTPUTS} input[type='range']")
    before = shown(SLIDING)[0].get_attribute("src")
    knobs[0].send_keys(Keys.HOME)
    assert shown(SLIDING)[0].get_attribute("src") != before  # its script runs here
    assert "synthetic" in texts(OUTPUTS)[0]
