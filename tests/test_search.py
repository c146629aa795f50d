"What readers type into the search leads to the right page among the first three results"
import re
from pathlib import Path

import pytest, yaml
from bs4 import BeautifulSoup

root = Path(__file__).resolve().parent.parent
terms = yaml.safe_load((root/'docs'/'terms.yml').read_text(encoding='utf-8'))

queries = {
    'exploding gradient': 'signal', 'vanishing gradients': 'signal', 'loss is nan': 'diagnose', 'nan': 'diagnose',
    'kaiming': 'init', 'xavier': 'init', 'glorot_normal': 'init', 'depth_scaled_normal': 'init',
    'skip connection': 'blocks', 'drop path': 'blocks', 'pre-activation': 'blocks', 'batchnorm': 'norm', 'fold_bn': 'norm',
    'checkerboard': 'samplers', 'pixel shuffle': 'samplers', 'Lovász': 'losses', 'Lovasz': 'losses', 'IoULoss': 'losses',
    'warmup': 'trial', 'learning rate': 'rate', 'glossary': 'symbols', 'notation': 'symbols', 'recipes': 'cookbook',
    'audit': 'report', 'initialize': 'starts', 'residual_branches': 'branches', 'harmonic': 'summands',
    'checkpoint': 'resume', 'mixed precision': 'speed', 'out of memory': 'memory', 'torchvision': 'resnet',
    'confidence interval': 'stats', 'B13': 'ledger', 't06': 'ledger'}

@pytest.fixture
def first_three(tab, url):
    "The addresses of the first three results of a query"
    def find(query):
        tab.goto(f'{url}search.html?q={query}')
        tab.locator('#search-results li a').first.wait_for()
        tab.wait_for_function("document.querySelector('#search-results p.search-summary')?.innerText.match(/found|matching/)")
        return [a.get_attribute('href') for a in tab.locator('#search-results li > a').all()[:3]]
    return find

@pytest.mark.parametrize('query', queries)
def test_the_right_page_is_among_the_first_three(query, first_three):
    found = first_three(query)
    assert queries[query] in [re.match(r'(\w+)\.html', address)[1] for address in found], found

def test_a_claim_leads_to_its_row_and_to_its_verdict(first_three):
    found = {re.sub(r'\?[^#]*', '', address) for address in first_three('B13')}
    assert {'ledger.html#b13', 'init.html#b13'} <= found

def test_a_name_leads_to_its_entry(first_three):
    assert first_three('depth_scaled_normal')[0].endswith('#depth-scaled-normal')

def test_every_word_leads_to_a_section(site):
    "A heading that was renamed would leave its words at the top of the page"
    for name, headings in terms.items():
        page = BeautifulSoup((site/name).read_text(encoding='utf-8'), 'html.parser')
        ids = {tag['id'] for tag in page.select('article [id]')}
        assert set(headings) - {''} <= ids, name
