"""A worker's side: pulls values of the tensors, pushes gradients, and never blocks in MPI."""

import time
from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError
from hogwild.kernels.compression.index_codes import VALUE_CODES
from hogwild.kernels.compression.momentum_correction import count_bad
from sparsecomm.exchange.protocol import Payload
from sparsecomm.replica.arrays import Host
from sparsecomm.server import requests as r
from sparsecomm.server.link import LONGEST, PATIENCE, Link, stderr
from sparsecomm.server.shard import KEY_LISTS

WINDOW = 8  # pushes that no server has acknowledged yet, at most


class Pull:
    """A pull on its way. keys: int64[m] of all keys, ascending, or None: everything; clock: pushes before its use; whole: the
    values themselves, also where servers send changes."""

    def __init__(self, keys, clock, whole=False):
        self.keys, self.clock, self.whole = keys, clock, whole
        self.asked = {}  # by server: (places in `keys`, the keys in its shard), or None: its whole shard
        self.replies = {}  # by server: (request, message)
        self.dropped = set()  # servers that a pause has kept from answering

    @property
    def done(self) -> bool:
        """Whether all servers have answered."""
        return len(self.replies) == len(self.asked)


class Sent(NamedTuple):
    """A request without a reply yet."""

    request: r.Request
    pull: Pull | None
    since: float


