"""What is made of the files that publishers offer: functions (downloaded files, folder to write into)."""

import lzma
import re
import shutil
import tarfile

import numpy as np

WORDS = r"[a-z]{2,}"  # of text in small letters
BREAK = re.compile(r"<br\s*/?>")
PRESET = 2  # of xz: a sixth of the time of the usual one


def unchanged(downloads, folder):
    for path in downloads:
        shutil.copyfile(path, folder / path.name)


def compressed(downloads, folder):
    for path in downloads:
        with open(path, "rb") as plain, lzma.open(folder / f"{path.name}.xz", "wb", preset=PRESET) as packed:
            shutil.copyfileobj(plain, packed)


def imdb(downloads, folder):
    """Word counts, the commonest word first; +1 for a positive review."""
    parts = {part: ([], []) for part in ("train", "test")}
    for part, kind, text in _texts(downloads[0], r"aclImdb/(train|test)/(pos|neg)/\w+\.txt", "utf-8"):
        parts[part][0].append(BREAK.sub(" ", text))
        parts[part][1].append(1 if kind == "pos" else -1)
    counts, test = _counts(parts["train"][0], parts["test"][0])
    order = np.argsort(-np.bincount(counts.indices, minlength=counts.shape[1]), kind="stable")
    for part, rows in ("train", counts[:, order]), ("test", test[:, order]):
        _write(folder / f"imdb-bow.{part}.svm.xz", rows, parts[part][1])


def newsgroups(downloads, folder):
    """(1 + ln tf) ln(N / df) without the messages' headers, rows of length 1; +1 for groups of computers and science."""
    parts = {part: ([], []) for part in ("train", "test")}
    for part, group, text in _texts(downloads[0], r"20news-bydate-(train|test)/([\w.-]+)/\d+", "latin-1"):
        parts[part][0].append(text.partition("\n\n")[2])
        parts[part][1].append(1 if group.startswith(("comp.", "sci.")) else -1)
    train, test = _counts(parts["train"][0], parts["test"][0])
    weight = np.log(train.shape[0] / np.bincount(train.indices, minlength=train.shape[1]))
    for part, counts in ("train", train), ("test", test):
        rows = counts.astype(np.float64)
        rows.data = (1 + np.log(rows.data)) * weight[rows.indices]
        length = np.sqrt(rows.multiply(rows).sum(axis=1).A1)
        rows.data = (rows.data / np.repeat(np.where(length > 0, length, 1), np.diff(rows.indptr))).round(6)
        _write(folder / f"20news-comp-sci.{part}.svm.xz", rows, parts[part][1])


def _texts(archive, pattern, encoding):
    """(part, class, text) of the members whose names match, in the order of their names."""
    found, wanted = {}, re.compile(pattern)
    with tarfile.open(archive) as tar:
        for member in tar:  # read in the archive's order: going back would decompress it again
            if match := wanted.fullmatch(member.name):
                found[member.name] = *match.groups(), tar.extractfile(member).read().decode(encoding)
    return [found[name] for name in sorted(found)]


def _counts(train, test):
    """CSR counts of the words that at least two training texts hold, in alphabetical order."""
    from sklearn.feature_extraction.text import CountVectorizer
    words = CountVectorizer(token_pattern=WORDS, min_df=2)
    return words.fit_transform(train), words.transform(test)


def _write(path, rows, labels):
    """An svmlight text, features from 1, the rows in a random order that is always the same."""
    from sklearn.datasets import dump_svmlight_file
    order = np.random.default_rng(0).permutation(rows.shape[0])
    rows = rows[order]
    rows.sort_indices()
    with lzma.open(path, "wb", preset=PRESET) as file:
        dump_svmlight_file(rows, np.asarray(labels)[order], file, zero_based=False)
