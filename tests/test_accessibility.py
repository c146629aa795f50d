"The check by the rules of axe-core finds what it should; it is run on every chapter in `test_site.py`"
from browser import contrasts, open_page, violations, violations_in_both_themes

def test_nothing_is_in_the_way_of_a_search(tab, url, axe):
    open_page(tab, url + 'search.html')
    assert violations_in_both_themes(tab, axe) == []

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
