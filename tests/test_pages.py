"What the appendices and the files beside the book promise"
import json, re, tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest, yaml

root = Path(__file__).resolve().parent.parent
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
