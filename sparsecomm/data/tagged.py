"""Sentences whose words have tags: CoNLL column files, and generated ones."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from hogwild.data import files
from hogwild.errors import UserError
from sparsecomm.data.folder import pick

SYNTHETIC = "synthetic sentences (people and places)"
DOCSTART = "-DOCSTART-"  # CoNLL-2003's line between documents
SHAPE = "needed lines of columns, the word first and the tag last, and a blank line between sentences"


class Tagged(NamedTuple):
    """Sentences behind one another."""

    words: list  # str
    tags: list  # str
    bounds: np.ndarray  # int64[sentences + 1]: where each begins, and the end
    source: str
    notes: tuple = ()  # lines for people

    def chosen(self, which) -> "Tagged":
        """The sentences of the numbers `which`, in that order."""
        spans = [range(*self.bounds[k:k + 2]) for k in which]
        words, tags = ([part[i] for span in spans for i in span] for part in self[:2])
        return self._replace(words=words, tags=tags, bounds=np.cumsum([0, *map(len, spans)]))

    def sentences(self, of) -> list:
        """A list of one value a word, cut into the sentences' lists."""
        return [list(of[a:b]) for a, b in zip(self.bounds[:-1], self.bounds[1:])]


def load(data=None, test=None, holdout=0.1, seed=0) -> tuple[Tagged, Tagged | None]:
    """(training, held-out) sentences of a column file, or of a folder with *train* and *valid*, *dev* or *test* files.

    test: the held-out file; without one the folder's, else a random share `holdout`; None: nothing is held out. data None:
    generated sentences. Raises UserError.
    """
    if data is not None and Path(data).is_dir():
        test = test or (pick(data, "validation sentences", "*valid*", "*dev*", needed=False) or
                        pick(data, "test sentences", "*test*", needed=False))
        data = pick(data, "training sentences", "*train*")
    whole = read(data) if data is not None else generated()
    if test is not None:
        return whole, read(test)
    count = len(whole.bounds) - 1
    cut, order = int(holdout * count), np.random.default_rng(seed).permutation(count)
    if cut == 0:
        if holdout:
            raise UserError(f"{whole.source}: has {count} sentence{'s' * (count > 1)}, of which --holdout {holdout:g} holds "
                            "out none; make it larger, give --test, or --holdout 0")
        return whole, None
    return whole.chosen(np.sort(order[cut:])), whole.chosen(np.sort(order[:cut]))


def read(path) -> Tagged:
    """The sentences of a column file (plain, .gz, .bz2, .xz): columns between blanks, as many in every line. UserError.

    Tags I-X that continue no X, as CoNLL-2003's first form has them, are read as B-X.
    """
    words, tags, bounds, needed = [], [], [0], None
    with files.opened(path) as file:
        for line, columns in _lines(path, file):
            if columns and columns[0] != DOCSTART:
                needed = needed or (len(columns), line)
                if len(columns) < 2 or len(columns) != needed[0]:
                    raise UserError(_uneven(path, line, columns, needed))
                words.append(columns[0]), tags.append(columns[-1])
            elif len(words) > bounds[-1]:
                bounds.append(len(words))
    if not words:
        raise UserError(f"{files.place(path)}: holds no sentence; {SHAPE}")
    if len(words) > bounds[-1]:
        bounds.append(len(words))
    begun = _begin(tags, bounds)
    note = (f"{files.place(path)}: tags I-… that continue nothing are read as B-…: {begun:,}",) if begun else ()
    return Tagged(words, tags, np.array(bounds), files.place(path), note)


def _begin(tags, bounds) -> int:
    """Let every chunk begin with B-, in place, where the tags are of B, I and O alone; how many had begun with I-."""
    if not {tag[:2] for tag in tags} <= {"O", "B-", "I-"}:
        return 0
    firsts, wrong = set(bounds), [k for k, tag in enumerate(tags) if tag[0] == "I"]
    wrong = [k for k in wrong if k in firsts or tags[k - 1][1:] != tags[k][1:]]
    for k in wrong:
        tags[k] = "B" + tags[k][1:]
    return len(wrong)


def _lines(path, file):
    """Yield (number, list of columns) of each line."""
    for first, block in files.line_blocks(path, files.unpacked(path, file)):
        try:
            lines = block.decode().split("\n")
        except UnicodeDecodeError as error:
            where = files.place(path, first + block.count(b"\n", 0, error.start))
            raise UserError(f"{where}: got bytes {files.excerpt(block[error.start:error.start + 8])}, needed text in UTF-8; "
                            "convert it (iconv -t utf-8)") from None
        if not lines[-1]:
            lines.pop()  # behind the last line's end there is none
        for k, line in enumerate(lines):
            yield first + k, line.split()


def _uneven(path, line, columns, needed) -> str:
    got = f"got {len(columns)} column{'s' * (len(columns) > 1)} ({files.excerpt(' '.join(columns))})"
    wanted = f"{needed[0]}, as in line {needed[1]}" if needed[0] > 1 else "at least 2"
    return f"{files.place(path, line)}: {got}, needed {wanted}: the word first and the tag last; add what is missing"


NAMES = "Adams Blair Clark Doyle Ellis Grant Jordan Kent Lincoln Madison Paris Sydney Victoria Warren York".split()
TITLES, PLACES = "Mr Mrs Dr Judge".split(), "in near from to".split()
VERBS = "met saw called left reached praised wrote".split()
FILLERS = "yesterday again quietly soon later then".split()


def generated(count=2000, seed=0) -> Tagged:
    """`count` sentences of people (PER) and places (LOC), whose names are the same: only the words before tell them apart."""
    rng, words, tags, bounds = np.random.default_rng(seed), [], [], [0]

    def say(word, tag="O"):
        words.append(str(word)), tags.append(tag)

    def name(kind):
        first = "B-"
        for word in rng.choice(NAMES, 1 + int(rng.integers(2)), replace=False):
            say(word, first + kind)
            first = "I-"

    def person():
        say(rng.choice(TITLES))
        name("PER")
    for _ in range(count):
        person()
        say(rng.choice(VERBS))
        if rng.integers(2):
            person()
        for _ in range(rng.integers(3)):
            say(rng.choice(PLACES))
            name("LOC")
        if rng.integers(2):
            say(rng.choice(FILLERS))
        say(".")
        bounds.append(len(words))
    return Tagged(words, tags, np.array(bounds), SYNTHETIC)
