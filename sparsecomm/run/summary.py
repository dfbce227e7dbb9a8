"""The table at the end of a run: where the time of the ranks went, and what they sent."""

import numpy as np

from sparsecomm.wire import nic_counters

PHASES = ("compute", "select", "encode", "exchange", "decode", "apply", "wait", "check", "average")
COUNTS = ("kept", "sent", "received")
WIDE = 10  # of a column of seconds


def collected(run) -> dict:
    """What the ranks of `run` did in all, on rank 0; elsewhere nothing. Called by all ranks."""
    wire = nic_counters.sent() - run.wired
    mine = np.concatenate([run.totals() - run.begun, [run.sync.residual_norm(), nic_counters.host(), wire]])
    table = np.empty((run.comm.size, mine.size)) if run.comm.rank == 0 else None
    run.comm.Gather(mine, table)
    if table is None:
        return {}
    phases, counts = table[:, :len(PHASES)], dict(zip(COUNTS, table[:, len(PHASES):].T.tolist()))
    steps, residual = int(table[0, -4]), float(np.sqrt(np.square(table[:, -3]).sum()))
    hosts = dict(table[:, -2:].tolist())  # ranks of one host have the same counters
    size, each = run.comm.size, max(steps, 1)
    dense = 8 * run.n * (size - 1) / size
    sent = float(np.mean(counts["sent"])) / each
    return {"ranks": size, "exchange": run.exchange, "buckets": len(run.sync.buckets), "steps": steps, "parameters": run.n,
            "phases": {name: phases[:, k].tolist() for k, name in enumerate(PHASES)},  # seconds of each rank
            "sent": counts["sent"], "received": counts["received"],  # bytes of each rank
            "bytes_per_step": sent, "dense_bytes_per_step": dense, "compression": dense / sent if sent else None,
            "kept": float(np.sum(counts["kept"])) / (size * each * run.n), "residual": residual,
            "slowest": int(phases[:, 0].argmax()),
            "wire": list(hosts.values()) if len(hosts) > 1 else None}  # bytes that each host's interfaces sent


def shown(table) -> str:
    """The table as people read it."""
    lines = [f"{'phase':<9}{'mean s':>{WIDE}}{'longest s':>{WIDE}}  rank"]
    for name, seconds in table["phases"].items():
        if max(seconds) >= 0.0005:
            lines.append(f"{name:<9}{np.mean(seconds):>{WIDE}.3f}{max(seconds):>{WIDE}.3f}  {int(np.argmax(seconds))}")
    steps, kept, slowest = table["steps"], table["kept"], table["slowest"]
    lines.append(f"kept {kept:.3%} of the gradient; norm of what was not sent (residual): {table['residual']:.4g}; "
                 f"slowest rank: {slowest} ({table['phases']['compute'][slowest]:.3f} s of computing)")
    if table["ranks"] == 1:
        return "\n".join([*lines, f"one rank, {steps:,} steps: nothing was sent"])
    sent, received = (as_bytes(np.mean(table[name])) for name in ("sent", "received"))
    ratio = f"{table['compression']:,.1f} times as much" if table["compression"] else "nothing was sent"
    each, dense = (as_bytes(table[name]) for name in ("bytes_per_step", "dense_bytes_per_step"))
    lines.append(f"each rank sent {sent} and received {received} in {steps:,} steps: {each} a step; dense float32, "
                 f"2n(P-1)/P x 4 bytes, would be {dense}: {ratio}")
    if table["wire"]:
        wire = as_bytes(np.mean(table["wire"]) / max(steps, 1))
        lines.append(f"the network interfaces of {len(table['wire'])} hosts counted {wire} a step and host, headers and "
                     "other traffic included")
    return "\n".join(lines)


def as_bytes(number) -> str:
    """Bytes in the unit in which they are short."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:,.0f} B" if unit == "B" else f"{number:,.2f} {unit}"
        number /= 1000
