"""Who may show the page in a frame, and the page in a cell of a notebook."""

import http.server
import threading
import time

import pytest
import requests
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from course_utils.errors import CourseError
from course_utils.serving.access import Access
from course_utils.serving.jobs import Jobs
from course_utils.serving.notebook import PageInCell
from tests.browsers import chromium
from tests.serving.pairs import files_of, phantom_pair


@pytest.fixture
def cell():
    """A page in a cell, which is closed at the end."""
    page = PageInCell()
    yield page
    page.close()


@pytest.fixture
def site():
    """`site(html)`: the address of another server's page."""

    class Page(http.server.BaseHTTPRequestHandler):
        text = ""

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(self.text.encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def show(html):
            Page.text = f"<!doctype html><title>a notebook</title>{html}"
            return f"http://127.0.0.1:{server.server_port}"

        yield show
        server.shutdown()


def policy(**options):
    return Access.of("127.0.0.1", loopback=True, **options).headers()["Content-Security-Policy"]


def test_nobody_shows_the_page_unless_told_otherwise():
    assert policy().endswith("; frame-ancestors 'none'")
    sites = ["http://localhost:8888", "https://hub.example", "http://127.0.0.1:*", "http://[::1]:80"]
    assert policy(frames=sites).endswith(f"; frame-ancestors {' '.join(sites)}")


@pytest.mark.parametrize(
    "text",
    ["*", "localhost:8888", "http://localhost:8888/lab", "http://*", "https:", "http://a b", "http://a; x 'y'", ""],
)
def test_what_is_no_site_is_refused(text):
    with pytest.raises(CourseError, match="is no site"):
        Access.of("127.0.0.1", loopback=True, frames=[text])


@pytest.mark.slow
def test_a_cell_registers_until_it_is_closed(cell, tmp_path, monkeypatch):
    roots = []
    monkeypatch.setattr(Jobs, "close", lambda jobs, close=Jobs.close: (roots.append(jobs.root), close(jobs)))
    assert f'src="{cell.address}"' in cell._repr_html_()
    form = {"network": "none", "steps": "5"}
    job = requests.post(f"{cell.address}api/jobs", data=form, files=files_of(phantom_pair(tmp_path)), timeout=30).json()
    while job["state"] in ("waiting", "running"):
        time.sleep(0.2)
        job = requests.get(f"{cell.address}api/jobs/{job['id']}", timeout=30).json()
    assert job["state"] == "done" and "moved.nii.gz" in [file["name"] for file in job["files"]]
    cell.close()
    assert roots and not any(root.exists() for root in roots)
    with pytest.raises(requests.ConnectionError):
        requests.get(cell.address, timeout=5)
    cell.close()  # once more is nothing


@pytest.mark.slow
def test_a_notebook_s_page_shows_it_and_another_server_s_does_not(site, tmp_path):
    with chromium(tmp_path / "profile") as browser:
        for frames, shown in (((), False), (("http://127.0.0.1:*",), True)):
            page = PageInCell(frames=frames)
            browser.get(site(page._repr_html_()))
            browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))

            def place(browser):
                return browser.execute_script("return location.href")

            if shown:
                WebDriverWait(browser, 30).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "select option"))
                assert place(browser) == page.address
            else:  # the browser's own page says that it may not
                WebDriverWait(browser, 30).until(lambda driver: place(driver).startswith("chrome-error:"))
            page.close()
