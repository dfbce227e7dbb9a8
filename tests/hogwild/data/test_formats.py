"""The readers against scikit-learn, scipy, Python's float() and a parser of regular expressions."""

import bz2
import gzip
import io
import json
import lzma
import re
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

from hogwild.data import files, formats
from hogwild.data.schema import Schema
from hogwild.errors import UserError
from hogwild.kernels.data import csr, svmlight


def gathered(path, **options):
    """(labels, indptr, indices, values) of all chunks."""
    labels, lengths, indices, values, _ = zip(*formats.source(path, **options).chunks())
    indptr = np.concatenate(([0], np.cumsum(np.concatenate(lengths))))
    return np.concatenate(labels), indptr, np.concatenate(indices), np.concatenate(values)


def refusal(path, **options):
    """The message of the UserError; it must be one line that begins with the file."""
    with pytest.raises(UserError) as caught:
        list(formats.source(path, **options).chunks())
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(path))
    return message.removeprefix(str(path))


def in_pieces(patch, size):
    """Have files read in pieces of `size` bytes."""
    patch.setattr(files, "CHUNK_BYTES", size)
    patch.setattr(files, "HEAD", max(size, 16))


def written(folder, content, name="data.svm"):
    path = folder / name
    path.write_bytes(content)
    return path


decimals = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(repr),
    st.floats(-1e38, 1e38).map(repr),
    st.from_regex(r"[+-]?([0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,40})([eE][+-]?[0-9]{1,2})?", fullmatch=True),
    # Half-way between two float32 neighbours: an error in the last bit of float64 shows.
    st.builds(lambda m, e: repr((2 * m + 1) * 2.0**e), st.integers(2**23, 2**24 - 1), st.integers(-120, 60)),
    # The same with a hair beside, which float64 need not see.
    st.builds(lambda m, e, hair: f"{(2 * m + 1) * 2**e}.{hair}", st.integers(2**23, 2**24 - 1), st.integers(0, 60),
              st.sampled_from(["0", "00000000000001", "000000000000000000000000000001"])))


@given(st.lists(decimals.filter(lambda token: abs(float(token)) < 3.4e38), min_size=1, max_size=20))
def test_numbers_are_exactly_rounded(tokens):
    block = "".join(f"{token} 1:{token}\n" for token in tokens).encode()
    status, _, labels, _, _, values, odd = svmlight.parse(block, 1)
    expected = np.array([float(token) for token in tokens])
    assert status == svmlight.OK
    labels[odd[:, 0]] = [float(block[start:end]) for _, start, end in odd.tolist()]
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(values, expected.astype(np.float32))


@pytest.mark.parametrize("token", ["16777217", "1e-45", "1.4e-45", "7e-46", "1e-400", "0e999999999999999999999",
                                   "340282346638528859811704183484516925440", "1" * 38, "0." + "0" * 40 + "123",
                                   "0." + "0" * 5000 + "5e5001", "1e+0000000000000000000000007", "-0",
                                   "9007199254740993"])
def test_numbers_at_the_edges(token):
    values = svmlight.parse(f"0 1:{token}".encode(), 1)[5]
    np.testing.assert_array_equal(values, np.float32([float(token)]))


rows = st.lists(st.tuples(st.floats(-9, 9, width=32), st.dictionaries(
    st.integers(0, 50), st.floats(-1e30, 1e30).filter(bool), max_size=6)), min_size=1, max_size=12)


@given(rows, st.booleans(), st.booleans(), st.sampled_from([1, 7, 64, 1 << 20]))
def test_svmlight_agrees_with_sklearn(tmp_path_factory, rows, zero_based, crlf, chunk_bytes):
    X = sparse.lil_array((len(rows), 51))
    for i, (_, row) in enumerate(rows):
        for j, value in row.items():
            X[i, j] = value
    file = io.BytesIO()
    dump_svmlight_file(X.tocsr(), [label for label, _ in rows], file, zero_based=zero_based,
                       query_id=np.arange(len(rows)), comment="made by a test")
    content = file.getvalue().replace(b"\n", b"\r\n" if crlf else b"\n").removesuffix(b"\n")
    expected, y = load_svmlight_file(io.BytesIO(content), dtype=np.float64, zero_based=zero_based)
    path = written(tmp_path_factory.mktemp("svm"), content)
    with pytest.MonkeyPatch.context() as patch:
        in_pieces(patch, chunk_bytes)
        labels, indptr, indices, values = gathered(path, zero_based=zero_based)
    np.testing.assert_array_equal(labels, y)
    np.testing.assert_array_equal(indptr, expected.indptr)
    np.testing.assert_array_equal(indices, expected.indices)
    np.testing.assert_array_equal(values, expected.data.astype(np.float32))


NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
LINE = re.compile(rf"[ \t]*([^ \t#]+)(?:[ \t]+qid:-?[0-9]+)?((?:[ \t]+[0-9]+:[ \t]*{NUMBER})*)[ \t]*")


def by_regular_expressions(content):
    """[(label, {index: value})], or None where a line is wrong."""
    rows = []
    for line in content.decode("latin1").split("\n"):
        line = line.removesuffix("\r").split("#")[0]
        if line.strip(" \t"):
            match = LINE.fullmatch(line)
            if not match:
                return None
            pairs = re.findall(r"([0-9]+):[ \t]*(\S+)", match[2])
            indices = [int(index) - 1 for index, _ in pairs]
            label = float(match[1]) if re.fullmatch(NUMBER, match[1]) else match[1]
            numbers = [float(value) for _, value in pairs]
            if indices != sorted(set(indices)) or min(indices, default=0) < 0 or max(indices, default=0) > 2**32 - 1 \
                    or max(map(abs, numbers), default=0) > 3.4e38:
                return None
            rows.append((label, dict(zip(indices, numbers))))
    return rows


pieces = st.sampled_from([b"1", b"23", b"-", b"+", b".", b"e", b"1:2", b"3:.5", b"4:1e2", b":", b"#", b" ", b" ", b"\t",
                          b"\n", b"\n", b"\r\n", b"\r", b"qid:", b" qid:7 ", b"nan", b"inf", b"_", b"\0", b"\xff"])


@given(st.lists(pieces, max_size=25).map(b"".join))
def test_any_bytes_are_parsed_as_the_grammar_says(content):
    expected = by_regular_expressions(content)
    status, position, labels, indptr, indices, values, odd = svmlight.parse(content, 1)
    labels = labels.tolist()
    for row, start, end in odd.tolist():
        token = content[start:end].decode("latin1")
        labels[row:row + 1] = [float(token) if re.fullmatch(NUMBER, token) else token]
    assert (status == svmlight.OK) == (expected is not None)
    if expected is None:
        assert 0 <= position < len(content)
        return
    got = [(labels[i], dict(zip(indices[a:b], values[a:b]))) for i, (a, b) in enumerate(zip(indptr, indptr[1:]))]
    assert got == [(y, {j: np.float32(v) for j, v in row.items()}) for y, row in expected]


def test_short_arrays_are_never_overrun():
    content = np.frombuffer(b"1 1:16777217 2:1\n2 3:1\n", np.uint8)
    sizes = {"labels": 2, "indptr": 3, "pairs": 3, "slow": 1}
    for name, need in sizes.items():
        for size in range(int(name == "indptr"), need + 1):
            now = {**sizes, name: size}
            arrays = (np.zeros(now["labels"]), np.zeros(now["indptr"], np.int64),
                      np.zeros(now["pairs"], np.uint32), np.zeros(now["pairs"], np.float32),
                      np.zeros((now["slow"], 4), np.int64))
            status, _, rows, nnz, _ = svmlight.parse_svmlight(content, 1, *arrays)
            assert status == (svmlight.OK if size == need else svmlight.FULL)
            assert rows <= now["labels"] and nnz <= now["pairs"]


