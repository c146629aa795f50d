"Every page, in both themes, against the rules of axe-core"
import pytest

from browser import clean_tab, open_page
from test_site import address, written

@pytest.fixture(scope='session')
def axe():
    "The program that checks a page"
    resources = pytest.importorskip('axe_playwright_python.base', reason='pages are not checked for accessibility: no axe-playwright-python')
    return resources.AXE_FILE_PATH.read_text(encoding='utf-8')

def violations(tab, axe, where=None):
    "Rules that a page breaks, each with its impact and the first element"
    tab.evaluate(axe)
    found = tab.evaluate('where => axe.run(where || document, {preload: false}).then(r => r.violations)', where)
    return [f"{v['impact']}: {v['id']}: {len(v['nodes'])} such as {v['nodes'][0]['html'][:200]}" for v in found]

@pytest.mark.parametrize('name', [*written, 'search.html'])
def test_nothing_is_in_the_way(name, chromium, url, axe):
    with clean_tab(chromium) as tab:
        open_page(tab, url + address(name))
        for theme in ('light', 'dark'):
            tab.emulate_media(color_scheme=theme)
            tab.wait_for_function(f"document.documentElement.dataset.theme == '{theme}'")
            assert violations(tab, axe) == [], theme

def test_the_check_finds_something(tab, axe):
    "A picture without a text alternative and an empty link"
    tab.set_content('<html lang="en"><title>t</title><main><h1>t</h1><img src="data:,"><a href="#x"></a></main></html>')
    found = ' '.join(violations(tab, axe))
    assert 'image-alt' in found and 'link-name' in found

def test_the_first_tab_stop_leads_to_the_text(tab, url):
    tab.goto(url + 'init.html')
    tab.keyboard.press('Tab')
    assert 'main content' in tab.evaluate('document.activeElement.innerText').lower()
    tab.keyboard.press('Enter')
    assert tab.evaluate("location.hash") == '#main-content'
