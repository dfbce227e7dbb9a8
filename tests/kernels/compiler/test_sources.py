"""What is no data file of ours is named for what it is; pipes and standard input are read once."""

import contextlib
import gzip
import io
import json
import os
import pickle
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest
from tables import refused, table

from hogwild.data import formats

HOGWILD = [sys.executable, "-c", "from hogwild.cli.main import main; main()"]
SVM = b"1 1:0.5 3:2\n-1 2:1\n"


def npy():
    out = io.BytesIO()
    np.save(out, np.eye(2))
    return out.getvalue()


@pytest.mark.parametrize("content, what", [
    (b"1 0:12:1 3:45:0.5\n0 0:3:1\n", "libffm"), (b"1 |f a:1 b:2\n-1 |f c\n", "Vowpal Wabbit"),
    (b"1 'tag |user_name age:1 |\n", "Vowpal Wabbit"), (b"|f a b c\n", "Vowpal Wabbit"),
    (b"1 2.0 ex1| a b\n", "Vowpal Wabbit"),
    ("1 1:2\n".encode("utf-16"), "UTF-16"), ("1 1:2\n".encode("utf-16le"), "UTF-16"),
    ("1 1:2\n".encode("utf-16be"), "UTF-16"),
    (json.dumps({"a": 1}).encode(), "JSON"), (json.dumps([{"a": 1}]).encode(), "JSON"), (b"[1, 2]\n", "JSON"),
    (b"% made by\n\n@RELATION iris\n@ATTRIBUTE a REAL\n", "ARFF"), (b"<!DOCTYPE html>\n<html>", "HTML"), (b"<?xml ?>", "XML"),
    (pickle.dumps({"a": 1}), "pickle"), (pickle.dumps([1.5], 2), "pickle"), (npy(), ".npy"), (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", ".xls"), (b"PK\x03\x04" + b"\0" * 26 + b"[Content_Types].xml", ".xlsx"),
    (b"PK\x03\x04" + b"\0" * 26 + b"x.csv", "zip archive"), (b"ARROW1\0\0", "Arrow"),
    (b"%%MatrixMarket matrix\n", "Matrix Market"),
    (b"\x28\xb5\x2f\xfd....", "zstd"), (b"%PDF-1.4\n", "PDF")])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_foreign_formats_are_named(tmp_path, content, what, pack):
    for name in ("x.svm", "x.csv") if what not in ("libffm", "Vowpal Wabbit") else ("x.svm", "x"):
        (tmp_path / name).write_bytes(pack(content))
        message = refused(tmp_path / name)
        assert f": is {what}" in message or f": is a {what}" in message or what in message.split(", got")[0]
        assert "svmlight text," not in message.split(", got")[0]


def test_other_tables_under_wrong_names(tmp_path):
    sqlite3.connect(tmp_path / "db").execute("create table x (a)").connection.commit()
    assert "SQLite" in refused(tmp_path / "db")
    (tmp_path / "x.svm").write_text("a;b;y\n1;2;3\n1;2;4\n")
    assert table(tmp_path / "x.svm")[2].notes[0].startswith("read as csv")
    for words in ("words and more words\n", "words\nand\nmore\n"):
        (tmp_path / "x.data").write_text(words)
        assert "svmlight" in refused(tmp_path / "x.data")
    (tmp_path / "x.npz").write_bytes(npy())
    assert ".npy array" in refused(tmp_path / "x.npz")
    (tmp_path / "x.parquet").write_bytes(b"ARROW1\0\0")
    assert "Arrow" in refused(tmp_path / "x.parquet")
    (tmp_path / "blank").write_bytes(b"\n" * 60_000 + b" " * 5000 + SVM)
    assert table(tmp_path / "blank")[1] == [1, -1]


def test_labels_of_svmlight_text(tmp_path):
    (tmp_path / "a").write_text("cat 1:1\n+1 2:1\n9007199254740993 3:1\n01 1:1\nÜberdog qid:-1 1:1\n")
    assert table(tmp_path / "a")[1] == ["cat", "1", "9007199254740993", "1", "Überdog"]
    (tmp_path / "a").write_text("16777217 1:1\n0.1 63: .50\n")
    X, labels, _ = table(tmp_path / "a")
    assert labels == [16777217, 0.1] and X[1, 62] == 0.5


@contextlib.contextmanager
def fed(path, content, piece):
    """A named pipe into which another thread writes the content, a few bytes at once."""
    os.mkfifo(path)

    def feed():
        with open(path, "wb", buffering=0) as pipe, contextlib.suppress(BrokenPipeError):
            for start in range(0, len(content), piece):
                pipe.write(content[start:start + piece])
    thread = threading.Thread(target=feed)
    thread.start()
    yield path
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("piece", [1, 7, 1 << 16])
@pytest.mark.parametrize("form", ["svm", "xz", "csv", "npz", "parquet"])
def test_pipes_are_known_by_their_content(tmp_path, form, piece):
    import lzma

    import pyarrow as pa
    from pyarrow import parquet
    X, y = np.float32([[0.5, 0, 2], [0, 1, 0]]), [1, -1]
    formats.save_npz(tmp_path / "x.npz", X, y)
    parquet.write_table(pa.table({**{str(k): X[:, k] for k in range(3)}, "y": y}), tmp_path / "x.parquet")
    content = {"svm": SVM, "xz": lzma.compress(SVM), "csv": b"a,b,c,y\n0.5,0,2,1\n0,1,0,-1\n"}
    for name in ("npz", "parquet"):
        content[name] = (tmp_path / f"x.{name}").read_bytes()
    with fed(tmp_path / "pipe", content[form], piece) as path:
        got, labels, _ = table(path)
    assert got.tolist() == X.tolist() and labels == y


def test_a_pipe_is_not_read_again_for_a_line_number(tmp_path):
    with fed(tmp_path / "pipe", SVM, 1 << 16) as path:
        table(path)
        assert formats.where(path, 1) == f"{path}, row 2"
    (tmp_path / "file").write_bytes(b"# none\n" + SVM)
    assert formats.where(tmp_path / "file", 1) == f"{tmp_path / 'file'}, line 3"
    (tmp_path / "file.csv").write_bytes(b"a,y\n\n1,2\n3,4\n")
    assert formats.where(tmp_path / "file.csv", 1) == f"{tmp_path / 'file.csv'}, line 4"


@pytest.mark.parametrize("name, content, said", [
    ("-", b"a,y\n1,0\n2,1\n0,1\n", "rows        3"), ("/dev/stdin", SVM, "rows        2"),
    ("/dev/stdin", b"1 5000000000:1\n", "2^32"), ("-", b"", "standard input: is empty (0 bytes)")])
def test_standard_input(name, content, said):
    run = subprocess.run([*HOGWILD, "inspect", name], input=content, capture_output=True, timeout=120)
    output = (run.stdout + run.stderr).decode()
    assert said in output and "Traceback" not in output
