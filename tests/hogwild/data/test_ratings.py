"""Ratings read from files: what the same pairs look like in each format, and the one line that a mistake gives."""

import bz2
import gzip
import lzma

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from scipy.sparse import csr_array, save_npz

from hogwild.data import rating_splits, ratings
from hogwild.data.rating_ids import Ids
from hogwild.errors import UserError

ROWS = [("u1", "é b", 4.0), ("u2", "é b", 1.5), ("u1", "c,d", -3.0), ("u3", "7", 2.0)]


def pairs(made):
    """{(user, item): rating}."""
    users, items = made.user_ids.values, made.item_ids.values
    return {(users[u], items[i]): float(x) for u, i, x in zip(made.users, made.items, made.values)}


WANT = {(user, item): x for user, item, x in ROWS}
PLAIN = {(user, item.replace(",", "")): x for user, item, x in ROWS}


@pytest.mark.parametrize("text", [
    "u1::é b::4\nu2::é b::1.5\nu1::c,d::-3\nu3::7::2", "\n\nu1\té b\t4\nu2\té b\t1.5\r\nu1\tc,d\t-3\nu3\t7\t2\n",
    'u1,é b,4\nu2,é b,1.5\nu1,"c,d",-3\nu3, 7 ,2\n', 'userId,movieId,rating\nu1,é b,4\nu2,é b,1.5\nu1,"c,d",-3\nu3,7,2\n',
    "sep=;\nrating;x;user;item\n4;0;u1;é b\n1.5;0;u2;é b\n-3;0;u1;c,d\n2;0;u3;7\n",
    "\ufeffu1|é b|4|9\nu2|é b|1.5|10\nu1|c,d|-3|11\nu3|7|2|12\n"])
def test_text(tmp_path, text):
    path = tmp_path / "r.txt"
    for name, pack in ("r.txt", bytes), ("r.txt.gz", gzip.compress), ("r.csv.bz2", bz2.compress), ("r.xz", lzma.compress):
        (path := tmp_path / name).write_bytes(pack(text.encode()))
        made = ratings.read(path)
        assert pairs(made) == WANT and made.rated and not made.item_ids.whole
        assert made.user_ids.values.tolist() == ["u1", "u2", "u3"]  # in the order of the file
    assert (made.times is not None) == ("|9" in text)


def test_tables_and_arrays(tmp_path):
    users, items, values = zip(*ROWS)
    table = pa.table({"rating": values, "item": pa.array(items).dictionary_encode(), "user": users})
    parquet.write_table(table, tmp_path / "r.parquet")
    for source in tmp_path / "r.parquet", table, (users, items, values), (list(users), np.array(items), np.array(values)):
        assert pairs(ratings.given(source)) == WANT
    matrix = csr_array((np.array([5.0, 0.0, 2.0]), (np.array([0, 3, 3]), np.array([2, 0, 9]))), shape=(5, 12))
    save_npz(tmp_path / "m.npz", matrix)
    for source in tmp_path / "m.npz", matrix, matrix.tocoo(), ([0, 3, 3], [2, 0, 9], [5, 0, 2]):
        made = ratings.given(source)
        assert pairs(made) == {(0, 2): 5.0, (3, 0): 0.0, (3, 9): 2.0} and made.user_ids.values.dtype == np.int64


