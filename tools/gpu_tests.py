"""A pytest plugin that writes each outcome as a line of JSON the moment it is known: a run that is killed loses none.

The lines go to the file that $OCTAVO_GPU_LINES names: {"planned": [names]}, {"started": name}, and
{"name", "outcome", "seconds", "why"} with outcome `passed`, `failed` or `not run`. Under pytest-xdist the workers and
their controller write the same lines; who reads them keeps the last of each name.
"""

from __future__ import annotations

import re
from typing import Any

from .gpu_lines import write

_MISSING = re.compile(r"(?:ModuleNotFoundError|ImportError): (.*)")


def pytest_collectreport(report: Any) -> None:
    """A file that cannot be imported for want of a package did not run; one that is broken otherwise failed."""
    if report.failed:
        missing = _MISSING.search(report.longreprtext)
        write(name=report.nodeid, outcome="not run" if missing else "failed", why=_why(report))
    elif report.skipped:
        write(name=report.nodeid, outcome="not run", why=_why(report))


def pytest_collection_finish(session: Any) -> None:
    write(planned=[item.nodeid for item in session.items])


def pytest_runtest_logstart(nodeid: str) -> None:
    write(started=nodeid)


def pytest_runtest_logreport(report: Any) -> None:
    """Of set-up, call and tear-down, whatever went wrong; of a test that passed, its call."""
    outcome = {"passed": "passed", "failed": "failed", "skipped": "not run"}[report.outcome]
    if report.when == "call" or outcome != "passed":
        write(name=report.nodeid, outcome=outcome, seconds=round(report.duration, 3), why=_why(report))


def _why(report: Any) -> str:
    if report.passed:
        return ""
    if isinstance(report.longrepr, tuple):  # skipped: file, line, reason
        return str(report.longrepr[2])
    errors = [line[1:].strip() for line in report.longreprtext.splitlines() if re.match(r"E\s", line)]
    return (errors or report.longreprtext.splitlines() or ["no reason given"])[0]
