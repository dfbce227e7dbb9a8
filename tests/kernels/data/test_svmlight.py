"""Corpora for language models: the vocabulary, the numbers of the words, what is held out, and bad texts."""

import bz2
import collections
import gzip
import lzma

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hogwild.data import files
from hogwild.errors import UserError
from sparsecomm.data import text

TALE = "the cat saw the dog\nthe dog ran\n\nthe <unk> cat\n"
PACK = {"": lambda raw: raw, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def back(corpus, ids):
    return [corpus.words[i] for i in ids]


@pytest.mark.parametrize("end", PACK)
def test_words_and_ends_of_lines(tmp_path, end):
    (tmp_path / f"a{end}").write_bytes(PACK[end](TALE.encode()))
    corpus = text.load(tmp_path / f"a{end}", holdout=0)
    want = "the cat saw the dog <eos> the dog ran <eos> <eos> the <unk> cat <eos>".split()
    assert back(corpus, corpus.train) == want and corpus.train.dtype == np.int32 and corpus.held is None
    assert corpus.words == ["<unk>", "<eos>", "the", "cat", "dog", "saw", "ran"]


@pytest.mark.parametrize("raw", ["the cat", "the cat\n", "the  cat \r\n", "\ufeffthe\tcat"])
def test_the_last_line_ends_too(tmp_path, raw):
    (tmp_path / "a").write_bytes(raw.encode())
    corpus = text.load(tmp_path / "a", holdout=0)
    assert back(corpus, corpus.train) == ["the", "cat", "<eos>"]


def test_pieces_do_not_cut_words(tmp_path, monkeypatch):
    """Whatever pieces the file is read in, words, lines and characters of several bytes stay whole."""
    raw = "größe ist nicht alles\nein 🙂 mehr \n und keine neue zeile am ende "
    (tmp_path / "a").write_text(raw, encoding="utf-8")
    want = [word for line in raw.split("\n") for word in (*line.split(), "<eos>")]
    for size in range(1, 12):
        monkeypatch.setattr(files, "CHUNK_BYTES", size)
        corpus = text.load(tmp_path / "a", holdout=0)
        assert back(corpus, corpus.train) == want


@given(lines=st.lists(st.lists(st.sampled_from("a b c d e f ä <unk>".split()), max_size=6), min_size=2, max_size=30),
       size=st.integers(3, 12), holdout=st.sampled_from([0.0, 0.1, 0.5]))
def test_vocabulary(tmp_path_factory, lines, size, holdout):
    path = tmp_path_factory.mktemp("text") / "a"
    path.write_text("".join(" ".join(line) + "\n" for line in lines) + "end\n", encoding="utf-8")
    corpus = text.load(path, holdout=holdout, vocab_size=size)
    whole = [word for line in [*lines, ["end"]] for word in (*line, "<eos>")]
    train = whole[:len(corpus.train)]
    assert corpus.held is None if not holdout else len(corpus.held) == len(whole) - len(train) > 0
    assert train[-1] == "<eos>"
    counts = collections.Counter(train)
    for own in ("<unk>", "<eos>"):
        counts.pop(own, None)
    assert corpus.words == ["<unk>", "<eos>", *(word for word, _ in counts.most_common(size - 2))]
    known = set(corpus.words)
    assert back(corpus, corpus.train) == [word if word in known else "<unk>" for word in train]
    if holdout:
        assert back(corpus, corpus.held) == [word if word in known else "<unk>" for word in whole[len(train):]]


def test_held_out_lines_are_the_last(tmp_path):
    (tmp_path / "a").write_text("".join(f"w{k} x y z\n" for k in range(100)))
    corpus = text.load(tmp_path / "a", holdout=0.2)
    assert len(corpus.train) == 400 and len(corpus.held) == 100
    assert back(corpus, corpus.held)[:4] == ["<unk>", "x", "y", "z"]  # its first word does not occur before


def test_a_text_of_its_own_is_held_out(tmp_path):
    (tmp_path / "a").write_text(TALE)
    (tmp_path / "b").write_text("the mouse saw\n")
    corpus = text.load(tmp_path / "a", tmp_path / "b")
    assert back(corpus, corpus.held) == ["the", "<unk>", "saw", "<eos>"] and len(corpus.train) == 15


@pytest.mark.parametrize("names, held", [(("p.train.txt", "p.valid.txt", "p.test.txt"), 1), (("train", "test.txt"), 1),
                                         (("TRAIN.en", "val.en"), 1), (("x.train",), 0)])
def test_folder(tmp_path, names, held):
    for k, name in enumerate(names):
        (tmp_path / name).write_text("\n" * k + TALE)
    corpus = text.load(tmp_path, holdout=0)
    assert len(corpus.train) == 15 and (len(corpus.held) == 15 + held if held else corpus.held is None)
    (tmp_path / "other").write_text("cat\n")
    assert len(text.load(tmp_path, tmp_path / "other").held) == 2


def test_penn_treebank(data_set):
    corpus = text.load(data_set("ptb"))
    assert len(corpus.train) == 929_589 and len(corpus.held) == 73_760 and len(corpus.words) == 10_000


BAD = {"empty": (b"", "is empty"), "blank": (b" \n\n  \n", "holds no word"), "latin-1": (b"one\ntwo\nfa\xe7ade\n",
       "a.txt, line 3: got bytes .*, needed text in UTF-8"), "cut gz": (gzip.compress(TALE.encode() * 99)[:-12], "truncated"),
       "a zip": (b"PK\3\4xxxxxx", "is a zip archive")}


@pytest.mark.parametrize("raw, message", BAD.values(), ids=BAD)
def test_bad_texts(tmp_path, raw, message):
    (tmp_path / "a.txt").write_bytes(raw)
    (tmp_path / "good").write_text(TALE)
    for where in ((tmp_path / "a.txt",), (tmp_path / "good", tmp_path / "a.txt")):
        with pytest.raises(UserError, match=message) as told:
            text.load(*where)
        assert "\n" not in str(told.value) and "a.txt" in str(told.value)


def test_bad_places(tmp_path):
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        text.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="needed one file of training text .* got none"):
        text.load(tmp_path)
    for name in ("train.de", "train.en"):
        (tmp_path / name).write_text(TALE)
    with pytest.raises(UserError, match="got train.de, train.en; name the files themselves"):
        text.load(tmp_path)
    (tmp_path / "line").write_text("one line alone")
    with pytest.raises(UserError, match="line: has one line, of which nothing can be held out"):
        text.load(tmp_path / "line")
