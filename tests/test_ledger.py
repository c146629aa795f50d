"Verdicts follow from their checks; the ledger in the package says of every claim what the chapters say."
import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from resnotes.ledger import (ClaimVerdict, anchor, claim_numbers, claims_file, collect_verdicts, ledger_file, ledger_lines, parse_verdict,
                             read_ledger, verdict, verdict_names)
from resnotes.records import recorded_experiments

root = Path(__file__).parents[1]
chapters = sorted((root/'nbs').glob('*.ipynb'))
names = st.text(st.characters(codec='utf-8', exclude_characters='*\n\r–'), min_size=1).filter(lambda t: t.strip() == t and len(t.splitlines()) == 1)


@given(st.dictionaries(st.text(min_size=1), st.booleans(), max_size=5))
def test_outcome_follows_from_the_checks(checks):
    v = verdict('B01', checks, 'a note')
    assert v.outcome in verdict_names and v.checks == checks
    assert (v.outcome == 'not tested here') == (not checks)
    assert (v.outcome == 'holds') == (bool(checks) and False not in checks.values())
    assert (v.outcome == 'fails') == (bool(checks) and True not in checks.values())


@given(st.dictionaries(names, st.booleans(), min_size=1, max_size=5), st.data())
def test_central_statements_decide(checks, data):
    central = data.draw(st.lists(st.sampled_from(sorted(checks)), min_size=1, unique=True))
    v = verdict('B01', checks, 'a note', central=central)
    decisive = [checks[what] for what in central]
    assert (v.outcome == 'fails') == (False in decisive)
    assert (v.outcome == 'holds') == (False not in checks.values())
    assert v.outcome in ('fails', 'holds', 'holds in part')


@given(st.dictionaries(names, st.booleans(), min_size=1, max_size=5), st.booleans())
def test_what_is_untested_is_no_failure(checks, central):
    v = verdict('B01', checks, 'a note', untested='at the published size', central=['at the published size']*central)
    if central: assert v.outcome == 'not tested at the published size'
    else: assert v.outcome == verdict('B01', checks).outcome


@given(st.dictionaries(names, st.booleans(), max_size=4), st.data())
def test_a_shown_verdict_can_be_read_back(checks, data):
    central = data.draw(st.lists(st.sampled_from(sorted(checks)), unique=True)) if checks else []
    extras = data.draw(st.fixed_dictionaries({}, optional=dict(scale=st.just('digits, 5 seeds'), figure=st.just('0.43 ± 0.02'), records=st.just(('a', 'b')))))
    v = verdict('B01', checks, 'a note', central=sorted(central, key=list(checks).index), **extras)
    assert parse_verdict(v._repr_markdown_()) == v


def test_a_verdict_shows_every_check_and_the_note():
    v = verdict('S12', {'deep': True, 'deeper': False}, 'Only so deep.')
    assert v._repr_markdown_() == '**S12 holds in part.** Only so deep.\n\n- ✓ deep\n- ✗ deeper'
    assert repr(v) == 'S12 holds in part\n  yes  deep\n  no   deeper\n  Only so deep.'
    assert repr(verdict('S12', note='Too long.')) == 'S12 not tested here\n  Too long.'


def test_a_verdict_shows_what_is_central_and_what_it_was_obtained_at():
    v = verdict('T08', {'it trains': True}, 'A tenth.', central='it trains', untested='0.434', scale='small', figure='0.36', records='taki-cifar')
    assert v.outcome == 'holds'
    assert v._repr_markdown_().splitlines()[2:] == ['- ✓ **it trains**', '- – 0.434', '', '*figure:* 0.36 · *scale:* small · *records:* taki-cifar']
    assert repr(v).splitlines()[1:3] == ['  yes  it trains (central)', '  –    0.434']


@pytest.mark.parametrize('true', [True, np.True_, torch.tensor(True), np.float64(2) > 1])
def test_checks_may_come_from_numpy_and_torch(true):
    v = verdict('T01', {'a': true, 'b': ~torch.tensor(True)})
    assert v.outcome == 'holds in part' and [type(ok) for ok in v.checks.values()] == [bool, bool]


@pytest.mark.parametrize('ok', [(1.02, .01), float('nan'), .5, 1., 0., 1, 0, 'no', None, [], {}, np.float64(1), torch.tensor(1), torch.tensor([True, True])])
def test_what_is_neither_true_nor_false_is_refused(ok):
    with pytest.raises(TypeError, match="checks must be true or false, got .* for 'growth'"): verdict('B04', {'growth': ok})


@pytest.mark.parametrize('claim', ['B4', 'B00', 'B40', 'X01', 'b04', '', None])
def test_claims_that_do_not_exist(claim):
    with pytest.raises(ValueError, match='claim must be one of B01-B39'): verdict(claim, {'a': True})


