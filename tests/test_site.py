"The site that `docs/build.py` makes: first as files, then in a browser (Chromium; without one these tests are skipped)"
import functools, io, json, re, shutil, subprocess, sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest, yaml
from bs4 import BeautifulSoup
from nbdev.config import get_config
from PIL import Image, ImageStat

from browser import clean_tab, open_page, set_theme, violations_in_both_themes

root = Path(__file__).resolve().parent.parent
cfg = get_config(root)

def listed(entries):
    "Notebooks in the order of `_quarto.yml`"
    return [f for e in entries for f in (listed(e['chapters']) if isinstance(e, dict) else [e])]

book = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))['book']
names = listed(book['chapters'] + book['appendices'])
written = [n for n in names if (root/'nbs'/n).exists()]
every_chapter = pytest.mark.parametrize('name', written)

def cells(name): return json.loads((root/'nbs'/name).read_text(encoding='utf-8'))['cells']
def text(cell): return ''.join(cell['source'])
def title(name): return re.match(r'# (.+)', text(cells(name)[0]))[1]
def address(name): return re.sub(r'^\d+_', '', name).replace('.ipynb', '.html')
@functools.cache
def parse(site, page): return BeautifulSoup((site/page).read_text(encoding='utf-8'), 'html.parser')
def pictures(name):
    return [o for c in cells(name) if not text(c).startswith('#| hide') for o in c.get('outputs', []) if 'image/png' in o.get('data', {})]

def options(cell): return dict(re.findall(r'^#\| (label|fig-cap|fig-alt): (.+)$', text(cell), re.M))
def figures(name):
    "Label, caption and text alternative of every cell that shows a picture"
    return [options(c) for c in cells(name) if not text(c).startswith('#| hide')
            and any('image/png' in o.get('data', {}) for o in c.get('outputs', []))]
def tables(name):
    "Label and caption of every cell that shows a table"
    def shows_table(out): return re.search(r'<table|^\|', ''.join(out.get('data', {}).get('text/html', out.get('data', {}).get('text/markdown', ''))), re.M)
    return [dict(re.findall(r'^#\| (label|tbl-cap): (.+)$', text(c), re.M)) for c in cells(name) if not text(c).startswith('#| hide')
            and any(map(shows_table, c.get('outputs', [])))]
def number(name): return chr(ord('A') + book['appendices'].index(name)) if name in book['appendices'] else name[:2].lstrip('0')
def plain(sentence): return sentence.replace('`', '').replace('’', "'").replace('“', '"').replace('”', '"')

