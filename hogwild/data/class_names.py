"""Labels from their text, without loss: float64 where that holds the number, else the text."""

import re
from collections import Counter

import numpy as np

MISSING = {"", "?", "na", "n/a", "#n/a", "nan", "null", "<na>"}
WHOLE = re.compile(r"[+-]?[0-9]+")
FLOAT32_END = (2 - 2.0**-24) * 2.0**127  # from here on float32 rounds to infinity
EXACT = 2.0**53  # whole numbers up to here are exact in float64


def numeric(token):
    """float(token); None where it is no decimal number (Python alone would take `1_000`)."""
    try:
        return None if "_" in token else float(token)
    except ValueError:
        return None


def from_text(token: str):
    """A label as float if it is a number that float64 holds, else as str."""
    token = token.strip()
    number = numeric(token)
    if number is None:
        return token
    if EXACT <= abs(number) < np.inf and WHOLE.fullmatch(token) and int(token) != number:
        return str(int(token))
    return number


def number_text(number: float) -> str:
    """A number as a class is called by it: 1 for 1.0, so that `1` and `1.0` in a file are one class."""
    return str(int(number)) if number.is_integer() and abs(number) < 2**64 else repr(number)


def joined(labels: list) -> np.ndarray:
    """float64[n] of labels that are all numbers; else object[n] of their texts."""
    if all(isinstance(label, float) for label in labels):
        return np.array(labels, np.float64)
    return np.array([number_text(label) if isinstance(label, float) else label for label in labels], object)


def count_words(labels: np.ndarray) -> int:
    """How many labels are no numbers."""
    return 0 if labels.dtype.kind == "f" else sum(
        count for label, count in Counter(labels.tolist()).items() if numeric(label) is None)


def from_array(y: np.ndarray) -> np.ndarray:
    """float64[n] of an array of numbers or texts, or object[n] of texts where float64 does not hold one of them."""
    if y.dtype.kind in "SUO":
        return joined([from_text(label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label))
                       for label in y.tolist()])
    labels = y.astype(np.float64, copy=False)
    if y.dtype.kind in "iu" and y.size and (abs(labels) >= EXACT).any():
        return joined([from_text(str(label)) for label in y.tolist()])
    return labels
