"""CSV: the first line, separators, text columns, an index, and reading as a model's training file was read."""

import csv
import gzip
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import refused, table

from hogwild.data import files
from hogwild.data.dataset import read
from hogwild.data.schema import Schema
from hogwild.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(text, name="x.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path
    return write


def decimals(columns, rows=12, seed=0):
    numbers = np.random.default_rng(seed).normal(size=(rows, columns)).round(3)
    return "".join(",".join(map(str, row)) + "\n" for row in numbers)


def whole(columns, rows=12, seed=0):
    return "".join(",".join(map(str, row)) + "\n" for row in np.random.default_rng(seed).integers(0, 9, (rows, columns)))


IRIS = "".join(f"{5 + k / 10},3.5,{k % 3},{'setosa' if k % 2 else 'virginica'}\n" for k in range(12))
NAMES = ["ann", "bob", "cid", "dot", "eve", "flo", "gus", "hal", "ian", "jon", "kim", "lea"]


@pytest.mark.parametrize("first, rest, named", [
    ("a,b,c,y", decimals(4), True), ("0,1,2,3", decimals(4), True), ("1,2,3", decimals(3), True),
    ("0,1,2,3,4,5,6,7,8,9", whole(10), True), ("0,1,2", "red,0.5,1\nblue,0.7,0\n" * 6, True),
    ("2001,2002,2003,2004", whole(4), True), ("1990,2000,2005,2010", decimals(4), True),
    ("4000.0,3998.5,3997.0,3995.5,octane", decimals(5), True), ("900.5,901.0,903.5,octane", decimals(4), True),
    (",0,1,2,3", "".join(f"{k},{line}\n" for k, line in enumerate(whole(4).split())), True),
    ("0,1,2,species", IRIS, True), ("a,b,c,species", IRIS, True), ("id,2019,income,y", whole(4), True),
    ("a,?,b,y", whole(4), True), ("a,b,c,d", "p,x,y,z\n" * 12, True),
    ('"2001","2003"', whole(2), True), ("age,city", "".join(f"{k},{name}\n" for k, name in enumerate(NAMES)), True),
    ("1,2,3", whole(3), False), ("4,8,3,1", whole(4), False), ("0.1,0.5,-2.2,1", decimals(4), False),
    ("0,0,0,0", whole(4), False), ("5.1,3.5,1,setosa", IRIS, False), ("p,x,y,z", "p,x,s,z\n" * 12, False),
    ("1,2,3,4", "".join(f"{k},{k + 1},{k + 2},{k + 3}\n" for k in range(2, 14)), False),  # rows that are like it
    ("1,10,100", "".join(f"{k},{10 * k},{100 * k}\n" for k in range(2, 14)), False),
    ("0.1,0.2,0.4",
     "0.3,0.2,0.5\n0.5,0.3,0.2\n0.4,0.7,0.1\n" * 4, False), ("1e5,1e-5,7", whole(3), False)])
def test_the_first_line_is_compared_with_those_below(write, first, rest, named):
    path = write(f"{first}\n{rest}")
    X, labels, source = table(path)
    assert source.schema.header == named and len(labels) == 12 + (not named)
    assert ("as the columns' names" if named else "as a row") in source.notes[0]
    for header, rows in (("yes", 12), ("no", 13)):
        if header == ("yes" if named else "no"):
            assert len(table(path, header=header)[1]) == rows


@pytest.mark.parametrize("first, rest, message", [
    ("5,?,3,1", whole(4), ", line 1, column 2: got '?', needed a value"), ("1,NA,3,1", whole(4), ", line 1, column 2"),
    ("1,2,3,", whole(4), ", line 1, column 4: got ''"), ("?,2,3,1", decimals(4), ", line 1, column 1"),
    ("5,x,3,1", whole(4), ", line 1, column 2: got 'x', a name or a mistake"),
    ("5.1,x,3.2,1", decimals(4), "--header yes"), ("a,b", "c,d\ne,f\n", "--header yes"),
    ("0,1,2,y", "", "--header yes"), ("1,2,3,4", whole(4), ", line 1, column 1: got '1', a name or a mistake")])
def test_a_first_line_that_is_neither(write, first, rest, message):
    assert message in refused(write(f"{first}\n{rest}"))


def test_a_row_is_named_by_its_line_where_the_header_is_said(write):
    for header, first in ("yes", "5,6,7,8\n"), ("no", "0,1,2,3,4,5,6,7,8,9\n"):
        path = write(first + whole(first.count(",") + 1))
        assert read(path, header=header, cache=False).where(4) == f"{path}, line {5 + (header == 'yes')}"


def test_header_may_be_said(write):
    assert len(table(write("5,6,7,8\n" + whole(4)), header="yes")[1]) == 12
    assert table(write("5,x,3,1\n" + whole(4)), header="yes")[2].schema.columns == ("5", "x", "3")
    assert ", line 1, column 2: got 'x', needed a number" in refused(write("5,x,3,1\n" + whole(4)), header="no")
    with pytest.raises(Exception, match="--header must be one of auto, yes, no"):
        table(write("1,2\n"), header="maybe")


cells = st.lists(st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=3, max_size=3), min_size=4, max_size=8)


