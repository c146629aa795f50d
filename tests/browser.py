"A headless Chromium, the site on a local address and the rules of axe-core, for the tests that open pages (skipped where there is no browser)"
import functools, shutil, threading
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

flags = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update '
         '--disable-sync').split()
# the first draws the same pages in two thirds of the time
programs = 'chromium-headless-shell', 'chromium', 'chromium-browser', 'google-chrome'

@pytest.fixture(scope='session')
def chromium():
    "A headless browser; the tests that need one are skipped where there is none"
    chromium = next(filter(None, map(shutil.which, programs)), None)
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

def set_theme(tab, theme):
    tab.emulate_media(color_scheme=theme)
    tab.wait_for_function(f"document.documentElement.dataset.theme == '{theme}'")

@pytest.fixture
def tab(chromium):
    "A clean tab"
    with clean_tab(chromium) as tab: yield tab

# Accessibility

@pytest.fixture(scope='session')
def axe():
    "The program that checks a page"
    resources = pytest.importorskip('axe_playwright_python.base', reason='pages are not checked for accessibility: no axe-playwright-python')
    return resources.AXE_FILE_PATH.read_text(encoding='utf-8')

# the first text of each kind: alike in its colours, its size and weight, its tag and class
kinds = '''() => {
    const seen = new Set(), clear = /^rgba\\(.* 0\\)$/
    const behind = e => !e || !clear.test(getComputedStyle(e).backgroundColor) ? e && getComputedStyle(e).backgroundColor : behind(e.parentElement)
    document.querySelectorAll('[data-kind]').forEach(e => e.removeAttribute('data-kind'))
    for (const e of document.body.querySelectorAll('*')) {
        if (!e.checkVisibility() || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue
        const s = getComputedStyle(e), kind = [s.color, behind(e), s.fontSize, s.fontWeight, s.opacity, e.tagName, e.getAttribute('class')].join()
        if (!seen.has(kind)) seen.add(kind), e.setAttribute('data-kind', seen.size)
    }
    return seen.size
}'''
by_colour = ['color-contrast', 'link-in-text-block']   # rules that a theme can break; the slowest ones, so a kind of text is looked at once

def run_axe(tab, where, options):
    "Rules that are broken, each with its impact and the first element"
    found = tab.evaluate('([where, options]) => axe.run(where || document, {preload: false, ...options}).then(r => r.violations)', [where, options])
    return [f"{v['impact']}: {v['id']}: {len(v['nodes'])} such as {v['nodes'][0]['html'][:200]}" for v in found]

def contrasts(tab, axe):
    "Kinds of text that cannot be told from what is behind or beside them"
    tab.evaluate(axe)
    assert tab.evaluate(kinds), 'no text'
    return run_axe(tab, {'include': [['[data-kind]']]}, {'runOnly': by_colour})

def violations(tab, axe):
    "Rules that a page breaks, without those of colours; the words of code, which no rule tells apart, become one text and save half the time"
    tab.evaluate(axe)
    tab.evaluate("document.querySelectorAll('pre').forEach(p => p.textContent = p.textContent)")
    return run_axe(tab, None, {'rules': {rule: {'enabled': False} for rule in by_colour}})

def violations_in_both_themes(tab, axe):
    "All rules that a page of the site breaks"
    pale = []
    for theme in ('light', 'dark'):
        set_theme(tab, theme)
        pale += [f'{theme}: {found}' for found in contrasts(tab, axe)]
    return pale + violations(tab, axe)
