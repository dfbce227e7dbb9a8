"""Model files: safetensors with a header of our own and a checksum over all of it.

The file's metadata holds one text: the SHA-256, a blank, the header as canonical JSON. The digest covers the header
and every tensor's name, dtype, shape and bytes. It is the same in all formats: a damaged file differs from a newer one.
"""

import contextlib
import hashlib
import json
import os
import secrets
import stat
import tempfile

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hogwild.errors import UserError, demand, reason, sound

FORMAT = 1
KEY = "hogwild"


def save(path, tensors: dict[str, np.ndarray], header: dict):
    """Write a model to `path`; after an error an older file there is unchanged, and no other file is left.

    tensors: arrays by name (not copied if contiguous); header: what json can write. Raises UserError.
    """
    text = json.dumps({"format": FORMAT, **header}, sort_keys=True, separators=(",", ":"))
    tensors = {name: np.asarray(x, x.dtype.newbyteorder("<"), order="C") for name, x in tensors.items()}
    metadata = {KEY: f"{_digest(text, tensors)} {text}"}
    _replace(path, lambda new: save_file(tensors, new, metadata))


class Rescue:
    """Saves a trained model at `path` or, where that cannot be written (a full disk), in another folder.

    where: path of the file, None: it could not be saved. `demand` raises UserError unless that is `path`.
    """

    def __init__(self, path, tensors, header, checkpoint=None):
        self.where, self.wrong = None, ""
        for each in (path, *_elsewhere(path)):
            try:
                save(each, tensors, header)
            except UserError as error:
                self.wrong = self.wrong or str(error)
            else:
                self.where = str(each)
                break
        if self.wrong:
            rest = "; the model is not saved" if self.where is None else f"; the model was saved as {self.where} instead"
            self.wrong += rest + (f"; the last checkpoint is {checkpoint}" if checkpoint else "")

    def demand(self):
        if self.wrong:
            raise UserError(self.wrong)


def _elsewhere(path):
    """New names in the folder for temporary files, the home folder and the current one."""
    name, kind = os.path.splitext(os.path.basename(path))
    for folder in (tempfile.gettempdir(), os.path.expanduser("~"), os.getcwd()):
        yield os.path.join(folder, f"{name}-{secrets.token_hex(4)}{kind}")


def load(path, kind="model") -> tuple[dict[str, np.ndarray], dict]:
    """(tensors by name, header) of the model at `path`; kind: what the file must be, a "model" or a "checkpoint".

    Raises UserError for a file that is missing, of another kind, damaged in any bit, or of a newer format.
    """
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or "."
        what = "is not a file" if os.path.exists(path) else "no such file" if os.path.isdir(folder) else (
            f"there is no folder {folder}")
        raise UserError(f"{path}: {what}; give a {kind} written by --{kind}")
    try:
        with safe_open(path, framework="numpy") as file:
            stated = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()} if stated else {}
    except OSError as error:
        raise UserError(f"{path}: cannot read the {kind}: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        raise UserError(f"{path}: is not a {kind}, or is damaged; train again or restore the file") from None
    if not stated:
        raise UserError(f"{path}: was not written by hogwild, or is damaged; give a {kind} written by --{kind}")
    digest, _, text = stated.partition(" ")
    if digest != _digest(text, tensors):
        raise UserError(f"{path}: is damaged (its checksum does not match); train again or restore the file")
    with sound(path, kind, "train again, or restore the file"):
        header = json.loads(text)
        demand(isinstance(header, dict) and type(header.get("format")) is int and header["format"] > 0,
               "its header has no format")
    if header["format"] > FORMAT:
        raise UserError(f"{path}: has format {header['format']}, this version reads up to {FORMAT}; "
                        "update hogwild-sparsecomm")
    found = header.get("kind", "model")
    if found != kind:
        raise UserError(f"{path}: is a {found}, not a {kind}; give a {kind} written by --{kind}")
    return tensors, {name: value for name, value in header.items() if name != "format"}


def write_atomically(path, parts):
    """Write `parts` (bytes) to `path` as `save` writes a model: all of it or nothing. Raises UserError.

    A pipe or a device at `path` is written to.
    """
    def write(new):
        with open(new, "wb") as file:
            for part in parts:
                file.write(part)
    if os.path.exists(path) and not os.path.isfile(path):
        with user_errors(path):
            write(path)
    else:
        _replace(path, write)


def check_writable(path):
    """Raise UserError now, before hours of training, if a file could not be written at `path` later."""
    with user_errors(path):
        demand_regular(path)
        new = _beside(path)
        try:
            open(new, "xb").close()
        finally:
            _remove(new)


def demand_regular(path):
    """Raise OSError where something is at `path` that is no regular file: to replace it would destroy a device."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(0, "a folder, pipe or device is there")


def _digest(text, tensors) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name, x in sorted(tensors.items()):
        digest.update(f"\0{name}\0{x.dtype.name}\0{x.shape}\0".encode())
        digest.update(x)
    return digest.hexdigest()


def _beside(path):
    """A new name in the folder of the file that `path` leads to, through symbolic links."""
    return os.path.join(os.path.dirname(os.path.realpath(path)), f".hogwild-{secrets.token_hex(8)}.tmp")


def _replace(path, write):
    """Call `write(new)` for a new file beside `path`, then put it in the place of `path`, durably."""
    new = _beside(path)
    with user_errors(path):
        demand_regular(path)
        try:
            with open(new, "xb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            write(new)
            os.chmod(new, mode)  # safetensors makes files that only their owner may read
            sync(new)
            os.replace(new, os.path.realpath(path))
        except BaseException:
            _remove(new)
            raise
        sync(os.path.dirname(new))


def sync(path):
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


@contextlib.contextmanager
def user_errors(path):
    """A context that raises errors of the file system as UserError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        cause = reason(error, path)
        remedy = "make it" if cause.startswith("there is no folder") else "free space there"
        raise UserError(f"{path}: cannot be written: {cause}; {remedy} or choose another path") from None
