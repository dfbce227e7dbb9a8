"""Print pytest's closing line for several runs together, from their JUnit files: `total.py SECONDS FILE …`."""

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter

KINDS = ("failed", "passed", "skipped", "xfailed", "error")


def outcome(case) -> str:
    """One of KINDS, of a testcase element."""
    children = {child.tag: child for child in case}
    if "error" in children:
        return "error"
    if "failure" in children:
        return "failed"
    if "skipped" in children:
        return "xfailed" if children["skipped"].get("type") == "pytest.xfail" else "skipped"
    return "passed"


def closing_line(suites, seconds) -> str:
    """As pytest's: the numbers of tests by how they ended, and seconds of wall time."""
    counts = Counter(outcome(case) for suite in suites for case in suite.iter("testcase"))
    clock = f" ({int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02})"
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]) + f" in {seconds:.2f}s{clock}"


if __name__ == "__main__":
    print(closing_line([ElementTree.parse(file).getroot() for file in sys.argv[2:]], float(sys.argv[1])))
