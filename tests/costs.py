"""Tells the seconds of a core that each file of tests takes: `python -m pytest -p tests.costs`.

They count the processes that tests start and wait for, and say more than times where a machine is
shared. What the imports of all tests take, once in each process of xdist, is not among them.
"""

import os
from collections import Counter

import pytest

SHOWN = 60

spent = 0.0  # when the report before was made
by_file: Counter[str] = Counter()


def seconds() -> float:
    """Return the seconds of a core of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def pytest_collection_finish() -> None:
    """Begin to count behind the imports."""
    global spent
    spent = seconds()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """Write what a phase has taken into its report, which goes to the process that shows them."""
    global spent
    outcome = yield
    now = seconds()
    outcome.get_result().core_seconds, spent = now - spent, now


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add a phase to its file."""
    by_file[report.nodeid.partition("::")[0]] += report.core_seconds


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the files that take most."""
    terminalreporter.section("seconds of a core")
    for file, taken in by_file.most_common(SHOWN):
        terminalreporter.line(f"{taken:8.1f}  {file}")
    terminalreporter.line(f"{by_file.total():8.1f}  in all")
