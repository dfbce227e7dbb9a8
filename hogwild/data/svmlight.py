"""Reader of svmlight text: `label [qid:N] index:value … [# comment]`."""

import re

import numpy as np

from hogwild.data import class_names, files, foreign_formats
from hogwild.data.class_names import FLOAT32_END
from hogwild.data.files import excerpt, place
from hogwild.data.schema import Chunk
from hogwild.errors import UserError
from hogwild.kernels.data import svmlight

PAIR = "needed index:value"
MISTAKES = {  # status: what was needed, what to do
    svmlight.NOT_A_NUMBER: ("needed a number such as -1.5e3", "correct it, or see that the file is svmlight text"),
    svmlight.OVER_RANGE: ("needed a number within float32's range, ±3.4e38", "scale the data"),
    svmlight.NO_VALUE: ("needed a value after the colon", "add it or drop the entry"),
    svmlight.NO_COLON: (PAIR, "add the colon and the value, and keep one label a line"),
    svmlight.BAD_INDEX: (f"{PAIR} with a whole number as index", "replace names by numbers"),
    svmlight.INDEX_ZERO: ("needed indices from 1", "pass --zero-based (zero_based=True) if they count from 0"),
    svmlight.NEGATIVE_INDEX: ("needed an index that is not negative", "correct it"),
    svmlight.INDEX_OVER_RANGE: ("needed an index below 2^32", "hash or renumber the features"),
    svmlight.DUPLICATE: ("needed each index once in a row", "add up its values"),
    svmlight.UNSORTED: ("needed indices in increasing order", "sort each row"),
    svmlight.BAD_QID: ("needed qid: and a whole number", "correct it or drop it"),
}
NOT_FINITE = ("needed a finite number", "replace or drop it")
MISSING = ("needed a label, this one is missing", "fill it or drop the row")
BAD_LABEL = ("needed a label: a number, or a class name that begins with a letter",
             "correct it, or see that the file is svmlight text with one label a line")
CLASS = re.compile(r"[^\W\d][^:,;|<>{}\[\]()\"=]*")  # a class name


def read(source, pieces):
    """Chunks of the file's pieces; indices count from 1, or from 0 if the schema says so."""
    base, entries, texts = 0 if source.schema.zero_based else 1, 0, 0
    for first, block in files.line_blocks(source.path, pieces):
        status, position, labels, indptr, indices, values, odd = svmlight.parse(block, base)
        mistake = None if status == svmlight.OK else (position, *MISTAKES[status])
        if len(odd):
            labels, wrong = _from_text(block, labels, odd)
            mistake = wrong if wrong and (mistake is None or wrong[0] < position) else mistake
        if mistake:
            raise UserError(_message(source.path, first, block, *mistake))
        entries, texts = entries + len(indices), texts + (labels.dtype.kind == "O")
        yield Chunk(labels, np.diff(indptr), indices, values)
    if texts and not entries:
        raise UserError(f"{place(source.path)}: holds words alone, no feature as svmlight text has them; {PAIR}")


def _from_text(block, labels, odd):
    """(labels, (position, what was needed, what to do) of the first that is none, or None)."""
    found, seen = labels.tolist(), {}
    for row, start, end in odd.tolist():
        token = block[start:end]
        if token in seen:
            found[row:row + 1] = [seen[token]]
            continue
        label, wrong = class_names.from_text(token.decode("utf-8", "replace")), None
        if isinstance(label, float):
            wrong = NOT_FINITE if not np.isfinite(label) else \
                MISTAKES[svmlight.OVER_RANGE] if abs(label) >= FLOAT32_END else None
        elif not label.lstrip("+-").isdigit():
            wrong = MISSING if label.lower() in class_names.MISSING else BAD_LABEL if not CLASS.fullmatch(label) else None
        if wrong:
            return labels, (start, *wrong)
        found[row:row + 1] = [seen.setdefault(token, label)]
    return class_names.joined(found), None


def _message(path, first, block, position, needed, remedy):
    if first == 1:
        files.refuse_foreign(path, block[:files.HEAD], foreign_formats.TEXT + foreign_formats.PAIRS)
    token = re.split(rb"[ \t\n#]", block[position:], maxsplit=1)[0]
    if needed == MISTAKES[svmlight.NOT_A_NUMBER][0] and _not_finite(token):
        needed, remedy = NOT_FINITE
    line = first + block.count(b"\n", 0, position)
    shapeless = needed.startswith(PAIR) or needed in (MISTAKES[svmlight.NOT_A_NUMBER][0], BAD_LABEL[0])
    taken = " (the file is read as svmlight text)" if line == 1 and shapeless else ""
    return f"{place(path, line)}: got {excerpt(token)}, {needed}{taken}; {remedy}"


def _not_finite(token):
    number = class_names.numeric(token.split(b":")[-1].decode("latin-1"))
    return number is not None and not np.isfinite(number)


def lines(path, pieces):
    """Yield (line number, line) of the rows of the text."""
    for first, block in files.line_blocks(path, pieces):
        for line, content in enumerate(block.split(b"\n"), first):
            if content.split(b"#")[0].strip(b" \t\r"):
                yield line, content