@given(rows=cells, separator=st.sampled_from(",;\t|"), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
       ends=st.sampled_from(["\n", "\r\n"]), last=st.booleans(), header=st.booleans(), stated=st.booleans(),
       size=st.sampled_from([20, 1 << 20]))
def test_any_separator_and_quoting(tmp_path_factory, rows, separator, quoting, ends, last, header, stated, size):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, quoting=quoting, lineterminator=ends)
    names = ["first, of; all", 'say "x"\nhere', "y"]
    writer.writerows([names] * header + rows)
    text = f"sep={separator}{ends}" * stated + (out.getvalue() if last else out.getvalue().removesuffix(ends))
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_text(text, newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", size)
        X, labels, source = table(path, header="yes" if header else "no")
    np.testing.assert_array_equal(X, np.array(rows)[:, :2].astype(np.float32))
    np.testing.assert_array_equal(labels, np.array(rows)[:, 2])
    assert source.schema.columns == (tuple(names[:2]) if header else None)


def test_lines_within_quotes_do_not_end_a_block(write, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 7)
    monkeypatch.setattr(files, "HEAD", 16)
    text = "a,kind,y\n" + "".join(f'{k},"one\nof ""{"pq"[k % 2]}""\r\n",{k % 3}\n' for k in range(1, 9))
    X, labels, source = table(write(text))
    assert labels == [1, 2, 0, 1, 2, 0, 1, 2] and X[:, 0].tolist() == list(range(1, 9))
    assert source.schema.categories == (("kind", 'one\nof "q"'), ("kind", 'one\nof "p"'))
    assert ", line 13, column 3 (y): got ''" in refused(write(text.replace(",1\n", ",\n").replace(",\n", ",1\n", 1)))


COLOURS = "size,colour,y\n" + "".join(f"{k},{name},{k % 2}\n" for k, name in enumerate(["red", "blue", " red", "green"] * 5))


def test_text_columns_become_features(write, monkeypatch):
    for size in (16, 1 << 20):
        monkeypatch.setattr(files, "CHUNK_BYTES", size)
        monkeypatch.setattr(files, "HEAD", size)
        X, labels, source = table(write(COLOURS))
        assert source.schema.columns == ("size", "colour=red", "colour=blue", "colour=green")
        assert X[:4].tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [2, 1, 0, 0], [3, 0, 0, 1]] and labels[:2] == [0, 1]
        assert any("text, each value of it one feature: column 'colour'" in note for note in source.notes)
        again = table(write("y,colour,size\n1,green,7\n0,violet,8\n"), schema=source.schema)
        assert again[0].tolist() == [[7, 0, 0, 1], [8, 0, 0, 0]] and again[1] == [1, 0]
        assert any("'colour': 1 rows have a value that the model does not know" in note for note in again[2].notes)


