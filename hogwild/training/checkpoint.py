"""Checkpoints: tensors and state from which a killed run resumes, in files of hogwild/training/model_files.py.

The newest lies at `path`, the one before it at `path` + ".previous". At every moment, kill -9 and power failure
included, one of the two is whole. No pickle: the tensors are safetensors, the state is JSON in the header.
"""

import hashlib
import json
import math
import os
import shutil
import time
from numbers import Real

import numpy as np

from hogwild.errors import UserError, demand, sound
from hogwild.training import model_files

KIND = "checkpoint"
PREVIOUS = ".previous"
WHOLE = 4 << 20  # bytes: arrays up to this size are hashed whole, larger ones in so many bytes of evenly spaced blocks
BLOCK = 4096  # bytes: one page of a memory map


def save(path, tensors: dict[str, np.ndarray], state: dict):
    """Write a checkpoint to `path`, all or nothing, and durably; the one that was there becomes the previous one.

    tensors: arrays by name, which must not change meanwhile (stop the workers, or give copies). state: of types that JSON
    has, NaN and infinities too; `load` returns numbers exactly, dicts in their order, tuples as lists. Raises UserError;
    the older checkpoint is then unchanged. Not for two runs at once on the same path.
    """
    path, text = os.path.realpath(path), json.dumps(state)  # a text in the header, whose own dicts are sorted
    aside, previous = _aside(path), path + PREVIOUS
    new, old = os.path.join(aside, "new"), os.path.join(aside, "old")
    with model_files.user_errors(path):
        model_files.demand_regular(path)
        model_files.demand_regular(previous)
        shutil.rmtree(aside, ignore_errors=True)  # left by a killed run
        os.mkdir(aside)
        try:
            try:
                model_files.save(new, tensors, {"kind": KIND, "state": text})
            except UserError as error:
                raise UserError(str(error).replace(new, path, 1)) from None
            # The new one is in place before the previous one is removed: the one that it replaces may be damaged.
            if os.path.isfile(path):
                _link(path, old, previous)
            os.replace(new, path)
            model_files.sync(os.path.dirname(path))
            if os.path.exists(old):
                os.replace(old, previous)
                model_files.sync(os.path.dirname(path))
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def load(path, say=print) -> tuple[dict[str, np.ndarray], dict]:
    """(tensors, state) of the newest valid checkpoint: that at `path`, else the previous one.

    say: called with one line that names the file which is missing or damaged, and the one used instead. Raises
    UserError when neither is valid, with what is wrong with each, or that there is none.
    """
    previous, wrong = os.path.realpath(path) + PREVIOUS, []
    for candidate in (path, previous):
        if candidate == previous and not os.path.exists(previous):
            break
        try:
            tensors, header = model_files.load(candidate, KIND)
        except UserError as error:
            wrong.append(str(error))
            continue
        if wrong:
            say(f"warning: {_fact(wrong[0])}; going on from {candidate}")
        with sound(candidate, KIND, "start again with another --checkpoint"):
            state = json.loads(header["state"])
            demand(isinstance(state, dict), "its state")
        return tensors, state
    raise UserError("; ".join([*map(_fact, wrong[:-1]), wrong[-1]]))


def exists(path) -> bool:
    """Whether there is something to resume from at `path`, valid or not."""
    return os.path.exists(path) or os.path.exists(os.path.realpath(path) + PREVIOUS)


class Every:
    """Tells when the next checkpoint is due: `seconds` after the last one was done; None: not before the run ends.

    The time of writing is not counted: on a slow disk, too, the run spends `seconds` between two checkpoints.
    """

    def __init__(self, seconds: float | None = 30.0, clock=time.monotonic):
        number = isinstance(seconds, Real) and not isinstance(seconds, bool) and math.isfinite(seconds) and seconds >= 0
        if seconds is not None and not number:
            raise UserError(f"seconds between checkpoints must be a finite number of at least 0, got {seconds!r}")
        self.seconds, self.clock = seconds, clock
        self.done()

    def due(self, epoch_end=False) -> bool:
        """Whether to save now; epoch_end: now is the end of an epoch."""
        return epoch_end if self.seconds is None else self.clock() - self.last >= self.seconds

    def done(self):
        """A checkpoint has just been written."""
        self.last = self.clock()