def test_the_columns_are_chosen(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("a,b,c,d\n1,x,2020-01-02,3\n1,y,2020-01-01,4\n")
    made = ratings.read(path, "b,a,d,c")
    assert pairs(made) == {("x", 1): 3.0, ("y", 1): 4.0} and made.times[0] - made.times[1] == 86_400e6
    assert ratings.read(path, "1,0", header="yes").rated is False
    path.write_text("x,1\ny,2\n")
    assert pairs(ratings.read(path)) == {("x", 1): 1.0, ("y", 2): 1.0} and "positives" in ratings.read(path).notes[-1]
    path.write_text("a,b,1\na,c,2\n")
    assert len(pairs(ratings.read(path))) == 2 and len(pairs(ratings.read(path, header="yes"))) == 1


def test_the_latest_of_duplicates_counts(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("a,b,1\na,c,2\na,b,3\n")
    made = ratings.read(path)
    assert pairs(made) == {("a", "b"): 3.0, ("a", "c"): 2.0}
    assert "1 ratings are of a user and an item that another" in made.notes[-1]
    path.write_text("a,b,1,20\na,c,2,5\na,b,3,10\n")
    assert pairs(ratings.read(path)) == {("a", "b"): 1.0, ("a", "c"): 2.0}


@pytest.mark.parametrize(("text", "said"), [
    ("a::b::3\na::c\n", "line 2: got 2 fields, needed 3"), ("a,b,3\n\na,c,x\n", "line 3: got rating 'x', needed a finite "
                                                                                "number"),
    ("a,b,3\na,c,nan\n", "line 2: got rating 'nan'"), ("a,b,3\na,c,1e39\n", "line 2: got rating '1e39'"),
    ("a,b,3\na,,1\n", "line 2: got '' as the item"), ("1::2::x\n1::3::1\n", "line 1: got rating 'x'"),
    ("a,b,3,1\na,c,4,soon\n", "line 2: got time 'soon', needed a number"), ("", "is empty"), (" \n\n", "holds no rating"),
    ("user,item,rating\n", "holds no rating"), ("ab\ncd\n", "line 1: has one column, got 'ab'"), ('{"a": 1}\n', "is JSON")])
def test_mistakes_in_text(tmp_path, text, said):
    (path := tmp_path / "r.txt").write_text(text)
    with pytest.raises(UserError) as error:
        ratings.read(path)
    assert str(error.value).startswith(f"{path}") and said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("source", "said"), [
    ((["a"], ["b", "c"], [1, 2]), "1 users, 2 items"), ((["a"], np.array([1.5]), [1]), "dtype float64, needed whole"),
    ((["a"], ["b"], ["x"]), "ratings have dtype"), ((["a"], ["b"], [np.inf]), "row 0 (from 0): got rating inf"),
    ((["a", None], ["b", "c"], [1, 2]), "got 'None' as an identifier"), (5, "got int, needed a file's path"),
    ((np.ones((2, 2), int), [1, 2], [1, 2]), "identifiers of shape (2, 2)"), ((["\ud800"], [1], [1]), "that UTF-8 can hold"),
    (([1, 2], [1, 2], [1, 2], [0, np.nan]), "row 1 (from 0): the time is missing"),
    (([1, 2], [1, 2], [1, 2], np.array(["NaT", "2020-01-01"], "datetime64[s]")), "row 0 (from 0): the time is missing")])
def test_mistakes_in_arrays(source, said):
    with pytest.raises(UserError) as error:
        ratings.given(source)
    assert said in str(error.value)


def test_a_bad_matrix_is_one_line(tmp_path):
    (path := tmp_path / "m.npz").write_bytes(b"PK\x03\x04 no archive .npy")
    with pytest.raises(UserError, match="corrupt or no .npz file"):
        ratings.read(path)
    np.savez(path, indptr=[0, 2], indices=[0, 9], data=[1.0, 2.0], shape=[1, 4], format=b"csr")
    with pytest.raises(UserError, match="is no CSR matrix whose arrays fit together"):
        ratings.read(path)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, unique=True), st.lists(st.text()))
def test_identifiers_survive_a_file_and_are_found(texts, others):
    ids = Ids(pa.array(texts))
    back = Ids.of_tensors(ids.tensors("user"), "user", False)
    assert back.values.tolist() == texts
    assert back.find(texts + others).tolist() == [texts.index(text) if text in texts else -1 for text in texts + others]


def test_splits_hold_out_what_they_say():
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 30, 400), rng.integers(0, 20, 400)
    times = rng.permutation(400)
    whole = ratings.given((users, items, rng.random(400), times))
    every = pairs(whole)
    for split in rating_splits.split(whole, 1, 0.25), rating_splits.split(whole, 1, last=True):
        train, held = pairs(split.train), pairs(split.held_out)
        assert train | held == every and not train.keys() & held.keys()
        assert len(split.train.user_ids) == len({user for user, _ in train})  # the model knows these alone
        if len(held) == int(0.25 * len(every)):
            continue
        stamp = {(u, i): t for u, i, t in sorted(zip(users, items, times), key=lambda row: row[2])}
        for user, item in held:
            assert stamp[user, item] == max(t for (u, _), t in stamp.items() if u == user)
        assert len(held) == len(set(users))
    with pytest.raises(UserError, match="ratings of one user to train on, needed two"):
        rating_splits.split(ratings.given(([1, 1], [2, 3], [1, 1])), 0, 0)
