"""Files opened once and read as bytes: plain or compressed, pipes and standard input too; how messages name them."""

import bz2
import gzip
import io
import lzma
import os
import zlib

from hogwild.data import foreign_formats
from hogwild.errors import UserError, reason

CHUNK_BYTES = 4 << 20  # text parsed at once
HEAD = 1 << 16  # bytes from which a file's format is told
QUOTED_BYTES = 64 << 20  # a cell may be so long
EXCERPT = 40
PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
STDIN = "-"


def excerpt(got) -> str:
    """At most 40 characters of what the file holds, escaped."""
    got = got.decode("utf-8", "replace") if isinstance(got, bytes) else str(got)
    shown = repr(got[:EXCERPT])
    return shown if len(shown) <= EXCERPT and len(got) <= EXCERPT else shown[:EXCERPT - 1] + "…"


def place(path, line=None) -> str:
    """`FILE` or `FILE, line N`, on one line whatever the name holds."""
    name = "standard input" if os.fspath(path) == STDIN else os.fspath(path)
    name = name if name.isprintable() else repr(name)
    return name if line is None else f"{name}, line {line}"


def opened(path):
    """The file, open for reading bytes; - is standard input. UserError if it is missing, a folder, empty or unreadable."""
    try:
        file = open(0, "rb", closefd=False) if os.fspath(path) == STDIN else open(path, "rb")
        file = io.BufferedReader(file, HEAD)  # of a pipe, too, peek shows so many bytes, unless it ends before
        if file.peek(1):
            return file
        file.close()
    except IsADirectoryError:
        raise UserError(f"{place(path)}: is a folder; needed a file, name one inside it") from None
    except (OSError, ValueError) as error:
        why = reason(error, os.fspath(path))
        raise UserError(f"{place(path)}: cannot be read ({why}); check the name and its permissions") from None
    raise UserError(f"{place(path)}: is empty (0 bytes); needed at least one row, check how the file was made")


def demand_file(path, readers):
    """Raise UserError for standard input, a pipe or a device, which can be read only once. readers: who else reads it."""
    if os.fspath(path) == STDIN or os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise UserError(f"{place(path)}: can be read once only, needed a file, as {readers}; write it to one")


def unpacked(path, file):
    """Yield the decompressed bytes of an open file, in pieces, without a byte order mark; UserError for other archives."""
    head = file.peek(8)[:8]
    unpack = next((unpack for magic, unpack in PACKED.items() if head.startswith(magic)), None)
    stream = unpack(file) if unpack else file
    try:
        piece = stream.read(max(CHUNK_BYTES, HEAD))
        refuse_foreign(path, piece[:HEAD])
        piece = piece.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, which Windows programs put in front of UTF-8
        while piece:
            for start in range(0, len(piece), CHUNK_BYTES):
                yield piece[start:start + CHUNK_BYTES]
            piece = stream.read(CHUNK_BYTES)
    except READ_ERRORS as error:
        if unpack is None:
            raise UserError(f"{place(path)}: reading failed ({error}); check the disk it lies on") from None
        state = "truncated" if isinstance(error, EOFError) else "corrupt"
        raise UserError(f"{place(path)}: {state} compressed file ({error}); copy it again") from None


def listed(path) -> list[str]:
    """The lines of a text file, blank ones left out, blanks around them dropped. Raises UserError."""
    with opened(path) as file:
        lines = b"".join(unpacked(path, file)).decode("utf-8", "replace").splitlines()
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UserError(f"{place(path)}: holds no line; needed one name or number a line")
    return found


def refuse_foreign(path, head, patterns=()):
    """Raise the UserError that names the format of a file that begins with `head`, if it is none of ours."""
    found = foreign_formats.name(head, patterns)
    if found:
        what, remedy = found
        raise UserError(f"{place(path)}: is {what}, got {excerpt(head[:EXCERPT])}; {remedy}")


def line_blocks(path, pieces, quoted=False):
    """Yield (number of the first line, whole lines as bytes) of the pieces of a file; only the last line may lack its end.

    quoted: a line does not end inside double quotes.
    """
    first, parts, inside, old = 1, [], False, None
    for piece in pieces:
        if old is None:
            old = b"\n" not in piece and b"\r" in piece[:-1]  # lines that end with a carriage return alone, as once on a Mac
        piece = piece.replace(b"\r", b"\n") if old else piece
        cut, inside = _last_line_end(piece, inside) if quoted else (piece.rfind(b"\n") + 1, False)
        if cut:
            block = b"".join((*parts, piece[:cut]))
            yield first, block
            first, parts = first + block.count(b"\n"), []
        if cut < len(piece):
            parts.append(piece[cut:])
        if inside and sum(map(len, parts)) > QUOTED_BYTES:
            raise UserError(f"{place(path, first)}: a cell in quotes has no end within {QUOTED_BYTES >> 20} MB; close it")
    if parts:
        yield first, b"".join(parts)


def _last_line_end(piece, inside):
    """(what is behind the last line end outside quotes, whether the piece ends inside quotes)."""
    end, inside = len(piece), inside ^ (piece.count(b'"') & 1)
    odd = inside
    while (line_end := piece.rfind(b"\n", 0, end)) >= 0:
        odd ^= piece.count(b'"', line_end, end) & 1
        if not odd:
            break
        end = line_end
    return line_end + 1, bool(inside)
