"""Records of runs, the JSON lines of --record, read again."""

import json
from pathlib import Path

from hogwild.errors import UserError, reason

AROUND = "cell", "cell_end"  # events that an experiment writes before and after those of a run


def events_of(path) -> list[dict]:
    """The events of a record, at least one. Raises UserError that names the file and the line."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot read the record: {reason(error, path)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a record of a run: it is no text") from None
    events = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not a line of JSON: {getattr(error, 'msg', error)}") from None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise UserError(f"{path}:{number}: not an event of a run: an object with 'event' is needed")
        events.append(event)
    if not events:
        raise UserError(f"{path}: the record is empty")
    return events


def runs(path, label) -> list[tuple[str, list[dict]]]:
    """(name, events) of each run in a file. Raises UserError, with the file and the line, for what is no record."""
    each = []
    for number, event in enumerate(events_of(path), 1):
        if event["event"] == "start":
            each.append([event])
        elif event["event"] in AROUND:
            continue
        elif not each:
            raise UserError(f"{path}:{number}: event '{event['event']}' before any 'start': not the record of a run")
        else:
            each[-1].append(event)
    if not each:
        raise UserError(f"{path}: no run in it: there is no event 'start'")
    for events in each:
        if not any(event["event"] in ("epoch", "end") for event in events):
            raise UserError(f"{path}: the run has neither an epoch nor an end: was it stopped at once?")
    return [(label if len(each) == 1 else f"{label}#{k}", events) for k, events in enumerate(each, 1)]
