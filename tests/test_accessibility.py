"Every page, in both themes, against the rules of axe-core"
import pytest

from browser import clean_tab, open_page
from test_site import address, written

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

def violations(tab, axe, where=None):
    "Rules that a page breaks, without those of colours; the words of code, which no rule tells apart, become one text and save half the time"
    tab.evaluate(axe)
    tab.evaluate("document.querySelectorAll('pre').forEach(p => p.textContent = p.textContent)")
    return run_axe(tab, where, {'rules': {rule: {'enabled': False} for rule in by_colour}})

@pytest.mark.parametrize('name', [*written, 'search.html'])
def test_nothing_is_in_the_way(name, chromium, url, axe):
    with clean_tab(chromium) as tab:
        open_page(tab, url + address(name))
        for theme in ('light', 'dark'):
            tab.emulate_media(color_scheme=theme)
            tab.wait_for_function(f"document.documentElement.dataset.theme == '{theme}'")
            assert contrasts(tab, axe) == [], theme
        assert violations(tab, axe) == []

def test_the_check_finds_something(tab, axe):
    "A picture without a text alternative and an empty link"
    tab.set_content('<html lang="en"><title>t</title><main><h1>t</h1><img src="data:,"><a href="#x"></a></main></html>')
    found = ' '.join(violations(tab, axe))
    assert 'image-alt' in found and 'link-name' in found

def test_pale_text_is_found_wherever_it_stands_first(tab, axe):
    "Among texts of other kinds, in a child, behind one that is hidden; the same grey on a black background further up is fine"
    pale = '<span style="color: #bbb">pale</span>'
    tab.set_content(f'<html lang="en"><title>t</title><main><h1>t</h1><p>dark</p><p hidden>{pale}</p><p>dark {pale}</p></main></html>')
    assert any('color-contrast: 1 ' in v for v in contrasts(tab, axe))
    tab.set_content(f'<html lang="en"><title>t</title><main style="background: #000; color: #fff"><h1>t</h1><p>light {pale}</p></main></html>')
    assert contrasts(tab, axe) == []
    tab.set_content(f'<html lang="en"><title>t</title><main><div style="background: #000">{pale}</div><div>{pale}</div></main></html>')
    assert any('color-contrast: 1 ' in v for v in contrasts(tab, axe))

def test_the_first_tab_stop_leads_to_the_text(tab, url):
    tab.goto(url + 'init.html')
    tab.keyboard.press('Tab')
    assert 'main content' in tab.evaluate('document.activeElement.innerText').lower()
    tab.keyboard.press('Enter')
    assert tab.evaluate("location.hash") == '#main-content'
