"""Tables as text: how they are written is found out, and a stray quote costs its line alone."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.text.separated import SeparatedTable, find_dialect, split_cells


def table_of(text, prefers=","):
    return SeparatedTable(text.splitlines(keepends=True), prefers=prefers, max_length=10_000)


def cells_of(text, **options):
    return [record.cells for record in table_of(text, **options).records() if record.error is None]


@pytest.mark.parametrize(
    ("text", "separator", "quote"),
    [
        ("a,b\n1,2\n", ",", '"'),
        ("a;b\n1,5;2\n3,1;4\n", ";", '"'),
        ("a\tb\n1, 2\t3\n", "\t", '"'),
        ("a|b|c\n1,2|3|4\n", "|", '"'),
        ("'a';'b'\n'1';'x,y'\n", ";", "'"),
        ("only\none\n", ",", '"'),
    ],
)
def test_dialects_are_found(text, separator, quote):
    dialect = find_dialect(text.splitlines(keepends=True))

    assert (dialect.separator, dialect.quote) == (separator, quote)


def test_a_line_of_excel_says_the_separator():
    assert cells_of("sep=;\na;b\n1;2\n") == [["1", "2"]]


def test_backslashes_escape_quotes_where_no_quote_is_doubled():
    assert cells_of('a,b\n"say \\"hi\\" now","x"\n') == [['say "hi" now', "x"]]
    assert cells_of('a,b\n"say ""hi"" now","c:\\"\n') == [['say "hi" now', "c:\\"]]


def test_a_quote_inside_a_cell_is_taken_as_it_is():
    assert cells_of('a,b\n5" long,1\n"6" wide",2\n') == [['5" long', "1"], ['6" wide', "2"]]


ROWS = "".join(f"Which is {i}?,It is {i}.,{'up' if i % 2 else 'down'}\n" for i in range(30))


def test_cells_of_several_lines_are_whole():
    text = "q,a,label\n" + ROWS + '"Dear both,\napples, pears, plums\n","Well,\n\nno",up\n' + ROWS

    cells = cells_of(text)

    assert len(cells) == 61
    assert cells[30] == ["Dear both,\napples, pears, plums\n", "Well,\n\nno", "up"]


def test_a_line_inside_matching_quotes_that_reads_like_a_row_is_text():
    text = "q,a,label\n" + ROWS + '"Which?","Well.\n\nYes, ""the owl"".",up\n' + ROWS

    assert cells_of(text)[30] == ["Which?", 'Well.\n\nYes, "the owl".', "up"]


@pytest.mark.parametrize(
    "stray",
    [
        '"Which was it?,It was.,up\n',
        'Which was it?,"It was.,up\n',
        'Which was it?,It was.,"up\n',
    ],
)
@pytest.mark.parametrize("close", ["", 'So what?,"Quoted, well",up\n', 'So what?,It ends",up\n'])
def test_a_stray_quote_costs_its_line_alone(stray, close):
    table = table_of("q,a,label\n" + ROWS + stray + ROWS + close + ROWS)

    records = list(table.records())

    refused = [record for record in records if record.error]
    assert [(record.line, record.num_lines) for record in refused] == [(32, 1)]
    assert "line 32" in refused[0].error.detail
    assert len(records) == 91 + bool(close)
    assert sum(record.num_lines for record in records) + 1 == table.num_lines


CELL = st.text(st.sampled_from('ab ,;"\n'), max_size=8)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(CELL, CELL, st.sampled_from(["up", "down"])), min_size=1, max_size=8))
def test_no_line_is_lost_and_tables_that_csv_writes_are_read_or_refused(rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([("question", "answer", "label"), *rows])

    table = table_of(text.getvalue())
    records = list(table.records())

    assert sum(r.num_lines for r in records) + table.num_blank + table.num_header_lines == table.num_lines
    if not any(record.error for record in records):
        assert [tuple(record.cells) for record in records] == rows


def test_cells_are_split_without_quotes():
    assert split_cells("a,b,", find_dialect(["a,b,c\n"])) == ["a", "b", ""]