def test_columns_declared_as_categories(write):
    zips = "zip,n,y\n" + "".join(f"{k % 3:05},{k},1\n" for k in range(1, 7))
    X, _, source = table(write(zips), categorical="zip")
    assert source.schema.columns == ("n", "zip=00001", "zip=00002", "zip=00000") and X[0].tolist() == [1, 1, 0, 0]
    assert table(write(zips), categorical=["0"])[2].schema == source.schema
    missing = "work,n,y\n" + "?,1,0\nfarm,2,1\n,3,0\n" * 4
    assert table(write(missing), categorical="work")[2].schema.columns == ("n", "work=?", "work=farm", "work=")
    assert ", line 2, column 1 (work): got '?', needed a value" in refused(write(missing))
    assert "pass --categorical work" in refused(write(missing))
    assert "got column 'none', needed one of 'zip, n, y'" in refused(write(zips), categorical="none")
    assert "is the label" in refused(write(zips), categorical="y")


@pytest.mark.parametrize("values, what", [
    ([f"name {k}" for k in range(30)], "text with 30 different values in 30 rows"),
    (["a story of more words than a name has"] * 30, "free text"), (["x" * 70] * 30, "free text")])
def test_text_that_names_no_category(write, values, what):
    path = write("n,note,y\n" + "".join(f"{k},{value},1\n" for k, value in enumerate(values)))
    assert f", column 'note': holds {what}" in refused(path) and "--categorical note" in refused(path)
    assert table(path, categorical="note")[0].shape == (30, 1 + len(set(values)))


def test_too_many_values_are_noticed_later_too(write, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 1 << 10)
    monkeypatch.setattr(files, "HEAD", 1 << 10)
    text = "n,kind,y\n" + "".join(f"{k},k{k % 50 if k < 200 else k},1\n" for k in range(600))
    assert "more than 256 different values" in refused(write(text))


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_the_index_of_pandas_is_left_out(write, name):
    X, labels, source = table(write(f"{name},a,y\n0,5,1\n1,6,0\n2,7,1\n"))
    assert X.tolist() == [[5], [6], [7]] and source.schema.left_out == (name,) and source.schema.columns == ("a",)
    assert any("numbers the rows and is left out" in note for note in source.notes)
    again = table(write(f"{name},a\n0,5\n"), schema=source.schema)
    assert again[0].tolist() == [[5]] and not any("ignored" in note for note in again[2].notes)
    twice = table(write(f"Unnamed: 0.1,{name or 'Unnamed: 0'},a,y\n3,0,5,1\n7,1,6,0\n4,2,7,1\n"))[2].schema
    assert twice.columns == ("a",) and len(twice.left_out) == 2
    assert table(write(f"{name},a,y\n0.5,5,1\n0.5,6,0\n2,7,1\n"))[0].shape == (3, 2)  # no index


SCHEMA = Schema("csv", columns=("a", "b", "c"), label="y", header=True, width=4)


@pytest.mark.parametrize("text, X, labels, note", [
    ("c,y,a,b\n3,1,1,2\n", [[1, 2, 3]], [1], None), ("a,b,c\n1,2,3\n", [[1, 2, 3]], None, None),
    ("id,a,b,c,y,z\n9,1,2,3,1,word\n", [[1, 2, 3]], [1], "2 columns that the model does not know are ignored: 'id, z'"),
    ("a\tb\tc\n1\t2\t3\n", [[1, 2, 3]], None, None)])
def test_columns_are_found_by_their_names(write, text, X, labels, note):
    got, found, source = table(write(text), schema=SCHEMA)
    assert got.tolist() == X and source.labelled == (labels is not None)
    assert found == labels if labels else np.isnan(found).all()
    assert not note or any(note in line for line in source.notes)
    assert table(write(text), schema=Schema.from_json(json.loads(json.dumps(source.schema.to_json()))))[0].tolist() == X


def test_columns_that_are_missing_are_named(write):
    message = refused(write("a,c,y\n1,3,1\n"), schema=SCHEMA)
    assert "has no column 'b' (1 of 3" in message and "in any order" in message
    assert "does not name the columns" in refused(write("1,2,3,1\n4,5,6,0\n7,8,8,1\n"), schema=SCHEMA)
    X, labels, source = table(write("a,b,c,y,other\n1,2,3,1,0\n"), schema=SCHEMA, label="other")
    assert labels == [0] and source.schema.label == "other"


