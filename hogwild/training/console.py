"""Standard output and error as they may be: closed, full, or of an encoding that lacks what is to be said."""

import codecs
import contextlib
import errno
import io
import os
import sys

from hogwild.errors import UserError

NAMES = {"Ω": "Omega", "Δ": "Delta", "ρ": "rho", "…": "...", "×": "x", "µ": "u", "α": "alpha", "β": "beta", "²": "^2",
         "±": "+-", "–": "-", "—": "-", "’": "'"}


def _plain(error):
    text = error.object[error.start:error.end]
    return "".join(NAMES.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end


codecs.register_error("hogwild", _plain)


class _Closed(io.TextIOBase):
    """In place of a standard output that was closed before the process began."""

    written = dropped = False

    def write(self, text):
        self.written = True
        self.flush()
        return len(text)

    def flush(self):
        if self.written and not self.dropped:
            raise OSError(errno.EBADF, "it is closed")


def prepare():
    """Have what cannot be encoded written as ASCII, and no file take the number of a standard stream that is closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number that is free
    sys.stdout = _Closed() if sys.stdout is None else sys.stdout
    sys.stderr = open(os.devnull, "w") if sys.stderr is None else sys.stderr
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="hogwild")


@contextlib.contextmanager
def output():
    """What is printed inside comes to standard output. Raises a UserError where it does not, or BrokenPipeError, once its
    reader has gone.
    """
    prepare()
    try:
        yield
    except (OSError, SystemExit) as error:
        wrong = _flushed()
        if isinstance(error, OSError) and error.filename is None and error.errno != errno.ENOMEM:
            wrong = wrong or error
        if wrong is None:
            raise
    except BaseException:
        _flushed()
        raise
    else:
        wrong = _flushed()
    if isinstance(wrong, BrokenPipeError):
        raise wrong
    if wrong is not None:
        raise UserError(f"standard output cannot be written: {wrong.strerror or wrong}; free space there, or choose another "
                        "place") from None


def _flushed():
    """None, or why standard output cannot be written; nothing more is written there then, not even at the process's end."""
    try:
        sys.stdout.flush()
    except OSError as error:
        drop(sys.stdout)
        return error
    return None


def drop(stream):
    """Have whatever is written to the stream from now on, and what waits in its buffer, go nowhere."""
    if isinstance(stream, _Closed):
        stream.dropped = True
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def shown(line, stream) -> str:
    """The line in characters that the stream can encode."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return line.encode(encoding, "hogwild").decode(encoding)


def note(line):
    """A line on stderr, where that is there."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(shown(line, sys.stderr), file=sys.stderr, flush=True)
