"""Parquet files, written by pyarrow."""

import decimal

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tables import refused, table

from hogwild.data import files


@pytest.fixture
def write(tmp_path):
    def write(**columns):
        parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
        return tmp_path / "x.parquet"
    return write


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_columns_of_all_kinds(write, monkeypatch, size):
    monkeypatch.setattr(files, "CHUNK_BYTES", size)
    path = write(a=[0.5, 0.0, 2.0], n=pa.array([1, 2, 3], pa.int8()), b=[True, False, True], c=["r", "g", "r"],
                 d=pa.array([decimal.Decimal("1.5")] * 3), e=pa.array(["x", "y", "x"]).dictionary_encode(),
                 y=[1, 0, 2**53 + 1])
    X, labels, source = table(path)
    assert source.schema.columns == ("a", "n", "b", "d", "c=r", "e=x", "c=g", "e=y") if size == 1 else len(X[0]) == 8
    by_name = dict(zip(source.schema.columns, X.T.tolist(), strict=True))
    assert by_name == {"a": [0.5, 0, 2], "n": [1, 2, 3], "b": [1, 0, 1], "d": [1.5] * 3, "c=r": [1, 0, 1], "c=g": [0, 1, 0],
                       "e=x": [1, 0, 1], "e=y": [0, 1, 0]}
    assert labels[-1] == str(2**53 + 1) and source.schema.label == "y"


def test_read_as_a_csv_was(write, tmp_path):
    (tmp_path / "x.csv").write_text("a,kind,y\n1,p,1\n2,q,0\n1,p,1\n")
    schema = table(tmp_path / "x.csv")[2].schema
    X, labels, source = table(write(kind=["q", "z"], more=["any", "thing"], a=[5, 6]), schema=schema)
    assert X.tolist() == [[5, 0, 1], [6, 0, 0]] and np.isnan(labels).all() and not source.labelled
    assert "no column 'a'" in refused(write(kind=["q"], y=[1]), schema=schema)


@pytest.mark.parametrize("columns, what", [
    ({"a": [1, None], "y": [1, 2]}, "row 2, column 'a'"), ({"a": [1, 2], "y": [1, None]}, "row 2, column 'y'"),
    ({"a": [1, np.nan], "y": [1, 2]}, "row 2, column 'a': got nan"), ({"a": [1, 1e39], "y": [1, 2]}, "row 2, column 'a'"),
    ({"a": [1, 2], "y": [1, np.inf]}, "row 2, column 'y'"), ({"a": ["p", "NA"], "y": [1, 2]}, "--categorical a"),
    ({"a": [[1], [2]], "y": [1, 2]}, "column 'a': holds values of type list"), ({"y": [1, 2]}, "has 1 columns"),
    ({"a": [1, 2], "y": ["p", ""]}, "row 2, column 'y'")])
def test_mistakes(write, columns, what):
    assert what in refused(write(**columns))


def test_damage(write):
    path = write(a=[1.0, 2], y=[1, 2])
    content = path.read_bytes()
    for damaged in (content[:-20], content[:8], b"PAR1" * 9, b"a,b\n1,2\n"):
        path.write_bytes(damaged)
        assert "Parquet" in refused(path)
    assert "holds no row" in refused(write(a=pa.array([], pa.float64()), y=pa.array([], pa.float64())))
