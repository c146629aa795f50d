"Verdicts follow from their checks, and those of the book are on claims that exist"
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from resnotes.ledger import ClaimVerdict, verdict

outcomes = ('holds in part', 'holds', 'fails', 'not tested here')


@given(st.dictionaries(st.text(min_size=1), st.booleans(), max_size=5))
def test_outcome_follows_from_the_checks(checks):
    v = verdict('B01', checks, 'a note')
    assert v.outcome in outcomes and v.checks == checks
    assert (v.outcome == 'not tested here') == (not checks)
    assert (v.outcome == 'holds') == (bool(checks) and False not in checks.values())
    assert (v.outcome == 'fails') == (bool(checks) and True not in checks.values())


def test_a_verdict_shows_every_check_and_the_note():
    v = verdict('S12', {'deep': True, 'deeper': False}, 'Only so deep.')
    assert v._repr_markdown_() == '**S12 holds in part.** Only so deep.\n\n- ✓ deep\n- ✗ deeper'
    assert repr(v) == 'S12 holds in part\n  yes  deep\n  no   deeper\n  Only so deep.'
    assert repr(verdict('S12', note='Too long.')) == 'S12 not tested here\n  Too long.'


@pytest.mark.parametrize('true', [True, np.True_, torch.tensor(True), np.float64(2) > 1])
def test_checks_may_come_from_numpy_and_torch(true):
    v = verdict('T01', {'a': true, 'b': ~torch.tensor(True)})
    assert v.outcome == 'holds in part' and [type(ok) for ok in v.checks.values()] == [bool, bool]


@pytest.mark.parametrize('ok', [(1.02, .01), float('nan'), .5, 'no', None, [], {}])
def test_what_is_neither_true_nor_false_is_refused(ok):
    with pytest.raises(TypeError, match="checks must be true or false, got .* for 'growth'"): verdict('B04', {'growth': ok})


@pytest.mark.parametrize('claim', ['B4', 'B00', 'B40', 'X01', 'b04', '', None])
def test_claims_that_do_not_exist(claim):
    with pytest.raises(ValueError, match='claim must be one of B01-B39'): verdict(claim, {'a': True})


def test_other_refusals():
    with pytest.raises(TypeError, match='checks must be a dict of what was checked, got list'): verdict('B01', [True])
    with pytest.raises(ValueError, match='note must say why claim B01 is not tested'): verdict('B01', {})


def test_a_verdict_is_not_changed_afterwards():
    checks = {'a': True}
    v = verdict('B01', checks)
    checks['a'] = False
    assert v == ClaimVerdict('B01', {'a': True})
    with pytest.raises(AttributeError): v.note = 'else'


def test_every_chapter_stores_the_verdicts_it_computes():
    form = re.compile(rf"\*\*([BTFWS]\d\d) ({'|'.join(outcomes)})\.\*\*")
    found = 0
    for path in sorted((Path(__file__).parents[1]/'nbs').glob('*.ipynb')):
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            calls = re.findall(r"^verdict\('(...)'", ''.join(cell['source']), re.M) if cell['cell_type'] == 'code' else []
            if not calls: continue
            stored = ''.join(''.join(o.get('data', {}).get('text/markdown', '')) for o in cell['outputs'])
            assert [m[0] for m in form.findall(stored)] == calls, (path.name, calls)
            found += 1
    assert found > 40
