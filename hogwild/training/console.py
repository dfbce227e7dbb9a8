"""Standard output and error that may be closed, full, or of an encoding that lacks some characters."""

import codecs
import contextlib
import errno
import io
import os
import shutil
import sys
import textwrap

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
    """Write characters that cannot be encoded as ASCII, and reserve the descriptors of standard streams that are closed."""
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
    """A context that prints to standard output. Raises UserError where it cannot be written, BrokenPipeError where its
    reader has closed it.
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
    """None, or the error of writing standard output, which is then dropped, for the process's end too."""
    try:
        sys.stdout.flush()
    except OSError as error:
        drop(sys.stdout)
        return error
    return None


def drop(stream):
    """Redirect the stream, its buffer included, to /dev/null."""
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


def fitted(text, stream) -> str:
    """The text with its lines broken where the terminal ends, between fields where two blanks part them; as it is where
    `stream` is no terminal: there a line is a record."""
    if not stream.isatty():
        return text
    columns = max(shutil.get_terminal_size().columns, 20)
    return "\n".join(line if len(line) <= columns else _broken(line, columns) for line in text.split("\n"))


def _broken(line, columns) -> str:
    words = line.lstrip()
    indent = " " * (len(line) - len(words))
    if "  " in words:
        words = "  ".join(part.replace(" ", "\0") for part in words.split("  "))
    return textwrap.fill(words, columns, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False,
                         break_long_words=False).replace("\0", " ")


def out(*lines):
    """Print lines on standard output, fitted to a terminal."""
    for line in lines:
        print(fitted(line, sys.stdout))


def note(line):
    """Print a line on stderr; errors of that are ignored."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(fitted(shown(line, sys.stderr), sys.stderr), file=sys.stderr, flush=True)