def formulas(name): return sum(text(c).count('$$')//2 for c in cells(name) if c['cell_type'] == 'markdown')

# Files

def test_every_notebook_is_listed_once():
    assert sorted(names) == sorted(f.name for f in (root/'nbs').glob('*.ipynb'))

@every_chapter
def test_title_cell_holds_title_and_subtitle_alone(name):
    "nbdev turns this cell into the page's title and drops whatever else stands in it"
    assert re.fullmatch(r'# .+\n\n> .+', text(cells(name)[0]).strip())

@every_chapter
def test_every_figure_has_a_label_a_caption_and_a_text_alternative(name):
    "The caption says what is drawn and what to see; the alternative says what it looks like to those who cannot see it"
    for f in figures(name):
        assert set(f) == {'label', 'fig-cap', 'fig-alt'}, f
        assert re.fullmatch(r'fig-' + Path(address(name)).stem.replace('_', '-') + r'-[a-z0-9-]+', f['label']), f['label']
        assert f['fig-cap'].endswith('.') and 8 <= len(f['fig-cap'].split()) <= 60 and f['fig-cap'] != f['fig-alt'], f['fig-cap']

@every_chapter
def test_every_table_has_a_label_and_a_caption(name):
    for t in tables(name):
        assert set(t) == {'label', 'tbl-cap'}, t
        assert re.fullmatch(r'tbl-' + Path(address(name)).stem.replace('_', '-') + r'-[a-z0-9-]+', t['label']), t['label']
        assert t['tbl-cap'].endswith('.') and 5 <= len(t['tbl-cap'].split()) <= 20, t['tbl-cap']

def test_labels_and_captions_are_unique():
    for kind, least in (figures, 100), (tables, 250):
        found = [o for name in written for o in kind(name)]
        for key in found[0]: assert len(found) == len({o[key] for o in found}) > least

@every_chapter
def test_tables_are_numbered_with_their_captions(site, name):
    shown = [(c.find_parent('table')['id'], plain(c.get_text().strip().rstrip('#'))) for c in parse(site, address(name)).select('article .cell_output caption')]
    assert shown == [(t['label'], plain(f"Table {number(name)}.{i}: {t['tbl-cap']}")) for i, t in enumerate(tables(name), 1)]

@every_chapter
def test_tables_in_prose_have_captions(site, name):
    "In the form that Pandoc knows, a paragraph before the table; what an entry of the API lists has its heading"
    texts = '\n\n'.join(text(c) for c in cells(name) if c['cell_type'] == 'markdown')
    told = re.findall(r'^Table: (.+\.)\n\n\|.+\n\|[-:| ]+\|$', texts, re.M)
    assert len(told) == len(set(told)) == len(re.findall(r'^\|[-:| ]+\|$', texts, re.M))
    shown = [plain(c.get_text().strip().rstrip('#')) for c in parse(site, address(name)).select('article :not(.cell_output) > table > caption')]
    assert [t for t in shown if not t.startswith('Table ')] == list(map(plain, told))

@every_chapter
def test_figures_are_numbered_with_their_captions(site, name):
    "As Quarto numbers them: by chapter or appendix, in order"
    shown = [(fig['id'], plain(fig.select_one('figcaption .caption-text').get_text())) for fig in parse(site, address(name)).select('article figure')]
    assert shown == [(f['label'], plain(f"Figure {number(name)}.{i}: {f['fig-cap']}")) for i, f in enumerate(figures(name), 1)]

@every_chapter
def test_page_has_the_title(site, name):
    assert title(name) in parse(site, address(name)).h1.get_text()

def test_the_number_of_a_file_is_its_number_on_the_site(site):
    "Chapters are numbered from 1 through all parts; appendices have letters"
    entries = {a['href']: a.get_text().split('.')[0] for a in parse(site, 'index.html').select('nav.bd-links a.internal')}
    for name in written:
        if name == 'index.ipynb': continue
        if name not in book['appendices']: assert entries[address(name)] == str(int(name[:2])), name
        else: assert entries[address(name)] == number(name), name

@every_chapter
def test_every_picture_has_a_text_alternative(site, name):
    shown = parse(site, address(name)).select('article .cell_output img')
    assert len(shown) == len(pictures(name))
    for img in shown: assert len(img['alt'].split()) > 3, f"{name}: no sentence that says what the picture shows: {img['alt']!r}"

def defined(name, directive):
    "Public names that the cells with this directive define"
    code = '\n'.join(text(c) for c in cells(name) if re.match(rf'#\| {directive}\s', text(c)))
    code = re.sub(r'^@patch.*\n(?:@.*\n)*def .*', '', code, flags=re.M)   # a method added to a class stands under its class
    return set(re.findall(r'^(?:class|def) ([A-Za-z]\w*)', code, re.M))

@every_chapter
def test_the_library_has_its_entries(site, name):
    "Each public name has an entry with a link to its source; where a cell says `exports`, its code is shown too"
    page = parse(site, address(name))
    entries = {a.find_previous('h3').find(string=True) for a in page.select('article a.source')}
    assert defined(name, 'exports?') <= entries
    shown = '\n'.join(cell.get_text() for cell in page.select('article .cell_input'))
    assert defined(name, 'exports') <= set(re.findall(r'^(?:class|def) (\w+)', shown, re.M))

@every_chapter
def test_no_directive_and_no_other_engines_syntax_is_left(site, name):
    article = parse(site, address(name)).article
    for leftover in ('#|', 'show_doc(', '{target=', ':::', '<details', '</details'): assert leftover not in article.get_text()
    prose = ''.join(t for t in article.find_all(string=True) if not (t.find_parent(['pre', 'code']) or t.find_parent(class_='math')))
    assert not re.search(r'\]\((?!note\))', prose), 'a link within a link: nbdev links names in backticks by itself'

@every_chapter
def test_colab_link(site, name):
    links = [a['href'] for a in parse(site, address(name)).select('article a[href*="colab.research.google.com"]')]
    slug = cfg.git_url.removeprefix('https://github.com/')
    expected = f'https://colab.research.google.com/github/{slug}/blob/{cfg.branch}/nbs/{name}'
    has_code = any(c['cell_type'] == 'code' for c in cells(name))
    assert links == [expected]*has_code

def test_links_within_the_site_lead_somewhere(site):
    pages = {p.name: parse(site, p.name) for p in site.glob('*.html')}
    ids = {name: {t['id'] for t in page.select('[id]')} for name, page in pages.items()}
    for name, page in pages.items():
        for a in page.select('a[href]'):
            url = urlsplit(a['href'])
            if url.scheme or url.netloc: continue
            target = url.path or name
            assert (site/target).exists(), f'{name} -> {a["href"]}'
            if url.fragment and target in ids: assert unquote(url.fragment) in ids[target], f'{name} -> {a["href"]}'

def test_a_name_in_code_that_is_a_link_leads_to_that_name(site):
    "nbdev makes these links; a name without an entry leads to its page"
    pages = {p.name: parse(site, p.name) for p in site.glob('*.html')}
    entries = {name: {a.find_parent('section')['id']: a.find_previous('h3').find(string=True).strip() for a in page.select('article a.source')}
               for name, page in pages.items()}
    followed = 0
    for name, page in pages.items():
        for link in page.select('article a:has(code)'):
            url = urlsplit(link['href'])
            if url.netloc or not url.fragment or link.get_text() != link.code.get_text(): continue
            followed += 1
            leads = entries[url.path or name].get(unquote(url.fragment), '')
            assert leads.split('.')[-1] == link.get_text().split('(')[0].split('.')[-1], f'{name}: {link.get_text()} -> {link["href"]}'
    assert followed > 300

def test_next_and_previous_walk_the_book(site):
    def walk(page, way):
        link = parse(site, page).select_one(way)
        return [page, *(walk(link['href'], way) if link else [])]
    order = [address(n) for n in written]
    assert walk(order[0], 'a.right-next') == order
    assert walk(order[-1], 'a.left-prev') == order[::-1]

def test_a_link_that_leads_nowhere_stops_the_build(tmp_path):
    shutil.copytree(root/'docs', tmp_path/'docs')
    shutil.copy(root/'pyproject.toml', tmp_path)
    (tmp_path/'_quarto.yml').write_text('book: {title: t, chapters: [index.ipynb], appendices: []}')
    sources = ['# Title\n\n> subtitle', '[a](#right), [b](index.ipynb#wrong), [c](05_missing.ipynb)', '## Right']
    md = [dict(cell_type='markdown', id=str(i), metadata={}, source=s) for i, s in enumerate(sources)]
    (tmp_path/'nbs').mkdir()
    (tmp_path/'nbs'/'index.ipynb').write_text(json.dumps(dict(cells=md, metadata={}, nbformat=4, nbformat_minor=5)))
    build = subprocess.run([sys.executable, tmp_path/'docs'/'build.py'], capture_output=True, text=True)
    assert build.returncode == 1
    assert re.findall(r"'([^' ]+)' .myst", build.stderr) == ['wrong', '05_missing.ipynb']

# A browser

@pytest.fixture(scope='module', params=written)
def chapter(request, chromium, url):
    "A chapter opened in a tab, and the name of its notebook"
    with clean_tab(chromium) as tab:
        open_page(tab, url + address(request.param))
        yield tab, request.param

visible_text = """() => {
    const copy = document.querySelector('article').cloneNode(true)
    copy.querySelectorAll('pre, code, mjx-container, script, style').forEach(e => e.remove())
    return copy.textContent }"""

def check_formulas(tab):
    "Every formula is set and has a size, none is an error, and no TeX is left over"
    sizes = tab.eval_on_selector_all('article mjx-container', 'all => all.map(m => [m.offsetWidth, m.offsetHeight])')
    assert len(sizes) == tab.locator('article .math').count()
    assert all(w > 2 and h > 2 for w, h in sizes)
    assert tab.locator('article mjx-merror, article [mathcolor="red"]').count() == 0
    left = re.findall(r'.*(?:\$|\\[a-zA-Z]{2,}).*', tab.evaluate(visible_text))
    assert not left
    return len(sizes)

def test_formulas_are_set(chapter):
    tab,name = chapter
    assert check_formulas(tab) or not formulas(name)

def test_code_can_be_copied(chapter):
    tab,_ = chapter
    assert tab.locator('article .cell_input pre').count() == tab.locator('article .cell_input button.copybtn').count()

def test_pictures_are_readable_in_the_dark(chapter):
    "Behind a drawing is the dark page, and its lines are light; the plate of photographs is dimmed"
    tab,_ = chapter
    set_theme(tab, 'dark')
    for img in tab.locator('article .cell_output img').all():
        img.scroll_into_view_if_needed()
        shown = Image.open(io.BytesIO(img.screenshot())).convert('L')
        corner, photo = shown.getpixel((1, 1)), 'photo' in (img.get_attribute('class') or '')
        assert corner < (200 if photo else 60)
        assert shown.getextrema()[1] > 150 and ImageStat.Stat(shown).stddev[0] > 3

def test_code_fits_its_box(chapter):
    "No box with code scrolls sideways, from a tablet on its side to a large screen"
    tab,_ = chapter
    for width in (960, 1024, 1200, 1280, 1366, 1440):   # at both ends of what the theme sets apart
        tab.set_viewport_size(dict(width=width, height=900))
        wide = tab.eval_on_selector_all('article pre', 'all => all.map(e => e.scrollWidth - e.clientWidth)')
        assert max(wide, default=0) <= 1, width

def test_page_fits_a_phone(chapter):
    tab,_ = chapter
    tab.set_viewport_size(dict(width=390, height=844))
    assert tab.evaluate('document.documentElement.scrollWidth') <= 390
    squeeze = 'all => all.map(i => i.width/i.height / (i.naturalWidth/i.naturalHeight))'
    for ratio in tab.eval_on_selector_all('article .cell_output img', squeeze): assert ratio == pytest.approx(1, abs=.02)

def test_nothing_is_in_the_way(chapter, axe):
    "The last test of a page: it changes what it has looked at"
    tab,_ = chapter
    tab.set_viewport_size(dict(width=1280, height=900))
    assert violations_in_both_themes(tab, axe) == []

def test_sidebar_shows_the_parts(tab, url):
    tab.goto(url + 'index.html')
    parts = [e['part'] for e in book['chapters'] if isinstance(e, dict) and set(e['chapters']) & set(written)]
    assert tab.locator('.bd-sidebar-primary .caption-text').all_inner_texts() == [*parts, 'Appendices']

def test_the_title_page_fits_a_screen(tab, url):
    "What the book answers, its picture and the three doors are seen without scrolling"
    tab.set_viewport_size(dict(width=1440, height=900))
    tab.goto(url + 'index.html')
    for door in ('I want to learn', 'My network is sick', 'Is a claim true'):
        box = tab.locator('article li', has_text=door).bounding_box()
        assert box['y'] + box['height'] <= 900

def test_folded_code_opens(tab, url):
    "What a cell hides with `code-fold`, and answers in `<details>`, show when one asks for them"
    for page, fold in (('play.html', 'details.hide'), ('diagnose.html', 'article details')):
        tab.goto(url + page)
        fold = tab.locator(fold).first
        inside = fold.locator('pre, p:not(summary p)').first
        assert not inside.is_visible()
        fold.locator('summary').press('Enter')
        assert inside.is_visible()

def test_next_and_previous(tab, url):
    first,second,third = [url + address(n) for n in written[:3]]
    tab.goto(first)
    for way, goal in [('a.right-next', second), ('a.right-next', third), ('a.left-prev', second)]:
        tab.locator(way).click()
        tab.wait_for_url(goal)

def test_search_leads_to_the_chapter(tab, url):
    tab.goto(url + 'index.html')
    tab.locator('button.search-button__button:visible').first.click()
    field = tab.locator('input[name=q]:visible').first
    field.fill('depth_scaled_normal')
    field.press('Enter')
    tab.locator('#search-results li a[href^="init.html"]').first.click()
    tab.wait_for_url('**/init.html**')
    assert tab.locator('article h3', has_text='depth_scaled_normal').is_visible()

def test_dark_mode_switch(tab, url):
    def theme(): return tab.evaluate('[document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]')
    tab.goto(url + 'init.html')
    light,white = theme()
    tab.locator('.theme-switch-button:visible').first.click()
    tab.locator('.theme-change-button[data-mode=dark]:visible').first.click()
    tab.wait_for_function("document.documentElement.dataset.theme == 'dark'")
    assert light == 'light' and theme()[1] != white
    tab.reload()
    assert theme()[0] == 'dark'

def test_a_page_opens_from_a_folder(tab, site):
    "Without any server, formulas are set"
    name = max(written, key=formulas)
    open_page(tab, (site/address(name)).as_uri())
    assert check_formulas(tab) or not formulas(name)

def test_search_finds_from_a_folder(chromium, site):
    "Without any server the search finds pages; only the excerpts below them need one"
    page = chromium.new_page()
    page.goto((site/'search.html').as_uri() + '?q=depth_scaled_normal')
    page.locator('#search-results li a[href^="init.html"]').first.wait_for()
    page.close()
