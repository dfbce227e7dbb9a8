"""What tests of the readers of tables share."""

import numpy as np
import pytest

from hogwild.data import formats
from hogwild.errors import UserError


def table(path, **options):
    """(dense float32[n, features], labels list, Source) of a file."""
    source = formats.source(path, **options)
    chunks = list(source.chunks())
    lengths, indices, values = (np.concatenate([chunk[i] for chunk in chunks]) for i in (1, 2, 3))
    X = np.zeros((len(lengths), max(chunks[-1].width, int(indices.max(initial=0)) + 1)), np.float32)
    X[np.repeat(np.arange(len(X)), lengths), indices] = values
    return X, [label for chunk in chunks for label in chunk.labels.tolist()], source


def refused(path, **options):
    """The message of the UserError, one line, without the file's name in front."""
    with pytest.raises(UserError) as caught:
        list(formats.source(path, **options).chunks())
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(path))
    return message.removeprefix(str(path))
