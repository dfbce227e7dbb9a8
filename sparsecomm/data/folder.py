"""Data given as a folder: which of its files is meant."""

from fnmatch import fnmatch
from pathlib import Path

from hogwild.data.files import place
from hogwild.errors import UserError


def pick(folder, what, *patterns, needed=True) -> Path | None:
    """The one file of `folder` whose name, in small letters, is like one of `patterns`; None for none not `needed`.

    what: what the file holds, for the UserError where there are several, or none.
    """
    try:
        names = sorted(path.name for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{place(folder)}: cannot be read ({error.strerror}); check its permissions") from None
    found = [name for name in names if any(fnmatch(name.lower(), pattern) for pattern in patterns)]
    if len(found) > 1 or (needed and not found):
        got = ", ".join(found[:4]) + (", …" if len(found) > 4 else "") or "none"
        raise UserError(f"{place(folder)}: needed one file of {what} ({', '.join(patterns)}), got {got}; name the files "
                        "themselves as DATA and --test")
    return Path(folder) / found[0] if found else None
