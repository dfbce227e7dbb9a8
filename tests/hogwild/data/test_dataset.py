"""Data sets from files and from arrays, and the transforms against scikit-learn."""

import mmap
import os
import time

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_svmlight_file
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import MaxAbsScaler, normalize

from hogwild.data import dataset, files, formats, transforms
from hogwild.errors import UserError
from hogwild.kernels.data import csr

pytestmark = pytest.mark.checked
TEXT = b"1 1:0.5 3:2\n# none\n-1\n1 2:3 7:1e-3\n"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache folder of one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hogwild-sparsecomm" / "data"


@pytest.fixture
def path(tmp_path):
    """A small file, old enough that its modification time can be trusted."""
    path = tmp_path / "data.svm"
    write(path, TEXT)
    return path


def write(path, content, age=60):
    path.write_bytes(content)
    os.utime(path, (time.time() - age,) * 2)


def assert_holds(data_set, expected, labels):
    got = sparse.csr_array((data_set.values, data_set.indices, data_set.indptr), (data_set.rows, data_set.n_features))
    np.testing.assert_array_equal(got.toarray(), np.asarray(expected, np.float32))
    np.testing.assert_array_equal(data_set.labels, labels)


def is_mapped(array):
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.base
    return array is not None


def random_dataset(rows=40, width=30):
    X = sparse.random_array((rows, width), density=0.2, rng=5, format="csr", dtype=np.float32)
    X.data += 0.5
    return X, dataset.from_arrays(X, np.arange(rows))


@pytest.mark.parametrize("use_cache", [True, False])
def test_read_agrees_with_sklearn(cache, path, use_cache):
    X, y = load_svmlight_file(str(path))
    for _ in range(2):
        data_set = dataset.read(path, cache=use_cache)
        assert_holds(data_set, X.toarray(), y)
        assert (data_set.rows, data_set.nnz, data_set.n_features, data_set.source) == (3, 4, 7, str(path))
    assert dataset.read(path, n_features=9, cache=use_cache).n_features == 9


def test_read_files_of_many_chunks(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 50)
    X, data_set = random_dataset()
    lines = (f"{i} " + " ".join(f"{j + 1}:{v!r}" for j, v in zip(X.indices[a:b].tolist(), X.data[a:b].tolist()))
             for i, (a, b) in enumerate(zip(X.indptr, X.indptr[1:])))
    write(tmp_path / "many.svm", "\n".join(lines).encode())
    formats.save_npz(tmp_path / "many.npz", X, np.arange(40))
    np.savetxt(tmp_path / "many.csv", np.column_stack((X.toarray(), np.arange(40))), delimiter=",", fmt="%.9g")
    for name in ("many.svm", "many.npz", "many.csv"):
        assert_holds(dataset.read(tmp_path / name, n_features=30), X.toarray(), np.arange(40))
    write(tmp_path / "zeros.csv", b"1,0,0,5\n1,0,0,6\n")
    assert dataset.read(tmp_path / "zeros.csv").n_features == 3
    write(tmp_path / "labels.svm", b"1\n2\n")
    assert_holds(dataset.read(tmp_path / "labels.svm"), np.empty((2, 0)), [1, 2])


@pytest.mark.parametrize("zero_based, got", [(False, 7), (True, 7)])
def test_too_many_features(cache, path, zero_based, got):
    with pytest.raises(UserError, match=f"data.svm, line 4: got index {got}, needed at most {6 - zero_based};"):
        dataset.read(path, n_features=6, zero_based=zero_based)
    with pytest.raises(UserError, match="features, needed at most 1"):
        write(path.with_suffix(".csv"), b"1,2,3\n")
        dataset.read(path.with_suffix(".csv"), n_features=1)


@pytest.mark.parametrize("use_cache", [True, False])
def test_mistakes_pass_through(cache, tmp_path, use_cache):
    with pytest.raises(UserError, match="cannot be read"):
        dataset.read(tmp_path / "missing", cache=use_cache)
    with pytest.raises(UserError, match="is a folder"):
        dataset.read(tmp_path, cache=use_cache)
    write(tmp_path / "bad", b"1 1:1\n1 x\n")
    with pytest.raises(UserError, match="bad, line 2: got 'x'"):
        dataset.read(tmp_path / "bad", cache=use_cache)


