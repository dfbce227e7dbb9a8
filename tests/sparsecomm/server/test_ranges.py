"""Which server has which keys: a partition, evenly, of which one server more moves no more than its share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hogwild.errors import UserError
from sparsecomm.server.ranges import Layout, owners


@given(st.integers(1, 3000), st.integers(1, 40))
def test_one_server_more_takes_its_share_and_moves_nothing_else(segments, servers):
    before, after = owners(segments, servers), owners(segments, servers + 1)
    moved = before != after
    assert (after[moved] == servers).all() and moved.sum() == segments // (servers + 1)
    counts = np.bincount(after, minlength=servers + 1)
    assert counts.max() - counts.min() <= 1


@settings(max_examples=50)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=5), st.integers(1, 6), st.randoms())
def test_every_key_is_on_one_server(sizes, servers, random):
    sizes = {f"t{i}": n for i, n in enumerate(sizes)}
    blocks = sum(-(-n // 64) for n in sizes.values())
    if servers > blocks:
        with pytest.raises(UserError, match=f"{servers} servers for {blocks} blocks"):
            Layout(sizes, servers)
        return
    layout, values = Layout(sizes, servers), np.random.default_rng(0).random(sum(sizes.values())).astype(np.float32)
    shards, again = [layout.cut(values, k) for k in range(servers)], np.full_like(values, np.nan)
    assert sorted(np.concatenate(shards)) == sorted(values) and [x.size for x in shards] == layout.counts
    for k, shard in enumerate(shards):
        layout.paste(again, k, shard)
        for name, part in layout.parts[k].items():  # a tensor's part holds its own values, in their order
            start = layout.starts[name]
            assert np.array_equal(values[start:][np.isin(values[start:start + sizes[name]], shard).nonzero()[0]], shard[part])
    assert np.array_equal(again, values)
    keys = np.array(sorted(random.sample(range(values.size), random.randint(0, values.size))), np.int64)
    for k, (at, local) in enumerate(layout.split(keys)):
        assert np.array_equal(shards[k][local], values[keys[at]]) and np.array_equal(layout.keys(k, local), keys[at])
