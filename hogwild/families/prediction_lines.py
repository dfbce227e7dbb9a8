"""Predictions of a linear model as text: a line a row, in numbers that read back to the same float64."""

import csv
import io

import numpy as np

from hogwild.data.labels import named
from hogwild.families import predictions

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
