"""Where `hogwild predict` writes: standard output, or a file of which there is all or nothing."""

import sys

from hogwild.errors import UserError
from hogwild.training import model_files


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