@pytest.mark.parametrize("line, got, needed", [
    (b"1 3:x", "'3:x'", "needed a number"),
    (b"1 3:1_0", "'3:1_0'", "needed a number"),
    (b"1 3:1\x002", "'3:1\\x002'", "needed a number"),
    (b"1 3:0x1", "'3:0x1'", "needed a number"),
    (b"1_0 3:1", "'1_0'", "needed a label"),
    (b"1,2 3:1", "'1,2'", "one label a line"),
    (b"NA 3:1", "'NA'", "missing"),
    (b"1 3:", "'3:'", "value after the colon"),
    (b"1 3: 4:5", "'3:'", "value after the colon"),
    (b"1 3: x", "'3:'", "value after the colon"),
    (b"1 3", "'3'", "add the colon"),
    (b"1 3:nan", "'3:nan'", "finite"),
    (b"-Inf 3:1", "'-Inf'", "finite"),
    (b"1 3:1e400", "'1e400'", "float32's range"),
    (b"-1e39 3:4", "'-1e39'", "float32's range"),
    (b"1 0:1", "'0:1'", "--zero-based"),
    (b"1 -2:1", "'-2:1'", "not negative"),
    (b"1 4294967297:1", "'4294967297:1'", "2^32"),
    (b"1 99999999999999999999999:1", "'99999999999999999999999:1'", "2^32"),
    (b"1 2:1 2:3", "'2:3'", "once"),
    (b"1 3:1 2:3", "'2:3'", "increasing"),
    (b"1 word:3", "'word:3'", "whole number"),
    (b"1 1.5:3", "'1.5:3'", "whole number"),
    (b"1 qid:x 1:3", "'qid:x'", "qid"),
    (b"1 3:" + b"y" * 60, "'3:" + "y" * 36 + "…", "needed a number")])
@pytest.mark.parametrize("chunk_bytes", [5, 1 << 20])
def test_mistakes_in_text(tmp_path, monkeypatch, line, got, needed, chunk_bytes):
    in_pieces(monkeypatch, chunk_bytes)
    path = written(tmp_path, b"# head\r\n1 1:1\n\n" + line + b" # why\n1 bad\n")
    message = refusal(path)
    assert message.startswith(", line 4: ") and f"got {got}," in message and needed in message


def test_an_earlier_number_over_range_is_named_before_a_later_mistake(tmp_path):
    assert ", line 1: " in refusal(written(tmp_path, b"1 1:1e39\n1 x\n"))


def test_largest_index_and_empty_rows(tmp_path):
    path = written(tmp_path, b"1\n2 4294967296:1 # only\n3 qid:4\n4 5:0")
    labels, indptr, indices, values = gathered(path)
    assert labels.tolist() == [1, 2, 3, 4] and indptr.tolist() == [0, 0, 1, 1, 2]
    assert indices.tolist() == [2**32 - 1, 4] and values.tolist() == [1, 0]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["data.svm.gz", "data"])
def test_compression_is_known_by_content(tmp_path, pack, name):
    content = b"\xef\xbb\xbf1 1:2\n-1 2:3.5\n"
    labels, _, indices, _ = gathered(written(tmp_path, pack(content[:9]) + pack(content[9:]), name))
    assert labels.tolist() == [1, -1] and indices.tolist() == [0, 1]
    noise = np.random.default_rng(0).integers(0, 10**6, 5000)
    packed = pack("".join(f"1 1:{x}\n" for x in noise).encode())
    assert "truncated compressed file" in refusal(written(tmp_path, packed[:-20], name))
    middle = len(packed) // 2
    broken = packed[:middle] + bytes(b ^ 255 for b in packed[middle:middle + 30]) + packed[middle + 30:]
    message = refusal(written(tmp_path, broken, name))  # damaged codes may decode to text that is wrong first
    assert "corrupt compressed file" in message or ", line " in message or "truncated" in message


@pytest.mark.parametrize("name", ["x.svm", "x.csv", "x.npz"])
def test_files_that_are_none(tmp_path, name):
    assert "cannot be read (No such file" in refusal(tmp_path / name)
    assert "0 bytes" in refusal(written(tmp_path, b"", name))
    (tmp_path / f"d{name}").mkdir()
    assert "is a folder" in refusal(tmp_path / f"d{name}")


def test_files_without_rows_and_foreign_formats(tmp_path):
    assert "no row" in refusal(written(tmp_path, b"# a\n\n  \n"))
    assert "no row" in refusal(written(tmp_path, b"\n \n", "x.csv"))
    assert "no row" in refusal(written(tmp_path, b"a,b\n", "x.csv"))
    assert "zip archive" in refusal(written(tmp_path, b"PK\x03\x04...."))
    assert "zstd" in refusal(written(tmp_path, b"\x28\xb5\x2f\xfd...."))
    assert "no columns with names" in refusal(written(tmp_path, b"1 1:1\n"), label="y")
    assert "no columns with names" in refusal(written(tmp_path, b"1 1:1\n"), categorical="y")
    assert "no header" in refusal(written(tmp_path, b"1 1:1\n"), header="yes")


