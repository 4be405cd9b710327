"""Puts the whole test run into a sandbox, and turns skips of kernel tests into failures in CI.

Run by root, pytest itself moves into private namespaces before the first test, so that no test can
see the machine's interfaces, and nothing outlives the run. Without root the unit tests run as they
are, and the tests of bpf/ and netns/ fail with the reason.

Each worker of a run in parallel has a sandbox of its own within the first one, and shares with the
others only the compiled programs: each is compiled once a run.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import sandbox
from tests.support.lab import Lab

_KERNEL_TESTS = tuple(Path(__file__).parent / folder for folder in ("bpf", "netns"))
_PROBLEM = pytest.StashKey[str]()
_COMPILED = "/var/lib/lb-xdp-compiled"  # in the sandbox, and in the workers' own within it


def pytest_configure(config: pytest.Config) -> None:
    """Enter the sandbox while this process has one thread, before any test module is imported."""
    # How long an example takes says how busy the machine is.
    settings.register_profile("any machine", deadline=None)
    settings.load_profile("any machine")
    if not os.access(config.rootpath, os.W_OK):
        # A user in root's checkout: hypothesis cannot keep its examples there, and would warn.
        settings.register_profile("read-only", database=None, deadline=None)
        settings.load_profile("read-only")
    try:
        sandbox.enter()
    except sandbox.SandboxError as problem:
        config.stash[_PROBLEM] = str(problem)
    else:
        Path(os.environ.setdefault("LB_XDP_COMPILE_CACHE", _COMPILED)).mkdir(exist_ok=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what the long runs of single tests are asked for by; docs/development.md has them."""
    parser.addoption("--configurations", default="50", help="how many of test_many_configs.py")

    parser.addoption("--faults-table", help="a file that what each fault cost is appended to")


@pytest.fixture(scope="session")
def faults_table(request: pytest.FixtureRequest) -> Path | None:
    """Provide the file for the table of faults, if one was asked for."""
    name = request.config.getoption("--faults-table")
    return Path(name) if name else None


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Provide an empty lab that is taken down after the test."""
    with Lab() as built:
        yield built


def pytest_report_header(config: pytest.Config) -> str:
    """Say where the tests run."""
    problem = config.stash.get(_PROBLEM, None)
    return f"sandbox: none, {problem}" if problem else "sandbox: private namespaces"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a kernel test that has no sandbox: without one it would touch the machine."""
    problem = item.config.stash.get(_PROBLEM, None)
    if problem and _needs_kernel(item.path):
        pytest.fail(problem, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, count a skipped kernel test as failed: the machine there has to have the feature."""
    report = yield
    if _must_not_skip(report, item.path):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI counts as failed: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Do the same for a module that skips itself as a whole."""
    report = yield
    if _must_not_skip(report, collector.path):
        report.outcome = "failed"
        report.longrepr = f"module skipped, which CI counts as failed: {_reason(report)}"
    return report


def _needs_kernel(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in _KERNEL_TESTS)


def _must_not_skip(report: pytest.TestReport | pytest.CollectReport, path: Path) -> bool:
    in_ci = os.environ.get("CI", "").lower() in {"1", "true"}
    return in_ci and report.skipped and not hasattr(report, "wasxfail") and _needs_kernel(path)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
