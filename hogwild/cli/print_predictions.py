"""What `hogwild predict` prints: a line a row, in numbers that read back to the same float64."""

import csv
import io
import sys

import numpy as np

from hogwild.data.labels import named
from hogwild.errors import UserError
from hogwild.families import predictions
from hogwild.training import model_files

ROWS = 1 << 14  # printed together


def lines(fitted, z, probabilities=False):
    """Yield text of whole lines for scores z of a LinearModel.

    A regression's value; else the class, and its probability or, of a loss without, its score (of two classes the score of
    the second, positive where that is predicted). probabilities: a header of the classes, then their probabilities.
    """
    if fitted.classes is None:
        for start in range(0, len(z), ROWS):
            yield "".join(f"{value!r}\n" for value in z[start:start + ROWS].tolist())
        return
    names = [_quoted(named(label)) for label in fitted.classes.tolist()]
    if probabilities:
        yield " ".join(names) + "\n"
    for start in range(0, len(z), ROWS):
        part = z[start:start + ROWS]
        likely, best = predictions.probabilities(part, fitted.loss), predictions.decide(part)
        if probabilities:
            yield "".join(" ".join(map(repr, row)) + "\n" for row in likely.tolist())
            continue
        shown = part if likely is None and part.ndim == 1 else np.take_along_axis(
            part if likely is None else likely, best[:, None], 1)[:, 0]
        yield "".join(f"{names[k]} {value!r}\n" for k, value in zip(best.tolist(), shown.tolist()))


def _quoted(name) -> str:
    """A class's name as one word of a line, as in a CSV file whose separator is a blank."""
    out = io.StringIO()
    csv.writer(out, delimiter=" ", lineterminator="").writerow([name])
    return out.getvalue()


def _demand_encodable(text, encoding):
    """Raise UserError where a class's name would be printed as another one."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError as error:
        raise UserError(f"standard output, whose encoding is {encoding}, has no {error.object[error.start]!r}, which a "
                        "class's name holds; pass --out FILE, or set PYTHONIOENCODING=utf-8") from None


def write(path, parts):
    """Text to standard output or, where path is given, to that file: all of it or nothing."""
    if path is None:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        for part in parts:
            _demand_encodable(part, encoding)
            sys.stdout.write(part)
        sys.stdout.flush()
    else:
        model_files.write_atomically(path, (part.encode() for part in parts))
