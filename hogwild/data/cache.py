"""The cache of parsed files: memory maps, verified before they are published and again before they are trusted."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from hogwild.data import features, files, labels
from hogwild.errors import UserError
from hogwild.kernels.compiler.cache_folders import own_folder, remove_stale, user_cache

FORMAT_VERSION = 4  # of the cache's files and of what the readers make of a text; part of the key
ARRAYS = {"indptr": np.int64, "indices": np.uint32, "values": np.float32, "labels": np.float64}
FILES = {**ARRAYS, "ids": np.uint32}
SETTLED_NS = 2 * 10**9  # a file younger than this may change again within one tick of its modification time
PIECE = 1 << 26  # bytes whose checksum is taken at once: Ctrl-C is seen between two


def parsed(source, cache=True):
    """(arrays by name, what is known of them) of a Source, by way of the cache.

    cache=False: the arrays are maps of temporary files, which vanish with them. Raises UserError and OSError.
    """
    before = source.status() if cache else None
    return _cached(source, before) if before else _parse(source, None)


def _cached(source, before):
    try:
        root = own_folder(user_cache() / "data")
    except OSError as error:
        raise UserError(f"{error}; or pass --no-cache (cache=False)") from None
    content = _content_hash(root, source.path, before)
    key = {"content": content, "version": FORMAT_VERSION, "kind": source.kind, **source.asked}
    folder = root / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    found = _opened(folder)
    if found is not None:
        with contextlib.suppress(OSError):
            os.utime(folder)
        return found
    remove_stale(root)

    def verify():
        with contextlib.suppress(OSError):  # it is gone
            # Within a tick of its times a file may change unseen: only its content tells.
            if _identity(os.stat(source.path)) == _identity(before) and (
                    _settled(before) or _hash(source.path) == content):
                return
        raise UserError(f"{source.name}: changed while it was read; wait until it is complete, then try again")
    return _parse(source, folder, verify)


def _identity(status) -> str:
    """What changes when a file does: its change time cannot be set, as that of modification can."""
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _settled(status):
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NS


def _hash(path):
    with files.opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_hash(root, path, status):
    """SHA-256 of the file; not computed again while its path, inode, size and times stay the same."""
    key = os.fsencode(os.path.realpath(path)) + _identity(status).encode()
    seen = root / f"{hashlib.sha256(key).hexdigest()}.seen"
    with contextlib.suppress(OSError, ValueError):
        known = seen.read_text()
        if len(known) == 64:
            os.utime(seen)
            return known
    digest = _hash(path)
    if _settled(status) and _identity(os.stat(path)) == _identity(status):
        with contextlib.suppress(OSError):  # on a full disk the hash is computed again next time
            _write_text(seen, digest)
    return digest


def _write_text(path, text):
    """All of it or nothing."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as fresh:
        fresh.write(text)
    os.replace(fresh.name, path)


def _parse(source, folder, verify=lambda: None):
    """Parse a Source into a temporary folder and map it; then `verify`, and rename the folder to `folder`, or delete it if
    that is None."""
    where = Path(tempfile.gettempdir()) if folder is None else folder.parent
    remedy = "set TMPDIR" if folder is None else "set XDG_CACHE_HOME to another disk, or pass --no-cache"
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix="hogwild-", dir=where))
        _write(source, temporary)
        found = _opened(temporary, trusted=True)
        verify()
        if folder is not None:  # the maps stay valid when their folder is renamed or deleted
            _publish(temporary, folder)
        return found
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{where}: the parsed data cannot be written there ({reason}); free some space, or {remedy}"
                        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary, folder):
    try:
        temporary.rename(folder)
    except OSError:  # there is one: of a process that was faster, or damaged
        if _opened(folder) is None:
            with contextlib.suppress(OSError):
                folder.rename(temporary / "damaged")
                temporary.rename(folder)
                shutil.rmtree(folder / "damaged", ignore_errors=True)


def _write(source, folder):
    """Append every chunk to the raw files of the arrays, then describe them in meta.json, which is a text's checksum, a blank
    and the text."""
    coder, nnz, width = labels.Coder(), 0, 0
    with contextlib.ExitStack() as stack:
        out = {name: stack.enter_context(open(folder / name, "wb")) for name in ARRAYS}
        out["indptr"].write(np.zeros(1, np.int64))
        for chunk in source.chunks():
            ends = nnz + np.cumsum(chunk.lengths, dtype=np.int64)
            nnz = int(ends[-1]) if ends.size else nnz
            width = max(width, chunk.width, int(chunk.indices.max()) + 1 if chunk.indices.size else 0)
            for name, array in (("indptr", ends), ("indices", chunk.indices), ("values", chunk.values),
                                ("labels", coder(np.asarray(chunk.labels)))):
                out[name].write(np.ascontiguousarray(array, ARRAYS[name]))
    names = coder.finished(_map(folder / "labels", np.float64, "r+"))
    ids = features.narrowed(_map(folder / "indices", np.uint32, "r+"), width)
    if ids is not None:
        ids.tofile(folder / "ids")
    present = {name: dtype for name, dtype in FILES.items() if (folder / name).exists()}
    for name in present:  # or a power cut may leave right sizes with wrong content
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    arrays = {name: _map(folder / name, dtype) for name, dtype in present.items()}
    meta = json.dumps({"n_features": width if ids is None else ids.size, "width": width, "names": names,
                       "schema": source.schema.to_json(), "notes": source.notes, "labelled": source.labelled,
                       "bytes": {name: x.nbytes for name, x in arrays.items()}, "crc": _checksums(arrays)})
    (folder / "meta.json").write_text(f"{zlib.crc32(meta.encode())} {meta}")


def _map(path, dtype, mode="r"):
    size = path.stat().st_size // np.dtype(dtype).itemsize
    return np.memmap(path, dtype, mode, shape=(size,)) if size else np.empty(0, dtype)


def _checksums(arrays):
    found = {}
    for name, x in arrays.items():
        raw, found[name] = x.view(np.uint8), 0
        for start in range(0, raw.size, PIECE):
            found[name] = zlib.crc32(raw[start:start + PIECE], found[name])
    return found


def _opened(folder, trusted=False):
    """(arrays, what is known of them) mapped from a folder; None where missing or damaged. trusted: written just now."""
    try:
        check, _, text = (folder / "meta.json").read_text().partition(" ")
        meta = json.loads(text)
        if int(check) != zlib.crc32(text.encode()):
            return None
        arrays = {}
        for name in meta["bytes"]:
            if (folder / name).stat().st_size != meta["bytes"][name]:
                return None
            arrays[name] = _map(folder / name, FILES[name])
        stamp = _stamp(folder, arrays)
        if not trusted and not _has(folder / "verified", stamp) and _checksums(arrays) != meta["crc"]:
            return None
        with contextlib.suppress(OSError):
            if not _has(folder / "verified", stamp):
                (folder / "verified").write_text(stamp)
        return arrays, meta
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stamp(folder, arrays):
    """What changes when a file does, or the machine starts anew: until then, checksums need not be computed again."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    return boot + "\n".join(_identity((folder / name).stat()) for name in sorted(arrays))


def _has(path, text):
    with contextlib.suppress(OSError, ValueError):
        return path.read_text() == text
    return False