def test_a_pipe_can_be_read(cache, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    if os.fork() == 0:
        (tmp_path / "pipe").write_bytes(TEXT)
        os._exit(0)
    assert dataset.read(tmp_path / "pipe").rows == 3
    os.wait()


def test_subset_take_and_blocks():
    X, data_set = random_dataset()
    part = data_set.subset(5, 17)
    assert_holds(part, X[5:17].toarray(), np.arange(5, 17))
    assert np.shares_memory(part.values, data_set.values) and np.shares_memory(part.indices, data_set.indices)
    order = np.array([7, 7, 39, 0])
    assert_holds(dataset.select(data_set, order), X[order].toarray(), order)
    assert_holds(dataset.select(data_set, order[:0]), np.empty((0, 30)), [])
    for entries in (1, 13, 10**6):
        starts, stops = zip(*data_set.blocks(entries))
        assert starts == (0, *stops[:-1]) and stops[-1] == 40
        assert all(stop == start + 1 or data_set.indptr[stop] - data_set.indptr[start] <= entries
                   for start, stop in zip(starts, stops))


def test_datasets_are_read_only_and_the_arrays_given_are_not():
    values = np.ones(1, np.float32)
    data_set = dataset.Dataset(np.array([0, 1]), np.zeros(1, np.uint32), values, np.zeros(1, np.float32), 1, "x")
    assert values.flags.writeable and np.shares_memory(values, data_set.values)
    with pytest.raises(ValueError):
        data_set.values[0] = 2


@pytest.mark.parametrize("convert", [np.asarray, np.ndarray.tolist, sparse.coo_array, sparse.csc_array,
                                     sparse.csr_matrix])
def test_from_arrays(convert):
    dense = np.array([[0, 2.5, 0], [0, 0, 0], [1, 0, -1]])
    assert_holds(dataset.from_arrays(convert(dense), [1, 0, 1]), dense, [1, 0, 1])


def test_from_arrays_sums_duplicates_and_leaves_its_argument():
    X = sparse.csr_array((np.array([1.0, 2, 3]), np.array([2, 0, 2]), np.array([0, 3])), (1, 3))
    data_set = dataset.from_arrays(X, [1])
    assert data_set.indices.tolist() == [0, 2] and data_set.values.tolist() == [2, 4]
    assert X.indices.tolist() == [2, 0, 2]


@pytest.mark.parametrize("X, y, message", [
    ([[1, 2]], [1, 2], "shape"), ([1, 2], [1, 2], "shape"), (np.empty((0, 2)), [], "shape"),
    ([[1, 2], [3, np.nan]], [1, 2], "row 1"), ([[1], [2]], [1, np.inf], "row 1"), ([[1], [1e39]], [1, 2], "row 1"),
    ([["a"]], [1], "dtype"), ([[1]], ["a"], "dtype"), ([[1j]], [1], "dtype"), ([[1], [1, 2]], [1, 2], "lengths")])
def test_mistakes_in_arrays(X, y, message):
    with pytest.raises(UserError, match=f"^here.*{message}"):
        dataset.from_arrays(X, y, "here")


def test_degrees():
    X, data_set = random_dataset()
    count = np.zeros(30, np.int64)
    csr.degrees(data_set.csr, count)
    np.testing.assert_array_equal(count, (X.toarray() != 0).sum(axis=0))
    total, x = np.ones((3, 30)), X.toarray()[:-1].astype(float)
    csr.sizes(data_set.csr, data_set.rows - 1, *total)
    np.testing.assert_allclose(total, [1 + x.sum(0), 1 + abs(x).sum(0), 1 + (x**2).sum(0)])


def test_strongest_eigenvalue():
    x = np.random.default_rng(3).standard_normal((60, 9)) * (np.random.default_rng(4).random((60, 9)) < 0.5) + np.eye(60, 9)
    scale = np.array([1.0, 4, 2, 0, 1, 1, 8, 0, 1])
    data_set = dataset.from_arrays(x, np.ones(60))
    want = np.linalg.eigvalsh(np.cov(x[:50] * np.sqrt(scale), rowvar=False, bias=True))[-1]
    assert csr.strongest(data_set.csr, 50, scale, 300) == pytest.approx(want, rel=1e-4)
    assert 0.5 * want < csr.strongest(data_set.csr, 50, scale) <= want * 1.0001
    assert csr.strongest(data_set.csr, 50, np.zeros(9)) == csr.strongest(data_set.csr, 1, scale) == 0


@pytest.mark.parametrize("text, names", [("log,l2", ("log", "l2")), ("none", ()), ("", ()),
                                         (" l2 , tfidf", ("l2", "tfidf"))])
def test_transform_names(text, names):
    assert transforms.parse(text) == names


def test_unknown_transform():
    with pytest.raises(UserError, match="'sqrt', needed one of log, l2, binary, tfidf, scale, none"):
        transforms.parse("log,sqrt")
    with pytest.raises(UserError, match="'scale' twice"):
        transforms.parse("scale,l2,scale")


SKLEARN = {"log": lambda X, _: X.log1p(), "l2": lambda X, _: normalize(X),
           "binary": lambda X, _: (X != 0).astype(float),
           "tfidf": lambda X, train: TfidfTransformer(norm=None, smooth_idf=True).fit(train).transform(X),
           "scale": lambda X, train: MaxAbsScaler().fit(train).transform(X)}


@pytest.mark.parametrize("text", ["log", "l2", "binary", "tfidf", "log,tfidf,l2", "l2,log", "log,tfidf,scale,l2"])
@pytest.mark.parametrize("block", [10, 1 << 20])
@pytest.mark.parametrize("in_file", [False, True])
def test_transforms_agree_with_sklearn(cache, monkeypatch, text, block, in_file):
    monkeypatch.setattr(transforms, "BLOCK", block)
    if in_file:
        monkeypatch.setattr(transforms, "memory", lambda: 1)
    X, train = random_dataset()
    names, test = transforms.parse(text), train.subset(3, 20)
    got = transforms.apply(names, transforms.fit(names, train), test)
    expected, fitted = X[3:20].astype(np.float64), X
    for name in names:
        expected, fitted = SKLEARN[name](expected, fitted), SKLEARN[name](fitted, fitted)
    assert is_mapped(got.values) == in_file
    np.testing.assert_allclose(sparse.csr_array((got.values, got.indices, got.indptr), (17, 30)).toarray(),
                               expected.toarray(), rtol=1e-6)
    np.testing.assert_array_equal(train.values, X.data)


@pytest.mark.parametrize("name", ["tfidf", "scale"])
def test_transforms_learn_from_the_training_rows_alone(monkeypatch, name):
    monkeypatch.setattr(transforms, "BLOCK", 50)
    _, whole = random_dataset()
    rows = np.array([2, 3, 17, 39])
    learnt, wanted = transforms.fit((name,), whole, rows), transforms.fit((name,), dataset.select(whole, rows))
    assert all(np.array_equal(learnt[key], wanted[key]) for key in wanted) and len(wanted) == 1


def test_transforms_of_zeros_and_of_nothing():
    data_set = dataset.Dataset(np.array([0, 2, 2]), np.array([0, 1], np.uint32), np.zeros(2, np.float32),
                           np.zeros(2, np.float32), 2, "zeros")
    assert transforms.apply((), {}, data_set) is data_set
    for name in ("l2", "binary", "log"):
        assert transforms.apply((name,), {}, data_set).values.tolist() == [0, 0]


def test_mistakes_in_transforms(monkeypatch):
    monkeypatch.setattr(transforms, "BLOCK", 1)
    data_set = dataset.from_arrays([[1, 0, 2], [0, 0, 0], [0.5, -1, 3]], [1, 2, 3], "here")
    with pytest.raises(UserError, match=r"^here, row 2 \(from 0\): got value -1, log"):
        transforms.apply(("log",), {}, data_set)
    narrow = dataset.from_arrays([[1, 0], [2, 0]], [1, 2])
    with pytest.raises(UserError, match="^here: has 3 features, tfidf was fitted on 2"):
        transforms.apply(("tfidf",), transforms.fit(("tfidf",), narrow), data_set)
    large = dataset.from_arrays([[1, 0], [0, 3e38]], [1, 2], "large")
    with pytest.raises(UserError, match=r"^large, row 1 .*float32"):
        transforms.apply(("tfidf",), transforms.fit(("tfidf",), large), large)