class Client:
    """One of the first ranks of `comm`, a worker of `servers` servers.

        client = sparsecomm.Client(tensors, servers=1)
        client.wait(client.pull())
        client.push({"w": gradient})
        client.close()

    Made on all workers while all servers make their `Server`. tensors: flat float32 arrays by name; those of worker 0 are the
    initial values, and pulls write into them. value_code: of pushes. say: called with each line for the user. Raises
    UserError on all ranks where they do not agree.
    """

    def __init__(self, tensors, *, servers=1, comm=None, value_code="float32", say=stderr):
        if value_code not in VALUE_CODES:
            raise UserError(f"value_code must be one of {', '.join(VALUE_CODES)}, got {value_code!r}")
        self.tensors, self.value_code, self.say = tensors, value_code, say
        self.link = Link({name: len(w) for name, w in tensors.items()}, servers, comm)
        self.layout, self.post, self.rank = self.link.layout, self.link.post, self.link.rank
        Host.validate(tensors, self.rank)
        self.clock = 0  # pushes so far
        self.slowest = [0] * servers  # of each server's latest reply: the least clock
        self.versions = [0] * servers  # of the values that the next gradient is computed at
        self.sequences, self.known = [0] * servers, [OrderedDict() for _ in range(servers)]
        self.sent, self.named = {}, set()  # requests by (server, sequence); those that a line has named
        if self.rank == 0:
            values = np.concatenate(list(tensors.values()))
            for k, n in enumerate(self.layout.counts):
                self._send(k, r.START, body=r.pack_values(Payload(None, self.layout.cut(values, k)), n, "float32"))
            self._until(lambda: not self.sent)
        self.link.group.Barrier()  # no push before the initial values

    def pull(self, keys=None, ahead=0, whole=False) -> Pull:
        """Ask for all values, or those at `keys`: by tensor, uint32[m], ascending and without repetition; None: the tensor.

        Returns at once, see `wait`. ahead: pushes that this worker will make before it uses the values. whole: the exact
        values of everything, also where servers send only the largest changes.
        """
        pull = Pull(None if keys is None else self._joined(keys), self.clock + ahead, whole)
        if keys is None:
            pull.asked = dict.fromkeys(range(self.layout.servers))
        else:
            pull.asked = {k: part for k, part in enumerate(self.layout.split(pull.keys)) if part[1].size}
        for k in pull.asked:
            self._ask(pull, k)
        return pull

    def prefetch(self, keys=None) -> Pull:
        """A pull for the gradient after the next: this worker makes one push before it uses the values."""
        return self.pull(keys, ahead=1)

    def wait(self, pull, unless=None) -> bool:
        """Write what was asked for into the tensors, when all servers have answered: True. Raises UserError after LONGEST.

        unless: a function; once it is true, what has come so far is written, and the rest may be waited for later: False.
        """
        for k in sorted(pull.dropped):
            self._ask(pull, k)
        pull.dropped.clear()
        self._until(lambda: pull.done or (unless is not None and unless()))
        for k, (reply, message) in pull.replies.items():
            if message is not None:
                self._write(pull, k, reply.kind == r.CHANGES, message)
                self.versions[k], pull.replies[k] = reply.version, (reply, None)
        return pull.done

    def push(self, gradients):
        """Send a gradient; returns when it is encoded: it is acknowledged later.

        gradients: by tensor, float32[n], or (keys, values) with keys as for `pull`; a tensor that is missing has none. Every
        worker pushes once a step: this is its clock. Where an element is not finite, the servers skip the step. Raises
        UserError for other lengths.
        """
        indices, values = self._payload(gradients)
        bad = count_bad(values)
        if bad:
            values[~np.isfinite(values)] = 0
        self._push(Payload(indices, values, self.value_code, "auto"), bad, lists=True)

    def send(self, step, indices, values, index_code, value_code, bad=0) -> int:
        """`push` of a payload of all keys, laid end to end, as `PushExchange` does; the bytes sent.

        values, finite, become what was rounded away. step: not used.
        """
        before = self.post.sent
        self._push(Payload(indices, values, value_code, index_code), bad)
        return self.post.sent - before

    def _push(self, payload, bad, lists=False):
        """lists: whether the indices are keys that may have been pulled, and then be named by their checksum."""
        self._until(lambda: sum(s.request.kind == r.PUSH for s in self.sent.values()) < WINDOW * self.layout.servers)
        indices, values = payload[:2]
        split = [(None, None)] * self.layout.servers if indices is None else self.layout.split(indices)
        for k, (at, local) in enumerate(split):
            n, part, named = self.layout.counts[k], self.layout.cut(values, k) if at is None else values[at], 0
            if local is not None and lists and (checksum := r.checksum_of(local)) in self.known[k]:
                local, n, named = None, local.size, checksum
            body = r.pack_values(payload._replace(indices=local, values=part), n, payload.value_code, bad)
            if at is None:
                self.layout.paste(values, k, part)
            else:
                values[at] = part
            self._send(k, r.PUSH, body=body, clock=self.clock, version=self.versions[k], keys=named)
        self.clock += 1

    def flush(self):
        """Wait until all servers have acknowledged all pushes. Raises UserError after LONGEST."""
        self._until(lambda: all(s.request.kind == r.PULL for s in self.sent.values()))

    def pause(self):
        """Flush, and have the servers leave `serve` when all workers have paused. What is pulled is asked for again later."""
        self._end(r.PAUSE)
        for k, sent in ((k, s) for (k, _), s in self.sent.items()):
            sent.pull.dropped.add(k)
        self.sent.clear()

    def close(self):
        """Flush, and end: nobody waits for this worker any more."""
        self._end(r.BYE)
        self.post.finish()
        self.link.free()

    def _end(self, kind):
        self.flush()
        for k in range(self.layout.servers):
            self._send(k, kind)
        self._until(lambda: all(s.request.kind == r.PULL for s in self.sent.values()))

    def _send(self, k, kind, pull=None, body=r.NOTHING, **fields):
        self.sequences[k] += 1
        request = r.Request(kind, self.rank, self.link.run, self.sequences[k], **fields)
        self.sent[k, request.sequence] = Sent(request, pull, time.monotonic())
        self.post.send(self.link.workers + k, r.packed(request, body))
        self._look()

    def _ask(self, pull, k, again=False):
        """Ask server k for its part of a pull: for a list of keys that it has, by the checksum of the list alone."""
        if pull.asked[k] is None:
            return self._send(k, r.PULL, pull, clock=pull.clock, count=self.layout.counts[k] if pull.whole else 0)
        keys, known = pull.asked[k][1], self.known[k]
        checksum = r.checksum_of(keys)
        body = r.NOTHING if checksum in known and not again else r.pack_keys(keys, self.layout.counts[k])
        known[checksum] = None
        known.move_to_end(checksum)
        while len(known) > KEY_LISTS:  # as the server does
            known.popitem(last=False)
        return self._send(k, r.PULL, pull, body, clock=pull.clock, keys=checksum, count=keys.size)

    def _look(self):
        """Take in all replies that are there."""
        for source, raw in self.post.receive():
            k = source - self.link.workers
            reply, body = r.unpacked(raw, self.link.run, source)
            sent = self.sent.pop((k, reply.sequence), None)
            if sent is None:
                continue  # to a repeated request
            self.slowest[k] = reply.clock
            if reply.kind == r.UNKNOWN:
                self._ask(sent.pull, k, again=True)
            elif reply.kind in (r.VALUES, r.CHANGES):
                asked = sent.pull.asked[k]
                n = self.layout.counts[k] if asked is None else asked[1].size
                step = sent.request.clock if reply.kind == r.CHANGES else 0
                sent.pull.replies[k] = reply, r.unpack_body(body, n, source, step=step)

    def _until(self, done):
        """Look until `done()`; a line after PATIENCE, and a UserError after LONGEST, name the server."""
        while not done():
            self._look()
            self.post.nap()
            if self.sent and self.post.looks % 256 == 255:
                (k, sequence), first = min(self.sent.items(), key=lambda each: each[1].since)
                self._name(k, sequence, first, time.monotonic() - first.since)

    def _name(self, k, sequence, first, waited):
        line = (f"rank {self.link.names[self.rank]} has waited {waited:.0f} s for server rank "
                f"{self.link.names[self.link.workers + k]} ({r.NAMES[first.request.kind]} for clock {first.request.clock}, "
                f"the slowest worker was at {self.slowest[k]})")
        if waited > LONGEST:
            raise UserError(f"{line}; start again from the last checkpoint")
        if waited > PATIENCE and (k, sequence) not in self.named:
            self.named.add((k, sequence))
            self.say(line)

    def _joined(self, keys) -> np.ndarray:
        """int64[m]: the keys of all tensors. Raises UserError for what is no list of keys."""
        self._known(keys)
        parts = []
        for name, start in self.layout.starts.items():
            if name in keys:
                n, part = self.layout.sizes[name], keys[name]
                part = np.arange(n) if part is None else np.asarray(part)
                if part.ndim != 1 or not np.issubdtype(part.dtype, np.integer):
                    raise UserError(f"rank {self.rank}: keys of {name} must be a list of whole numbers, got {part.dtype}"
                                    f"{list(part.shape)}")
                part = part.astype(np.int64)
                if part.size and not (0 <= part[0] and part[-1] < n and (np.diff(part) > 0).all()):
                    odd = next((int(x) for x in part if not 0 <= x < n), None)
                    got = f"key {odd}" if odd is not None else "keys that do not ascend"
                    raise UserError(f"rank {self.rank}: keys of {name} must ascend from 0 to {n - 1} at most, got {got}")
                parts.append(part + start)
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _known(self, names):
        for name in names:
            if name not in self.layout.sizes:
                raise UserError(f"rank {self.rank}: there is no tensor {name}; needed one of {', '.join(self.layout.sizes)}")

    def _payload(self, gradients):
        """(int64[m] keys, or None where all gradients are given whole; float32[m]) of gradients by tensor."""
        self._known(gradients)
        parts = {}
        for name, g in gradients.items():
            keys, values = g if isinstance(g, tuple) else (None, g)
            n, values = self.layout.sizes[name] if keys is None else len(keys), np.asarray(values, np.float32)
            if values.shape != (n,):
                raise UserError(f"rank {self.rank}: a push of {name} must have {n} values, got {list(values.shape)}")
            parts[name] = keys, values
        values = [parts[name][1] for name in self.layout.sizes if name in parts]
        values = np.concatenate(values) if values else np.zeros(0, np.float32)
        if len(parts) == len(self.layout.sizes) and all(keys is None for keys, _ in parts.values()):
            return None, values
        return self._joined({name: keys for name, (keys, _) in parts.items()}), values

    def _write(self, pull, k, changes, message):
        """Write server k's answer into the tensors."""
        if message.indices is None and pull.keys is None:
            for name, start, stop, at in self.layout.pieces[k]:
                part, values = self.tensors[name][start:stop], message.values[at:at + stop - start]
                np.add(part, values, out=part) if changes else np.copyto(part, values)
            return
        places = slice(None) if message.indices is None else message.indices
        keys = self.layout.keys(k, message.indices) if pull.keys is None else pull.keys[pull.asked[k][0][places]]
        ends = np.searchsorted(keys, list(self.layout.starts.values()) + [self.layout.n])
        for (name, start), first, end in zip(self.layout.starts.items(), ends, ends[1:]):
            if first < end:
                w, at = self.tensors[name], keys[first:end] - start
                w[at] = w[at] + message.values[first:end] if changes else message.values[first:end]
