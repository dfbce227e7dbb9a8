"""Labels as they stand in the file: numbers, or text, which a Dataset keeps as codes into its names."""

import numpy as np

from hogwild.data.class_names import from_array, from_text, number_text, numeric


def named(label) -> str:
    """A class, text or a number, as text: 1 for 1.0."""
    return label if isinstance(label, str) else number_text(float(label))


def shown(classes, most=5) -> str:
    """The first of some classes, for a message."""
    return ", ".join(map(named, classes[:most])) + ", …" * (len(classes) > most)


def canonical(text) -> str:
    """One spelling for a label: "+1", "01" and "1.0" are 1, whatever else is text stays as it is."""
    return named(from_text(text))


def sorting(name):
    """The key by which names are sorted: numbers by their size, then text by its letters."""
    try:
        return 0, int(name), name  # exact beyond 2^53, too
    except ValueError:
        number = numeric(name)
        return (1, 0, name) if number is None or np.isnan(number) else (0, number, name)


class Coder:
    """Codes of labels that come in parts, some of which are text (object or str arrays): float64 for each part.

    The codes of text count from 0 as the names are met; `finished` gives the final ones, when all parts are known.
    """

    def __init__(self):
        self.codes, self.parts = {}, []  # of each part: rows, whether it holds codes

    def __call__(self, labels) -> np.ndarray:
        labels = np.asarray(labels)
        labels = labels if labels.dtype.kind == "O" else from_array(labels)
        is_text = labels.dtype.kind == "O"
        self.parts.append((labels.size, is_text))
        return self._coded(labels) if is_text else labels

    def _coded(self, labels):
        values = labels.tolist()
        names = {value: canonical(value) if isinstance(value, str) else named(value) for value in dict.fromkeys(values)}
        code = {value: self.codes.setdefault(name, len(self.codes)) for value, name in names.items()}
        return np.array([code[value] for value in values], np.float64)

    def finished(self, labels) -> tuple[str, ...] | None:
        """The names, ascending, of which `labels` (float64[n], all parts one after the other) now holds the numbers.

        None where no part was text: then labels stays as it is.
        """
        if not any(is_text for _, is_text in self.parts):
            return None
        start = 0
        for size, is_text in self.parts:
            part = labels[start:start + size]
            if not is_text:
                part[:] = self._coded(part)
            start += size
        names = sorted(self.codes, key=sorting)
        place = np.empty(len(names), np.float64)
        place[[self.codes[name] for name in names]] = np.arange(len(names))
        start = 0
        for size, _ in self.parts:
            labels[start:start + size] = place[labels[start:start + size].astype(np.int64)]
            start += size
        return tuple(names)