@pytest.mark.parametrize("chunk_bytes", [11, 1 << 20])
@pytest.mark.parametrize("header, label, column", [(None, None, 3), (None, "0", 0), (None, -3, 1), ("a,b,c,y", "b", 1),
                                                   ('"a a",b,c,y', "a a", 0), ("0,1,2,y", None, 3)])
def test_csv(tmp_path, monkeypatch, header, label, column, chunk_bytes):
    in_pieces(monkeypatch, chunk_bytes)
    table = np.random.default_rng(1).normal(size=(20, 4)).round(3) * np.random.default_rng(2).integers(0, 2, (20, 4))
    lines = [",".join(map(str, row)) for row in table]
    lines[3:3] = ["", "  "]  # blank lines, of which NumPy takes only the first
    content = "\r\n".join(([header] if header else []) + lines).encode()
    path = written(tmp_path, gzip.compress(content), "x.csv.gz")
    labels, indptr, indices, values = gathered(path, label=label)
    expected = sparse.csr_array(np.delete(table, column, axis=1).astype(np.float32))
    np.testing.assert_array_equal(labels, table[:, column])
    np.testing.assert_array_equal(indptr, expected.indptr)
    np.testing.assert_array_equal(indices, expected.indices)
    np.testing.assert_array_equal(values, expected.data)


@pytest.mark.parametrize("line, where, got, needed", [
    (b"1,2", "line 4", "2 columns", "needed 3"),
    (b"1,2,3,4", "line 4", "4 columns", "needed 3"),
    (b"1,,3", "line 4, column 2", "''", "missing"),
    (b"1,2,", "line 4, column 3", "''", "missing"),
    (b"1,?,3", "line 4, column 2", "'?'", "missing"),
    (b"1,2,NA", "line 4, column 3", "'NA'", "missing"),
    (b"1,red,3", "line 4, column 2", "'red'", "--categorical"),
    (b"1,nan,3", "line 4, column 2", "'nan'", "missing"),
    (b'1,"2,5",3', "line 4, column 2", "'2,5'", "decimal point"),
    (b"1,2,inf", "line 4, column 3", "'inf'", "finite"),
    (b"1,2,1e39", "line 4, column 3", "'1e39'", "float32's range"),
    (b"-inf,2,3", "line 4, column 1", "'-inf'", "finite"),
    (b"1e39,2,3", "line 4, column 1", "'1e39'", "float32's range"),
    (b"1_0,2,3", "line 4, column 1", "'1_0'", "a number"),
    (b"1,\xff,3", "line 4, column 2", "'\ufffd'", "a number")])
@pytest.mark.parametrize("chunk_bytes", [5, 1 << 20])
@pytest.mark.parametrize("head", [b"a,b,c", b"7,8,9"])
def test_mistakes_in_csv(tmp_path, monkeypatch, line, where, got, needed, chunk_bytes, head):
    in_pieces(monkeypatch, chunk_bytes)
    message = refusal(written(tmp_path, head + b"\n1,2,3\n\n" + line + b"\n4,5,6\n", "x.csv"))
    name = f" ({'abc'[int(where[-1]) - 1]})" if head == b"a,b,c" and "column" in where else ""
    assert message.startswith(f", {where}{name}: ") and f"got {got}," in message and needed in message


@pytest.mark.parametrize("content, label, needed", [
    (b"1\n2\n", None, "separated by commas"), (b"a,b\n1,2\n", "c", "'a, b'"), (b"1,2\n", "c", "no header"),
    (b"1,2\n", 2, "from -2 to 1"), (b"0.5,x,1\n1,2,3\n", None, "line 1, column 2: got 'x'"),
    (b"1,,3\n4,5,6\n", None, "line 1, column 2"), (b"1  2  3\n4  5  6\n", None, "tr -s")])
def test_mistakes_in_csv_columns(tmp_path, content, label, needed):
    assert needed in refusal(written(tmp_path, content, "x.csv"), label=label)


