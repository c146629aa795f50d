"A headless Chromium and the site on a local address, for the tests that open pages (skipped where there is no browser)"
import functools, shutil, threading
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

flags = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update '
         '--disable-sync').split()

@pytest.fixture(scope='session')
def chromium():
    "A headless browser; the tests that need one are skipped where there is none"
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not chromium: pytest.skip('pages are not opened in a browser: no Chromium on this machine')
    sync_api = pytest.importorskip('playwright.sync_api', reason='pages are not opened in a browser: no playwright')
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()

class Quiet(SimpleHTTPRequestHandler):
    "A page that is left before all of it has come closes its connections; that is not worth a word"
    def log_message(self, *args): pass
    def copyfile(self, source, outputfile):
        with suppress(ConnectionError): super().copyfile(source, outputfile)

@pytest.fixture(scope='session')
def url(site):
    "The site's address on this machine"
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()

@contextmanager
def clean_tab(browser):
    """A tab in which nothing may go wrong, and from which no request may leave this machine.
    A request that the browser itself gave up, because the reader went on to another page, is not an error."""
    context = browser.new_context(viewport=dict(width=1280, height=900), color_scheme='light')
    tab,wrong = context.new_page(),[]
    tab.on('request', lambda r: urlsplit(r.url).hostname in (None, '', '127.0.0.1') or wrong.append(f'asked for {r.url}'))
    tab.on('requestfailed', lambda r: r.failure == 'net::ERR_ABORTED' or wrong.append(f'did not get {r.url}: {r.failure}'))
    tab.on('response', lambda r: r.status < 400 or wrong.append(f'{r.status} for {r.url}'))
    tab.on('console', lambda m: m.type == 'error' and wrong.append(f'console: {m.text}'))
    tab.on('pageerror', lambda e: wrong.append(f'script: {e}'))
    yield tab
    context.close()
    assert not wrong, wrong

def open_page(tab, address):
    "Go to a page, open its folded parts and wait until its formulas are set"
    tab.goto(address)
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    tab.evaluate("Promise.allSettled(document.getAnimations().map(a => a.finished)).then(() => null)")   # they fade in
    tab.evaluate("window.MathJax?.startup?.promise?.then(() => document.fonts.ready).then(() => null)")

@pytest.fixture
def tab(chromium):
    "A clean tab"
    with clean_tab(chromium) as tab: yield tab
