"""Whether everybody can read the site, as axe sees it in a real browser: `make accessible`.

Not among the tests that run everywhere: it needs the site, built by `make site`, and axe-core-python.
"""

import functools
import http.server
import threading
from importlib.resources import files

import pytest

from notebooks.build import ROOT
from tests.browsers import chromium

SITE = ROOT / "site"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)

# What axe calls serious or critical keeps a reader out: a picture without a text, letters too pale, a nameless field.
FAULTS = """
const done = arguments[arguments.length - 1];
axe.run({resultTypes: ["violations"]}).then(
    found => done(found.violations.filter(one => ["serious", "critical"].includes(one.impact)).map(
        one => `${one.id} ${one.nodes.length}: ${one.nodes[0].html.slice(0, 200)} ${one.nodes[0].failureSummary}`)),
    failed => done([String(failed)]));
"""

# At once: halfway from light to dark, letters and ground are both grey.
SCHEME = """
document.head.insertAdjacentHTML("beforeend", "<style>* { transition: none !important }</style>");
document.documentElement.dataset.theme = arguments[0];
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and prints nothing."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    """Where the site is served."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        driver.set_page_load_timeout(60)
        driver.set_script_timeout(120)
        yield driver


def test_the_site_is_built():
    assert len(PAGES) > 50, "say `make site` first"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_nobody_is_kept_out(page, scheme, address, browser):
    browser.get(f"{address}/{page}")
    browser.execute_script(SCHEME, scheme)
    browser.execute_script(files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    assert browser.execute_async_script(FAULTS) == []
