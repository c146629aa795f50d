"Rows: a list that shows itself, and the tables it is shown by"
import copy, pickle
from typing import NamedTuple

import pandas as pd
import pytest
from hypothesis import given, strategies as st

from resnotes.tables import Rows, cell_text, column_text, html_table, text_table


class Pair(NamedTuple):
    name:str
    size:float


@pytest.mark.parametrize('value, text', [(1/3, '0.333'), (1e-9, '1e-09'), (12345., '1.23e+04'), (0., '0'), (7, '7'), (12345, '12345'),
                                         ('he', 'he'), ('', ''), (True, 'yes'), (False, ''), (None, ''), (float('nan'), ''), (float('inf'), 'inf')])
def test_cells(value, text): assert cell_text(value) == text


@pytest.mark.parametrize('values, texts', [
    ([.5, 1., 31.4], ['0.5', '1.0', '31.4']), ([1., 2.], ['1', '2']), ([.12345, .0067], ['0.1235', '0.0067']),
    ([1e-14, .42], ['1.0e-14', '4.2e-01']), ([1e-14, .5], ['1e-14', '5e-01']), ([1.65e23, 47.2], ['1.65e+23', '4.72e+01']),
    ([0., .5], ['0', '0.5']), ([0.], ['0']), ([], []), ([-2.5, 10.], ['-2.5', '10.0']), ([.1, 7, 'he', True, None], ['0.1', '7', 'he', 'yes', '']),
    ([float('nan'), float('inf'), 1.25], ['', 'inf', '1.25'])])
def test_the_numbers_of_a_column_are_written_alike(values, texts): assert column_text(values) == texts


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False).filter(bool), min_size=1), st.integers(2, 6))
def test_no_number_of_a_column_loses_what_its_digits_say(values, digits):
    "One style, and each within half a unit of the digit before the last that was asked for"
    texts = column_text(values, digits)
    assert len({('e' in text, len(text.partition('e')[0].partition('.')[2])) for text in texts}) == 1
    for value, text in zip(values, texts):
        if abs(value) < 1e308: assert abs(float(text) - value) <= .5001*abs(value)*10.**(2 - digits)


def test_columns_of_text_stand_under_their_header():
    lines = text_table(['layer', 'signal'], [('a', 1.5), ('longer', 2)]).splitlines()
    assert lines == ['layer   signal', 'a       1.5', 'longer  2']
    assert text_table(['only'], []) == 'only'
    assert text_table(['a', 'b'], [(1., 1e-9), (.25, .5)]).splitlines() == ['a     b', '1.00  1e-09', '0.25  5e-01']


def test_html_is_escaped():
    shown = html_table(['<a>'], [('x & <b>',)])
    assert '<th>&lt;a&gt;</th>' in shown and '<td>x &amp; &lt;b&gt;</td>' in shown and 'dataframe' in shown
    page = Rows([Pair('<i>', 1.)], title='<t>', notes=['<n>'])._repr_html_()
    assert not any(tag in page for tag in ('<i>', '<t>', '<n>')) and '&lt;n&gt;' in page


@given(st.lists(st.builds(Pair, st.text('abc', max_size=4), st.floats(allow_nan=False)), max_size=40))
def test_rows_are_a_list(rows):
    table = Rows(rows, title='a title', notes=['a note'])
    assert table == rows and list(table) == rows and len(table.to_frame()) == len(rows)
    assert repr(table).startswith('a title') and repr(table).endswith('a note')
    if rows: assert list(table.to_frame().columns) == ['name', 'size'] and table.to_frame()['size'].tolist() == [r.size for r in rows]


@pytest.mark.parametrize('n, lines', [(1, 2), (Rows.most, Rows.most + 1), (Rows.most + 1, Rows.most + 2), (1000, Rows.most + 2)])
def test_long_tables_leave_out_the_middle(n, lines):
    table = Rows([Pair(f'row{i}', float(i)) for i in range(n)])
    shown = repr(table).splitlines()
    assert len(shown) == lines and table._repr_html_().count('<tr>') == lines
    assert ('…' in shown[1 + Rows.most//2]) == (n > Rows.most) if lines > Rows.most//2 + 1 else True
    assert shown[1].startswith('row0') and shown[-1].startswith(f'row{n - 1}') and len(table.to_frame()) == n


def test_nothing_to_show():
    assert repr(Rows()) == '' and Rows()._repr_html_() == '' and Rows().to_frame().empty
    assert repr(Rows(title='none', notes=['at all'])) == 'none\nat all'


def test_a_subclass_chooses_what_is_shown():
    class Total(Rows):
        def table(self): return ['total'], [[sum(r.size for r in self)]]
    table = Total([Pair('a', 1.), Pair('b', 2.)])
    assert repr(table).split() == ['total', '3'] and '<td>3</td>' in table._repr_html_() and len(table) == 2
    assert repr(Total()).split() == ['total', '0']     # even of no rows, if it has something to say
    assert list(table.to_frame().columns) == ['name', 'size']
    pd.testing.assert_frame_equal(table.to_frame(), pd.DataFrame(list(table)))


def test_a_part_of_a_table_is_a_table():
    "What a list gives back of itself keeps class, title and columns, down to no row at all"
    class Loud(Rows):
        kind = Pair
        def __init__(self, rows, loudness): super().__init__(rows, 'loud', ['all of them']); self.loudness = loudness
    for table in (Rows([Pair('a', 1.), Pair('b', 2.), Pair('c', 3.)], 'plain', ['all']), Loud([Pair('a', 1.), Pair('b', 2.), Pair('c', 3.)], 11)):
        for part in (table[:2], table[::-2], table[:0], table + table, table + [Pair('d', 4.)], table.copy(), copy.copy(table), copy.deepcopy(table)):
            assert type(part) is type(table) and part.title == table.title and vars(part).keys() == vars(table).keys()
            assert list(part.to_frame().columns) == ['name', 'size'] and len(part.to_frame()) == len(part)
        assert table[:2] == [*table][:2] and table + table == [*table, *table] and table[1] == Pair('b', 2.) and table[:2].notes == []
        assert table.copy() == table and table.copy().notes == table.notes and pickle.loads(pickle.dumps(table.copy()))[0] == table[0] if type(table) is Rows else True
        part = table[:1]
        part.append(Pair('z', 9.))
        assert len(part) == 2 and len(table) == 3


def test_no_rows_have_columns_where_their_kind_is_known():
    assert list(Rows(kind=Pair).to_frame().columns) == ['name', 'size'] and Rows(kind=Pair).table() == (('name', 'size'), [])
    late = Rows()
    late.append(Pair('a', 1.))
    assert list(late.to_frame().columns) == ['name', 'size']