@pytest.mark.parametrize("chunk_bytes", [8, 100, 1 << 20])
def test_npz(tmp_path, monkeypatch, chunk_bytes):
    in_pieces(monkeypatch, chunk_bytes)
    X = sparse.random_array((30, 70), density=0.1, rng=3, format="coo")
    y = np.arange(30)
    formats.save_npz(tmp_path / "x.npz", X, y)
    np.testing.assert_array_equal(sparse.load_npz(tmp_path / "x.npz").toarray(), X.toarray())
    labels, indptr, indices, values = gathered(tmp_path / "x.npz")
    np.testing.assert_array_equal(labels, y)
    np.testing.assert_array_equal(sparse.csr_array((values, indices, indptr), X.shape).toarray(),
                                  X.toarray().astype(np.float32))
    assert {chunk.width for chunk in formats.source(tmp_path / "x.npz").chunks()} == {70}


GOOD = {"indptr": np.array([0, 1, 3]), "indices": np.array([4, 0, 2]), "data": np.ones(3), "shape": np.array([2, 5]),
        "y": np.zeros(2)}


@pytest.mark.parametrize("change, needed", [
    ({"y": None}, "no array 'y'"), ({"y": np.zeros(3)}, "do not fit"), ({"y": np.array(["a", ""])}, "row 1"),
    ({"y": np.array([0, np.nan])}, "row 1"), ({"indices": np.array([4, 2, 0])}, "row 1 (from 0): indices not"),
    ({"indices": np.array([4, 0, 5])}, "row 1 (from 0): an index"), ({"indices": np.array([-1, 0, 1])}, "row 0"),
    ({"data": np.array([1, 1, 1e39])}, "row 1 (from 0): a value"), ({"data": np.ones(2)}, "do not fit"),
    ({"data": np.array([None] * 3)}, "real numbers"), ({"indptr": np.array([0, 4, 3])}, "do not increase"),
    ({"indptr": np.array([1, 1, 3])}, "do not increase"), ({"indptr": np.zeros(0, int)}, "do not fit"),
    ({"format": np.array(b"csc")}, "'csc'")])
def test_mistakes_in_npz(tmp_path, change, needed):
    arrays = {name: array for name, array in {**GOOD, **change}.items() if array is not None}
    np.savez(tmp_path / "x.npz", **arrays)
    assert needed in refusal(tmp_path / "x.npz")


def test_damaged_npz(tmp_path):
    np.savez(tmp_path / "x.npz", **GOOD)
    content = (tmp_path / "x.npz").read_bytes()
    for broken in (content[:200], b"no zip", content.replace(np.float64(1).tobytes(), np.float64(3).tobytes(), 1)):
        assert "save_npz" in refusal(written(tmp_path, broken, "x.npz"))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("indptr.npy", b"short")
    assert "save_npz" in refusal(tmp_path / "x.npz")


@pytest.mark.parametrize("X, y, needed", [(np.eye(2), [1], "one for each row"), ([[1, np.inf]], [1], "row 0")])
def test_save_npz_refuses(tmp_path, X, y, needed):
    with pytest.raises(UserError, match=needed):
        formats.save_npz(tmp_path / "x.npz", X, y)
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("indptr, indices, values, expected", [
    ([0, 2, 3], [0, 4, 1], [1, 2, 3], (csr.OK, 2)), ([0, 0, 0], [], [], (csr.OK, 2)),
    ([0, 2, 1], [0, 4, 1], [1, 2, 3], (csr.BAD_INDPTR, 1)), ([0, 2, 4], [0, 4, 1], [1, 2, 3], (csr.BAD_INDPTR, 1)),
    ([-1, 2, 3], [0, 4, 1], [1, 2, 3], (csr.BAD_INDPTR, 0)), ([0, 2, 3], [0, 0, 1], [1, 2, 3], (csr.UNSORTED, 0)),
    ([0, 2, 3], [0, 4, 5], [1, 2, 3], (csr.OVER_WIDTH, 1)),
    ([0, 2, 3], [0, 4, 1], [1, 2, np.nan], (csr.NOT_FINITE, 1))])
def test_check(indptr, indices, values, expected):
    rows = csr.CSR(np.array(indptr), np.array(indices, np.uint32), np.array(values, np.float32))
    assert csr.check(rows, 5) == expected


@pytest.mark.parametrize("schema", [Schema("svmlight", zero_based=True), Schema(
    "csv", columns=("a", "color=red"), categories=(("color", "red"),), label="y", header=True, width=4, left_out=("id",))])
def test_a_schema_goes_through_json(schema):
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema
