"What the appendices and the files beside the book promise"
import json, re, sys, tomllib
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest, yaml
from bs4 import BeautifulSoup
from resnotes import _pages

root = Path(__file__).resolve().parent.parent
sys.path.append(str(root/'docs'))
import offline
def cells(name): return json.loads(next((root/'nbs').glob(f'*_{name}.ipynb')).read_text(encoding='utf-8'))['cells']
def source(cell): return ''.join(cell['source'])

def recipes():
    "Title and cells of each recipe"
    found = {}
    for cell in cells('cookbook'):
        if source(cell).startswith('## '): found[source(cell)[3:]] = []
        elif found: found[list(found)[-1]].append(cell)
    return found

def test_there_are_ten_to_fifteen_recipes(): assert 10 <= len(recipes()) <= 15

@pytest.mark.parametrize('title', recipes())
def test_a_recipe_is_short_shows_what_it_prints_and_says_where_it_comes_from(title):
    parts = recipes()[title]
    shown = [c for c in parts if c['cell_type'] == 'code' and not source(c).startswith('#| hide')]
    for cell in shown: assert len([l for l in source(cell).splitlines() if l.strip()]) <= 10, source(cell)
    assert any(c['outputs'] for c in shown), 'no output'
    assert re.search(r'\]\(\d\d_\w+\.ipynb', source(parts[-1])), 'no link to a chapter'

def test_every_term_has_one_meaning_and_a_place():
    rows = [re.findall(r'(?:\\\||[^|])+', line) for c in cells('symbols') for line in source(c).splitlines()
            if line.startswith('|') and not re.match(r'\|(-|\s*(symbol|term)\s*\|)', line)]
    names = [n.strip() for term, *_ in rows for n in term.split(',') if "$" not in term]
    assert len(rows) > 40 and len(names) == len(set(names))
    for term, meaning, where in (row[:3] for row in rows): assert '.ipynb' in where, term
    for wanted in ('share', 'gain', 'main path', 'stem', 'sampler', 'placement', 'tap', 'plateau', 'harmonic', 'sensitivity',
                   'fan-in'): assert wanted in names

def test_the_citation_agrees_with_the_package():
    cited = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))
    ini = ConfigParser(interpolation=None)
    ini.read(root/'settings.ini')
    urls = tomllib.loads((root/'pyproject.toml').read_text())['project']['urls']
    assert str(cited['version']) == ini['DEFAULT']['version'] and cited['license'] == ini['DEFAULT']['license']
    assert cited['repository-code'] == urls['Repository'] and cited['url'] == urls['Documentation']

def test_templates_are_forms_that_can_be_read():
    for path in (root/'.github'/'ISSUE_TEMPLATE').glob('*.yml'):
        form = yaml.safe_load(path.read_text(encoding='utf-8'))
        if path.stem == 'config': continue
        assert form['name'] and form['description'] and all({'type', 'attributes'} <= set(part) for part in form['body'])

def test_a_term_leads_to_the_glossary_where_the_book_introduces_it():
    "The chapter that a row of the glossary names links back, in a word that begins like the term"
    rows = re.findall(r'^\| ([^|$`]+) \| .* \| \[[^]]*\]\(\d\d_(\w+)\.ipynb', '\n'.join(source(c) for c in cells('symbols')), re.M)
    assert len(rows) > 35
    for term, chapter in rows:
        linked = re.findall(r'\[\*?([^]*]+)\*?\]\(96_symbols\.ipynb#', '\n'.join(source(c) for c in cells(chapter)))
        assert any(word.lower().startswith(name.strip()[:5]) for word in linked for name in term.split(',')), f'{term} in {chapter}'

def heads(frame):
    "Rows of the header of a data frame as a page shows it: tag and text of each cell"
    soup = BeautifulSoup(_pages.plain_html(frame._repr_html_()), 'html.parser')
    return [[(th.name, th.get_text()) for th in row.find_all(['th', 'td'])] for row in soup.thead.find_all('tr')]

def test_the_index_of_a_table_is_named_in_one_row_of_headers():
    frame = pd.DataFrame({'a_b': [1], 'c': [2]})
    assert heads(frame.set_axis(['x'])) == [[('td', ''), ('th', 'a_b'), ('th', 'c')]]
    assert heads(frame.rename_axis('i')) == [[('th', 'i'), ('th', 'a_b'), ('th', 'c')]]
    assert heads(frame.set_index(['a_b', 'c']).assign(d=3)) == [[('th', 'a_b'), ('th', 'c'), ('th', 'd')]]

def test_an_index_that_only_counts_is_left_out():
    frame = pd.DataFrame({'a': ['x', 'y'], 'b': [2, 3]})
    assert heads(frame) == [[('th', 'a'), ('th', 'b')]]
    assert '<td>x</td>' in _pages.plain_html(frame._repr_html_()) and '<th>0</th>' not in _pages.plain_html(frame._repr_html_())
    for kept in (frame.rename_axis('i'), frame[::-1], frame[1:], frame.rename_axis('of', axis=1), frame.T, frame.set_index('a')):
        assert '<th>' in _pages.plain_html(kept._repr_html_()).partition('<tbody>')[2]

def test_what_names_the_columns_keeps_a_row_of_its_own():
    frame = pd.DataFrame({'a': [1]}).rename_axis('i').rename_axis('of', axis=1)
    assert heads(frame) == [[('th', 'of'), ('th', 'a')], [('th', 'i'), ('td', '')]]
    assert len(heads(pd.concat({'both': frame}, axis=1))) == 3

def tables(path):
    "Every table that a chapter shows, after its cell's last line"
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        for out in cell.get('outputs', []):
            html = ''.join(out.get('data', {}).get('text/html', ''))
            for table in BeautifulSoup(html, 'html.parser').find_all('table'): yield source(cell)[-200:], table

of_each = pytest.mark.parametrize('path', sorted((root/'nbs').glob('*.ipynb')), ids=lambda p: p.stem)

def unnamed(table):
    "Whether the labels of a data frame's rows stand under no name, or under one that is the columns'"
    labels = len(table.tbody.tr.find_all('th')) if table.tbody.tr else 0
    *above, names = table.thead.find_all('tr')
    return labels > 0 and (not above or not all(th.get_text() for th in names.find_all(['th', 'td'])[:labels]))

@of_each
def test_the_labels_of_a_table_have_a_name(path):
    "An index that only counts has none, and the page leaves it out"
    for code, table in tables(path):
        _pages.hide_count(table)
        assert not unnamed(table), code

def number_styles(column):
    "In how many ways the numbers of a column are written: decimals, and whether as powers of ten; an exact zero has any"
    numbers = [re.fullmatch(r'-?\d[\d,]*\.?(\d*)(e[+-]\d+)?', text) for text in column if text != '0']
    return {(len(m[1]), bool(m[2])) for m in numbers if m}

@of_each
def test_the_numbers_of_a_column_are_written_in_one_style(path):
    for code, table in tables(path):
        for column in zip(*([td.get_text() for td in row.find_all('td')] for row in table.tbody.find_all('tr'))):
            assert len(number_styles(column)) < 2, f'{column}\n{code}'

def test_faults_of_tables_are_found():
    def of(frame): return BeautifulSoup(frame._repr_html_(), 'html.parser').table
    frame = pd.DataFrame({'a': [1.5, 2.]}, index=['x', 'y'])
    assert unnamed(of(frame)) and unnamed(of(frame.rename_axis('of', axis=1))) and not unnamed(of(frame.rename_axis('i')))
    assert unnamed(of(frame.set_axis(pd.MultiIndex.from_tuples([(1, 2), (3, 4)], names=['i', None]))))
    assert [len(number_styles(c)) for c in (['1', '2.5'], ['1e-05', '0.1'], ['0', '0.50', '1.25', 'NaN', ''])] == [2, 2, 1]

def test_no_output_is_html_for_quarto():
    "It would load two libraries of scripts from another host for each page"
    cell = SimpleNamespace(cell_type='code', source='', get={'outputs': [{'data': {'text/html': ['<b>1</b>', '\n\n2']}}]}.get)
    _pages.plain_tables(cell)
    assert cell.get('outputs') == [{'data': {'text/markdown': '```{=html}\n<b>1</b>\n2\n```\n'}}]

def test_captions_and_alternatives_are_quoted():
    cell = SimpleNamespace(cell_type='code', source='#| label: fig-a\n#| fig-cap: One: "two" # three\n#| fig-alt: ½ of $\\pi$\n1')
    _pages.quote_text(cell)
    front = ''.join(line[2:] for line in cell.source.splitlines(True)[:3])
    assert yaml.safe_load(front) == {'label': 'fig-a', 'fig-cap': 'One: "two" # three', 'fig-alt': '½ of $\\pi$'}