def test_other_refusals():
    with pytest.raises(TypeError, match='checks must be a dict of what was checked, got list'): verdict('B01', [True])
    with pytest.raises(ValueError, match='note must say why claim B01 is not tested'): verdict('B01', {})
    with pytest.raises(ValueError, match="untested must not name a check, got 'a'"): verdict('B01', {'a': True}, 'n', untested='a', central='a')
    with pytest.raises(ValueError, match='note must say why claim B01 is not tested'): verdict('B01', {'a': True}, untested='b')
    with pytest.raises(ValueError, match="central must name checks or untested statements, got 'b'"): verdict('B01', {'a': True}, central='b')


def test_a_verdict_is_not_changed_afterwards():
    checks = {'a': True}
    v = verdict('B01', checks)
    checks['a'] = False
    assert v == ClaimVerdict('B01', {'a': True})
    with pytest.raises(AttributeError): v.note = 'else'


@pytest.mark.parametrize('old,new', [('holds in part', 'holds'), ('✗ deeper', '✓ deeper'), ('- ✓ deep\n', '')])
def test_a_verdict_changed_by_hand_is_refused(old, new):
    text = verdict('S12', {'deep': True, 'deeper': False}, 'Only so deep.')._repr_markdown_()
    with pytest.raises(ValueError, match='a verdict must follow from its checks'): parse_verdict(text.replace(old, new))


# the book

def code_cells(path):
    "Source and stored Markdown of a chapter's code cells"
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] == 'code':
            yield ''.join(cell['source']), [''.join(o.get('data', {}).get('text/markdown', '')) for o in cell['outputs']]


def test_every_chapter_stores_the_verdicts_it_computes():
    found = []
    for path in chapters:
        for source, outputs in code_cells(path):
            stored = [v.claim for v in map(parse_verdict, outputs) if v]
            assert set(re.findall(r"^verdict\('(...)'", source, re.M)) <= set(stored) <= set(re.findall(r"\bverdict\('(...)'", source)), path.name
            found += stored
    assert len(found) == len(set(found)) > 70


def verdict_calls(path):
    for source, _ in code_cells(path):
        if "verdict('" not in source or 'test_fail' in source: continue
        for node in ast.walk(ast.parse('\n'.join(l for l in source.splitlines() if l[:1] not in '%!'))):
            if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'verdict': yield node


def typed(check):
    "Whether an expression can only have one value: nothing in it was computed before"
    return not any(isinstance(n, (ast.Name, ast.Attribute)) and getattr(n, 'id', '') not in ('True', 'False') for n in ast.walk(check))


@pytest.mark.parametrize('path', [p for p in chapters if 'ledger' not in p.stem], ids=lambda p: p.stem)
def test_no_check_is_typed(path):
    for call in verdict_calls(path):
        for d in [n for n in ast.walk(call) if isinstance(n, ast.Dict)]:
            for name, check in zip(d.keys, d.values):
                if name is not None: assert not typed(check), ast.unparse(check)
                for part in ast.walk(check):
                    if isinstance(part, ast.Compare): assert not typed(part), ast.unparse(part)


def test_typed_checks_are_found():
    for check in ('True', '9/4 == 2.25', '1 < 2', 'not False'): assert typed(ast.parse(check, mode='eval').body)
    assert not typed(ast.parse('growth < 2', mode='eval').body)


def test_the_ledger_says_what_the_chapters_say():
    assert ledger_file.read_text(encoding='utf-8') == ledger_lines(root/'nbs'), 'ledger.jsonl is old: run docs/ledger.py'


def test_every_claim_has_an_entry_and_a_home():
    ledger = read_ledger()
    assert [c.number for c in ledger] == claim_numbers == list(json.loads(claims_file.read_text(encoding='utf-8')))
    for c in ledger:
        cells = json.loads((root/'nbs'/c.chapter).read_text(encoding='utf-8'))['cells']
        headings = [re.match('#+ (.+)', ''.join(cell['source'])) for cell in cells if cell['cell_type'] == 'markdown']
        assert not c.heading or anchor(c.heading) in [anchor(h[1]) for h in headings if h]
        assert c.kind in ('derivation', 'computation', 'measurement') and c.text.endswith(('.', ')')) and len(c.text) < 400
        if c.verdict: assert c.heading


def test_a_verdict_names_records_that_exist():
    known = set(recorded_experiments())
    for c in read_ledger():
        if c.verdict: assert set(c.verdict.records) <= known, c.number


def test_an_entry_without_claim_or_home_is_refused(tmp_path):
    with pytest.raises(ValueError, match='needs a verdict or an existing home'): collect_verdicts(tmp_path)


def test_the_ledger_page_shows_every_claim_once():
    page = ''.join(out for path in chapters if 'ledger' in path.stem for _, outputs in code_cells(path) for out in outputs)
    assert re.findall(r'<a id="(...)"></a>', page) == [n.lower() for n in claim_numbers]
    for c in read_ledger(): assert f'[{c.number}]({c.place}) | ' in page and f'| **{c.outcome}** |' in page
