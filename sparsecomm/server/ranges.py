"""Which server has which elements: consistent ranges of the key space, which is all tensors laid end to end.

A key is an element's place in that space. Elements are divided in blocks of 64 of one tensor, these in segments, and
segments among the servers; the neighbours that one server has are one piece.
"""

from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError

BLOCK = 64  # elements of a tensor that no two servers divide
SEGMENTS = 1024  # fewer where there are fewer blocks; more where there are many servers
A_SERVER = 64  # segments a server, at least, where there are as many blocks


def owners(segments, servers) -> np.ndarray:
    """int64[segments]: the server of each. One server more than K takes segments // (K + 1) of them, and nothing else moves.

    The new server takes the last ones of each earlier server, which all are left with as many, give or take one.
    """
    owner = np.zeros(segments, np.int64)
    for new in range(1, servers):
        left = segments // (new + 1) + (np.arange(new) < segments % (new + 1))
        for server in range(new):
            owner[np.flatnonzero(owner == server)[left[server]:]] = new
    return owner


class Piece(NamedTuple):
    """A range of one tensor on one server."""

    tensor: str
    start: int  # in the tensor
    stop: int
    at: int  # of `start`, in the server's shard


class Layout:
    """The ranges of `servers` servers. sizes: elements by tensor, in the order that all ranks have.

    `pieces[k]` are server k's, in the order of its shard, `parts[k]` the slice of its shard that each tensor has, where it
    has any. Raises UserError where there are more servers than blocks.
    """

    def __init__(self, sizes, servers):
        self.sizes, self.servers = dict(sizes), servers
        self.starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist()))
        self.n = sum(sizes.values())
        if self.n >= 2**32:
            raise UserError(f"a parameter server has room for fewer than 2^32 parameters, got {self.n:,}")
        cuts = np.concatenate([np.arange(0, n, BLOCK) + self.starts[name] for name, n in sizes.items() if n] or [[]])
        if servers > len(cuts):
            raise UserError(f"needed at least one block of {BLOCK} parameters for each server, got {servers} servers for "
                            f"{len(cuts)} blocks; name fewer servers")
        segments = min(max(SEGMENTS, A_SERVER * servers), len(cuts))
        firsts = cuts[np.arange(segments) * len(cuts) // segments].astype(np.int64)
        owner = owners(segments, servers)
        change = np.flatnonzero(np.diff(owner, prepend=-1))
        self.firsts, self.owner = firsts[change], owner[change]  # of each range: its first key, its server
        ends = np.append(self.firsts[1:], self.n)
        self.offsets = np.zeros(len(change), np.int64)  # of each range, where its first key is in the shard
        self.counts = [0] * servers  # elements of each shard
        for i, (first, end, k) in enumerate(zip(self.firsts.tolist(), ends.tolist(), self.owner.tolist())):
            self.offsets[i] = self.counts[k]
            self.counts[k] += end - first
        self.pieces = [list(self._pieces(ends, k)) for k in range(servers)]
        self.parts = [_parts(pieces) for pieces in self.pieces]

    def _pieces(self, ends, server):
        for i in np.flatnonzero(self.owner == server).tolist():
            first, end, at = int(self.firsts[i]), int(ends[i]), int(self.offsets[i])
            for name, start in self.starts.items():
                a, b = max(first, start), min(end, start + self.sizes[name])
                if a < b:
                    yield Piece(name, a - start, b - start, at + a - first)

    def split(self, keys) -> list[tuple]:
        """For each server: (its places in `keys`, the keys in its shard as uint32[m]); keys: ascending, below n."""
        keys = keys.astype(np.int64, copy=False)
        where = np.searchsorted(self.firsts, keys, side="right") - 1
        server, local = self.owner[where], (keys - self.firsts[where] + self.offsets[where]).astype(np.uint32)
        places = [np.flatnonzero(server == k) for k in range(self.servers)]
        return [(at, local[at]) for at in places]

    def keys(self, server, local) -> np.ndarray:
        """The keys (int64[m]) of elements `local` of a shard: the inverse of `split`."""
        mine = np.flatnonzero(self.owner == server)
        where = mine[np.searchsorted(self.offsets[mine], local, side="right") - 1]
        return local.astype(np.int64) - self.offsets[where] + self.firsts[where]

    def cut(self, values, server) -> np.ndarray:
        """[n of the shard]: what a server has of the values of all keys; a copy."""
        return np.concatenate([values[first:first + stop - start] for first, start, stop in self._spans(server)])

    def paste(self, values, server, shard):
        """Write the values of a server's shard into those of all keys: the inverse of `cut`."""
        for first, start, stop in self._spans(server):
            values[first:first + stop - start] = shard[start:stop]

    def _spans(self, server):
        """(first key, start and stop in the shard) of each piece."""
        return [(self.starts[name] + start, at, at + stop - start) for name, start, stop, at in self.pieces[server]]


def _parts(pieces) -> dict[str, slice]:
    """The slice of a shard that each tensor has: ranges ascend, and so the pieces of one tensor are neighbours."""
    parts = {}
    for name, start, stop, at in pieces:
        parts[name] = slice(parts[name].start if name in parts else at, at + stop - start)
    return parts