def fronts(**described):
    "What the first cell of a chapter and of the title page says to Quarto"
    for path in '01_init.ipynb', 'index.ipynb':
        cell = SimpleNamespace(cell_type='raw', source='---\n---\n')
        proc = _pages.front(SimpleNamespace(path_=path, cells=[cell], frontmatter_=dict(described)))
        proc.begin()
        yield yaml.safe_load(proc.nb.cells[0].source.strip().strip('-'))

def test_quarto_shows_subtitles_once_and_counts_no_title_page():
    chapter, home = fronts(title='A "title"', description='and: more')
    assert chapter == {'title': 'A "title"', 'description': 'and: more', 'subtitle': 'and: more'}
    assert home == {'title': 'A "title" {.unnumbered}', 'description': 'and: more', 'hide-description': True}

def test_what_quarto_is_told_agrees_with_the_package():
    told = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))
    urls = tomllib.loads((root/'pyproject.toml').read_text())['project']['urls']
    assert told['book']['repo-url'] == urls['Repository'] and (root/told['book']['repo-subdir']/'index.ipynb').exists()
    assert (root/'nbs'/told['project']['post-render']).resolve() == root/'docs'/'offline.py'
    for theme in told['format']['html']['theme'].values(): assert (root/'nbs'/theme[1]).exists()

page = '''<html><head><link rel="canonical" href="https://a.b/c.html"><link href="site_libs/x.css" rel="stylesheet">
<script src="site_libs/y.js"></script>
<script src="https://cdnjs.cloudflare.com/polyfill/v3/polyfill.min.js?features=es6"></script>
  <script src="https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-chtml-full.js" type="text/javascript"></script>
</head><body><a href="https://a.b">link</a></body></html>'''

def test_a_page_of_quarto_asks_no_other_host():
    mended = offline.own(page)
    assert '<script src="mathjax/tex-chtml-full.js" type="text/javascript">' in mended and 'site_libs/y.js' in mended
    assert len(offline.asked(page)) == 2 and offline.asked(mended) == []
    assert offline.asked('@import url("https://fonts.googleapis.com/css2?a");') == ['https://fonts.googleapis.com/css2?a']
    assert offline.asked('<link rel="stylesheet" href="https://a.b/c.css">') == ['https://a.b/c.css']

def test_pages_that_ask_another_host_are_named(tmp_path, capsys, monkeypatch):
    (tmp_path/'a.html').write_text(page)
    offline.main(tmp_path)
    assert (tmp_path/'mathjax'/'tex-chtml-full.js').exists() and 'mathjax/tex' in (tmp_path/'a.html').read_text()
    (tmp_path/'b.css').write_text('a { src: url(https://c.d/e.woff) }')
    assert capsys.readouterr().out == ''
    offline.main(tmp_path)
    assert re.fullmatch(r'b.css asks another host: https://c.d\S*\n', capsys.readouterr().out)
    def missing(name): raise ModuleNotFoundError(name)
    monkeypatch.setattr(offline, 'import_module', missing)
    (tmp_path/'a.html').write_text(page)
    offline.main(tmp_path)
    assert (tmp_path/'a.html').read_text() == page

def first_code(path):
    "The first code cell of a chapter besides the one that names its module"
    found = (source(c) for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code')
    return next((code for code in found if not code.startswith('#| default_exp')), None)

class Shell:
    "What Colab gives a notebook, as far as the first cell asks for it"
    def __init__(self): self.asked = []
    def run_line_magic(self, name, line): self.asked.append((name, line))

@pytest.mark.parametrize('path', sorted((root/'nbs').glob('*.ipynb')), ids=lambda p: p.stem)
def test_a_chapter_installs_on_colab_what_is_missing_and_nothing_else(path, monkeypatch):
    code = first_code(path)
    if code is None: return
    shell, repository = Shell(), tomllib.loads((root/'pyproject.toml').read_text())['project']['urls']['Repository']
    def run(there):
        monkeypatch.setattr('importlib.util.find_spec', lambda name: there)
        exec(code, {'get_ipython': lambda: shell})
    run(None)                                                   # not on Colab
    monkeypatch.setitem(sys.modules, 'google.colab', object())
    run('a package')                                            # there already
    assert shell.asked == []
    run(None)
    kept = ' '.join(f'{name}=={version(name)}' for name in ('torch', 'numpy'))
    assert shell.asked == [('pip', f'install -q {kept} "resnotes[train] @ git+{repository}"')]