def test_a_table_without_names_is_read_by_position(write):
    known = table(write(whole(4)), label=0)[2].schema
    assert (known.label, known.width, known.columns) == ("0", 4, None)
    X, labels, source = table(write("7,8,8\n5,8,6\n", "y.csv"), schema=known)
    assert X.tolist() == [[7, 8, 8], [5, 8, 6]] and not source.labelled
    X, labels, _ = table(write("1,7,8,8\n0,5,8,6\n", "z.csv"), schema=known)
    assert labels == [1, 0] and X.tolist() == [[7, 8, 8], [5, 8, 6]]
    assert "needed 4 as in the training file" in refused(write("1,2\n3,9\n"), schema=known)


def test_labels_lose_nothing(write):
    big = ["9007199254740993", "9007199254740992", "3"]
    assert table(write("a,y\n" + "".join(f"1,{label}\n" for label in big)))[1] == big
    assert table(write("a,y\n1,16777217\n1,0.1\n"))[1] == [16777217, 0.1]
    X, labels, source = table(write("a,y\n1,1.0\n1,x\n1,1\n"))
    assert labels == ["1", "x", "1"] and "2 rows have numbers and 1 have text" in source.notes[-1]
    assert table(write("a,y\n1,none\n1,mild\n1,none\n"))[1] == ["none", "mild", "none"]
    assert "float32's range" in refused(write("a,y\n1," + "9" * 5000 + "\n1,2\n"))
    assert "if the label is 'y', pass --label" in "".join(table(write("y,a,b\n1,2,3\n"))[2].notes)


def test_names_that_occur_twice_or_not_at_all(write):
    assert table(write("a,,a,,y\n" + whole(5)))[2].schema.columns == ("a", "Unnamed: 1", "a.1", "Unnamed: 3")


@pytest.mark.parametrize("columns", [784, 5000])
def test_wide_tables(write, columns):
    X = np.random.default_rng(0).integers(0, 5, (6, columns))
    text = "".join(",".join(map(str, row)) + "\n" for row in X.tolist())
    got, labels, _ = table(write(text), label=0)
    np.testing.assert_array_equal(got, X[:, 1:])
    assert labels == X[:, 0].tolist()
    for wrong, what in ((text[:-2] + "x\n", "got 'x'"), (text[:-2] + ",\n", "columns"), (text[:-2] + "\n", "got ''")):
        assert ", line 6" in refused(write(wrong), label=0) and what in refused(write(wrong), label=0)
    wider = text.replace("\n", ",red\n", 1).replace("\n", ",blue\n").replace(",red,blue", ",red")
    assert table(write(wider), label=0)[2].schema.categories == ((str(columns), "red"), (str(columns), "blue"))


def test_other_names_and_packed(write):
    assert table(write("a\ty\n1\t2\n", "x.tsv"))[1] == [2]
    assert table(write(gzip.compress(b"a;y\n1;2\n"), "x.csv.gz"))[1] == [2]
    assert table(write("1,2,3\n4,5,6\n", "x.txt"))[2].schema.kind == "csv"
    assert table(write(b"\xef\xbb\xbfa,y\n1,2\n"))[2].schema.columns == ("a",)
    assert table(write(b"# a,y\r1,2\r3,4\r"))[1:2] == ([2, 4],)
    assert "convert the file: iconv" in refused(write(b"a,b,y\n" + b"1,caf\xe9,1\n" * 3))


PIECES = ["1", "2.5", "a", "b", "red", "?", "NA", '"', '"x y"', '"1\n2"', ",", ",", ",", ";", "\t", "\n", "\n", "\r\n", "\r",
          " ", "sep=;", "0,1,2,3\n", "1,2,3\n", "inf", "1e400", "\x00", "é", "#", "9007199254740993", "1_0", "+4", "a,b,y\n",
          "1:2"]


@given(content=st.lists(st.sampled_from(PIECES), max_size=20).map("".join), header=st.sampled_from(["auto", "yes", "no"]),
       size=st.sampled_from([3, 1 << 20]), schema=st.sampled_from([None, SCHEMA]),
       options=st.sampled_from([{}, {"label": 0}, {"label": "a"}, {"categorical": "a"}, {"categorical": "0,1"}]))
def test_any_text_is_read_or_refused_in_one_line(tmp_path_factory, content, header, size, schema, options):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_text(content, newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", size)
        patch.setattr(files, "HEAD", max(size, 16))
        try:
            table(path, header=header, schema=schema, **options)
        except UserError as error:
            assert "\n" not in str(error)
