"""The site: complete, without any need of a network, and readable in a browser, on a telephone too."""

from __future__ import annotations

import html.parser
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest
from conftest import NUMBERED, ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(html.parser.HTMLParser):
    """What a page loads, what it links to, and its pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.pictures: list[dict[str, str]] = []
        self.tags: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attributes}
        self.tags.add(tag)
        if tag == "link" and known.get("rel") not in ("search", "index", "next", "prev", "canonical"):
            self.loads.append(known["href"])
        if tag in ("script", "img", "iframe", "source") and "src" in known:
            self.loads.append(known["src"])
        if tag == "a" and "href" in known:
            self.links.append(known["href"])
        if tag == "img":
            self.pictures.append(known)


@pytest.fixture(scope="module")
def site(tmp_path_factory, python) -> Path:
    """The site, built with proxies that lead nowhere."""
    folder = tmp_path_factory.mktemp("site") / "pages"
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = python(str(ROOT / "notebooks" / "build_site.py"), str(folder), env=os.environ | nowhere)
    assert (done.returncode, done.stderr) == (0, "")  # no warning of a link that is broken, or of markup
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    """Every page by its path."""
    return {str(path.relative_to(site)): Page(path) for path in sorted(site.rglob("*.html"))}


def test_it_holds_notebooks_results_and_a_reference(pages, site):
    notebooks = {f"notebooks/{path.stem}.html" for path in ROOT.glob("notebooks/*.ipynb")}
    reference = {f"reference/{name}.html" for name in NUMBERED}
    assert {"index.html", "search.html", "models/README.html", *notebooks, *reference} <= set(pages)
    text = (site / "reference" / "dp_sgd.html").read_text("utf-8")
    for name in ("Config", "Trainer", "epsilon", "noise_for"):
        assert f'id="recipes.dp_sgd.{name}"' in text, name
    assert "the least noise multiplier" in text.lower()
    assert "Where images come from: the real data set" in text  # not taken for a type


def test_nothing_is_loaded_from_elsewhere(pages, site):
    for name, page in pages.items():
        for address in page.loads:
            assert "//" not in address, (name, address)
            if not address.startswith("data:"):
                assert (site / name).parent.joinpath(address.split("?")[0]).exists(), (name, address)
    for path in site.rglob("*.css"):
        assert "url(http" not in path.read_text("utf-8")


def test_every_picture_has_words(pages):
    pictures = [picture for page in pages.values() for picture in page.pictures]
    assert len(pictures) > 30
    for picture in pictures:
        assert len(picture.get("alt", "")) > 20, picture
        assert "_images" not in picture["alt"], picture


def test_formulas_are_drawn_by_the_browser(pages):
    for name in ("01_federated_averaging", "02_secret_sharing", "05_dp_sgd"):
        assert "math" in pages[f"notebooks/{name}.html"].tags


def test_links_within_the_site_lead_somewhere(pages, site):
    for name, page in pages.items():
        for link in page.links:
            if "//" in link or link.startswith(("#", "mailto:")):
                continue
            assert (site / name).parent.joinpath(link.split("#")[0].split("?")[0]).exists(), (name, link)


# --- in a browser


@pytest.fixture(scope="module")
def browser():
    """Chromium, if there is one."""
    if not CHROMIUM:
        pytest.skip("there is no Chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(site))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def tab(browser, request):
    """A page of the browser, and all that goes wrong in it."""
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    page.wrong = []
    page.on("console", lambda said: said.type in ("error", "warning") and page.wrong.append(said.text))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("requestfailed", lambda asked: "ABORTED" in asked.failure or page.wrong.append(asked.url))
    page.on("response", lambda answer: answer.status >= 400 and page.wrong.append(answer.url))
    page.on("request", lambda asked: "127.0.0.1" in asked.url or page.wrong.append(asked.url))
    yield page
    page.close()


@pytest.mark.parametrize("tab", [400, 1400], indirect=True)
def test_every_page_opens_without_an_error_and_fits(tab, address, pages):
    for name in pages:
        tab.goto(address + name)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        size = tab.evaluate(
            "parseFloat(getComputedStyle(document.querySelector('article p, article')).fontSize)"
        )
        assert size >= 14, name
        broken = "Array.from(document.images).filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        assert tab.evaluate(broken) == [], name
    assert tab.wrong == []


@pytest.mark.parametrize("tab", [1400], indirect=True)
def test_one_finds_ones_way(tab, address):
    tab.goto(address)
    tab.click(".sidebar-tree >> text=2. The secret-sharing calculator")
    assert tab.inner_text("h1").startswith("2. The secret-sharing calculator")
    assert tab.locator("math").first.bounding_box()["width"] > 5
    tab.fill("input[name=q]", "Clopper")
    tab.press("input[name=q]", "Enter")
    tab.wait_for_selector("ul.search li a")
    found = tab.locator("ul.search li").all_inner_texts()
    assert any("6. Membership inference" in one or "membership_inference" in one for one in found)
    tab.click("ul.search li a >> nth=0")
    assert "Clopper" in tab.inner_text("article")
    assert tab.wrong == []
