"""The alert rules under promtool: they are valid, and pass their unit tests."""

import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from support.prometheus import MONITORING, run_tool

UNIT_TESTS = sorted((MONITORING / "tests").glob("*_test.yml"))
ORIGINAL = Path(__file__).parent / "original_rules"


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[Path, Future[tuple[int, str]]]]:
    """Run all unit tests of the rules, one per processor at a time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {
            path: pool.submit(run_tool, "promtool", "test", "rules", path.name, folder=path.parent)
            for path in UNIT_TESTS
        }


def test_rules_are_valid() -> None:
    """Promtool finds no errors and no lint."""
    code, said = run_tool("promtool", "check", "rules", "--lint-fatal", "alerts.yml", folder=MONITORING)
    assert code == 0, said
    assert re.search(r"SUCCESS: \d+ rules found", said)


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.name)
def test_rules_pass_their_unit_tests(path: Path, outcomes: dict[Path, Future[tuple[int, str]]]) -> None:
    """Each file of unit tests beside the rules passes."""
    code, said = outcomes[path].result()
    assert code == 0, said
    assert "SUCCESS" in said


def test_original_rules_fail_as_described() -> None:
    """The faults of the rules that ours replace are measured."""
    code, said = run_tool("promtool", "test", "rules", "original_test.yml", folder=ORIGINAL)
    assert code == 0, said


def test_changed_rule_fails_its_test(tmp_path: Path) -> None:
    """A slightly raised threshold is found, so promtool's exit code can be trusted."""
    rules = (MONITORING / "alerts.yml").read_text(encoding="utf-8")
    changed = rules.replace("tool:tool_calls:increase5m > 0.05", "tool:tool_calls:increase5m > 0.06")
    assert changed != rules
    (tmp_path / "alerts.yml").write_text(changed, encoding="utf-8")
    (tmp_path / "tests").mkdir()
    tests = (MONITORING / "tests/tools_test.yml").read_text(encoding="utf-8")
    (tmp_path / "tests/tools_test.yml").write_text(tests, encoding="utf-8")
    code, said = run_tool("promtool", "test", "rules", "tools_test.yml", folder=tmp_path / "tests")
    assert code == 1
    assert "FAILED" in said
