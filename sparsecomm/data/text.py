"""Text for language models: words separated by blanks, every line closed by <eos>, numbered by a vocabulary."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from hogwild.data import files
from hogwild.errors import UserError
from sparsecomm.data.folder import pick

UNK, EOS = "<unk>", "<eos>"


class Corpus(NamedTuple):
    """Training and held-out text in the numbers of one vocabulary."""

    train: np.ndarray  # int32[N]
    held: np.ndarray | None  # int32[M]
    words: list  # str; the vocabulary, the commonest first
    source: str


def tokens(path):
    """Yield lists of words (bytes) of a text (plain, .gz, .bz2, .xz), <eos> behind each line. Raises UserError."""
    line, rest, open_line = 1, b"", False
    with files.opened(path) as file:
        for piece in files.unpacked(path, file):
            piece = rest + piece
            cut = max(piece.rfind(b" "), piece.rfind(b"\n")) + 1
            block, rest = piece[:cut], piece[cut:]
            yield _words(path, line, block)
            line, open_line = line + block.count(b"\n"), not block.endswith(b"\n")
        if rest or open_line:
            yield _words(path, line, rest + b"\n")


def _words(path, line, block) -> list:
    """The words of a block that begins in line `line`."""
    try:
        block.decode()
    except UnicodeDecodeError as error:
        where = files.place(path, line + block.count(b"\n", 0, error.start))
        raise UserError(f"{where}: got bytes {files.excerpt(block[error.start:error.start + 8])}, needed text in UTF-8; "
                        "convert it (iconv -t utf-8)") from None
    return block.replace(b"\n", b" <eos> ").split()


def numbered(path, index, grow=False) -> np.ndarray:
    """int32[N]: the words of a text as `index` (bytes -> number) has them; others as <unk>, or, with `grow`, added to it."""
    unknown, parts, words = index[UNK.encode()], [], False
    for block in tokens(path):
        number = (index.setdefault(word, len(index)) for word in block) if grow else (
            index.get(word, unknown) for word in block)
        parts.append(np.fromiter(number, np.int32, len(block)))
        words = words or any(word != b"<eos>" for word in block)
    if not words:
        raise UserError(f"{files.place(path)}: holds no word; needed text, words separated by blanks")
    return np.concatenate(parts)


def load(data, test=None, holdout=0.1, vocab_size=10_000) -> Corpus:
    """The corpus of a text file, or of a folder with *train* and *valid* (else *test*) files. Raises UserError.

    test: the held-out text; without one, the folder's, else the last `holdout` of the training text, in whole lines. The
    vocabulary: the commonest `vocab_size` words of the training text, <unk> and <eos> included.
    """
    path, test = _found(Path(data), test)
    index = {UNK.encode(): 0, EOS.encode(): 1}
    ids = numbered(path, index, grow=True)
    cut = len(ids) if test else _line_end(ids, holdout, path)
    # The number of a word by falling count, then by its first place in the text.
    counts = np.bincount(ids[:cut], minlength=len(index))
    counts[:2] = len(ids) + 1
    order = np.argsort(-counts, kind="stable")[:min(vocab_size, int((counts > 0).sum()))]
    new = np.zeros(len(index), np.int32)
    new[order] = np.arange(len(order))
    names = list(index)
    words = [names[k] for k in order]
    index = {word: k for k, word in enumerate(words)}
    train, held = new[ids[:cut]], new[ids[cut:]] if cut < len(ids) else None
    return Corpus(train, numbered(test, index) if test else held, [word.decode() for word in words], files.place(path))


def _line_end(ids, holdout, path) -> int:
    """Where to cut so that the last `holdout` of the text, in whole lines, is held out; len(ids) for no holdout."""
    if holdout == 0:
        return len(ids)
    ends = np.flatnonzero(ids[:-1] == 1) + 1
    if not len(ends):
        raise UserError(f"{files.place(path)}: has one line, of which nothing can be held out; needed more lines, a "
                        "held-out text (--test), or --holdout 0")
    return int(ends[np.argmin(np.abs(ends - (1 - holdout) * len(ids)))])


def _found(data, test):
    """(training text, held-out text or None) of DATA and --test."""
    if not data.is_dir():
        return data, test
    train = pick(data, "training text", "*train*")
    return train, test or (pick(data, "validation text", "*valid*", "*val*", "*dev*", needed=False) or
                           pick(data, "test text", "*test*", needed=False))
