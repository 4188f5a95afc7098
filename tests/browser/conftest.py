"""Fixtures. Every page of every test is watched: a violation of the policy, an uncaught error or a request to another host fails it."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from mock import Mock

WATCH = """
window.violations = [];
document.addEventListener('securitypolicyviolation', (event) => window.violations.push(event.violatedDirective + ' ' + event.blockedURI));
window.alert = () => { window.pwned = true; };
"""
expect.set_options(timeout=15_000)


def pytest_addoption(parser):
    parser.addoption("--server", help="base URL of a running `cachalot serve`; test_server.py asks it, the rest is left out")
    parser.addoption("--screenshots", help="folder for pictures of the page (test_pictures.py)")
    parser.addoption("--chromium", default=os.environ.get("CHROMIUM") or shutil.which("chromium"), help="the browser's program")


def pytest_collection_modifyitems(config, items):
    server = config.getoption("--server")
    for item in items:
        if (item.path.name == "test_server.py") != bool(server):
            item.add_marker(pytest.mark.skip(reason="needs --server URL" if not server else "not against a real server"))
        if item.path.name == "test_pictures.py" and not config.getoption("--screenshots"):
            item.add_marker(pytest.mark.skip(reason="needs --screenshots DIR"))


@pytest.fixture(scope="session")
def browser(request):
    program = request.config.getoption("--chromium")
    if not program:
        pytest.exit("no chromium found: apt-get install chromium, or --chromium PATH", 2)
    # Root has no sandbox to put Chromium in.
    args = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=args)
        yield browser
        browser.close()


@pytest.fixture
def mock():
    server = Mock()
    yield server
    server.go_away()


@contextmanager
def watched_pages(browser):
    watched, contexts = [], []

    def open_page(url, context=None, **options):
        options = {"viewport": {"width": 1280, "height": 800}, **options}
        context = context or browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        errors, outside = [], []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda asked: outside.append(asked.url) if not asked.url.startswith((url, "data:", "blob:")) else None)
        page.add_init_script(WATCH)
        page.goto(url)
        watched.append((page, errors, outside))
        return page

    yield open_page
    for page, errors, outside in watched:
        if not page.is_closed():
            assert page.evaluate("window.violations") == [], "the content security policy was violated"
            assert not page.evaluate("Boolean(window.pwned)"), "text ran as a script"
        assert errors == [], "uncaught errors on the page"
        assert outside == [], "requests to another host"
    for context in contexts:
        context.close()


@pytest.fixture
def open_page(browser):
    """open_page(url, **context options) -> a watched page; pages of one test share nothing unless `context` is given."""
    with watched_pages(browser) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def shared_page(browser):
    """A watched page for tests that only call its modules."""
    server = Mock()
    with watched_pages(browser) as open_page:
        yield open_page(server.url)
    server.go_away()


@pytest.fixture
def page(open_page, mock):
    page = open_page(mock.url)
    expect(page.locator("#facts")).to_contain_text("mock-1")
    return page


@pytest.fixture
def phone(open_page, mock):
    page = open_page(mock.url, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, device_scale_factor=2)
    expect(page.locator("#facts")).to_contain_text("mock-1")
    return page


@pytest.fixture
def pictures(request):
    folder = Path(request.config.getoption("--screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