class Writer(Every):
    """The `checkpoint` of `hogwild.training.loop.train`: saves to `path` every `seconds`, each state with `constant`.

    A run continues where a checkpoint cannot be written, as on a full disk: the one before stays, `say` is called with a
    warning, and `wrong` is the cause until one is written.
    """

    def __init__(self, path, seconds=30.0, constant=None, clock=time.monotonic, say=print):
        super().__init__(seconds, clock)
        self.path, self.constant, self.say, self.wrong = path, constant or {}, say, None

    def save(self, tensors, state):
        """Write a checkpoint now, or warn that it cannot be written."""
        try:
            save(self.path, tensors, {**self.constant, **state})
            self.wrong = None
        except UserError as error:
            self.wrong = str(error)
            self.say(f"warning: no checkpoint: {self.wrong}; the run goes on")
        self.done()

    def demand(self):
        """Raise a UserError if the last one could not be written."""
        if self.wrong:
            raise UserError(self.wrong)


def fingerprint(arrays: dict, configuration: dict) -> dict:
    """What tells at resume whether data and configuration are the same: {"data": SHA-256, "configuration": …}, for JSON.

    arrays: the data's arrays and numbers by name. Hashed are each one's dtype and shape (so also rows and non-zeros),
    "labels" and small ones whole, of the others 4 MiB of evenly spaced pages: other edits of a large array may be missed.
    configuration: what must not change in a resumed run; leave out what may, such as paths and the number of epochs.
    """
    digest = hashlib.sha256()
    for name, x in sorted(arrays.items()):
        x = np.ascontiguousarray(x)
        digest.update(f"\0{name}\0{x.dtype.str}\0{x.shape}\0".encode())
        raw = x.reshape(-1).view(np.uint8)
        if raw.size <= WHOLE or name == "labels":
            digest.update(raw)
            continue
        for start in np.linspace(0, raw.size - BLOCK, WHOLE // BLOCK).astype(np.int64):
            digest.update(raw[start:start + BLOCK])
    return {"data": digest.hexdigest(), "configuration": json.loads(_canonical(configuration))}


def demand_same(saved: dict, now: dict):
    """Raise a UserError, which names the keys that differ, unless two fingerprints are the same."""
    if not isinstance(saved, dict) or not {"data", "configuration"} <= saved.keys():
        raise UserError("the checkpoint does not say of which data and options it is; start again with another --checkpoint")
    before, after = (dict(_leaves(x["configuration"])) for x in (saved, now))
    differ = [f"{key} {_short(before, key)} (now {_short(after, key)})" for key in sorted(before.keys() | after.keys())
              if not _same(before, after, key)]
    wrong = ["other data"] * (saved["data"] != now["data"]) + (["other options: " + ", ".join(differ)] if differ else [])
    if wrong:
        raise UserError(f"the checkpoint is of a run with {' and '.join(wrong)}; "
                        "resume with the same ones, or start again with another --checkpoint")


def _aside(path):
    """The folder for files in the making: what a killed run left there, the next `save` removes."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.hogwild-tmp")


def _link(path, old, previous):
    try:
        os.link(path, old)
    except OSError:  # a file system without hard links: `path` is missing for a moment, but there is the previous one
        os.replace(path, previous)


def _fact(message):
    """An error message without the advice at its end."""
    return message.rpartition("; ")[0] or message


def _canonical(value) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)


def _plain(value):
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return os.fspath(value)  # or a TypeError: the text of other objects differs from process to process


def _leaves(value, name=""):
    """Yield (dotted name, value) of nested dicts."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, item in value.items():
        yield from _leaves(item, f"{name}.{key}" if name else key)


def _same(a, b, key):
    """Whether both have equal values, 1 and 1.0 and two NaNs being such."""
    return key in a and key in b and (a[key] == b[key] or _canonical(a[key]) == _canonical(b[key]))


def _short(values, key, width=40):
    text = _canonical(values[key]) if key in values else "absent"
    return text if len(text) <= width else text[:width] + "…"
