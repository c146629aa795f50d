"Rows: a list that shows itself, and the tables it is shown by"
import subprocess, sys
from typing import NamedTuple

import pandas as pd
import pytest
from hypothesis import given, strategies as st

from resnotes.tables import Rows, cell_text, html_table, text_table


class Pair(NamedTuple):
    name:str
    size:float


@pytest.mark.parametrize('value, text', [(1/3, '0.333'), (1e-9, '1e-09'), (12345., '1.23e+04'), (0., '0'), (7, '7'), (12345, '12345'),
                                         ('he', 'he'), ('', ''), (True, 'yes'), (False, ''), (None, ''), (float('nan'), ''), (float('inf'), 'inf')])
def test_cells(value, text): assert cell_text(value) == text


def test_columns_of_text_stand_under_their_header():
    lines = text_table(['layer', 'signal'], [('a', 1.5), ('longer', 2)]).splitlines()
    assert lines == ['layer   signal', 'a       1.5', 'longer  2']
    assert text_table(['only'], []) == 'only'


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


def test_import_is_light():
    code = "import sys, resnotes.tables; print([m for m in ('torch', 'numpy', 'pandas', 'fastcore') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
