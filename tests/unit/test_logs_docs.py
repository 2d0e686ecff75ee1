import ast
import json
import re
from pathlib import Path
from typing import Any

from support.lines import LineList, documented_request_line, parse_line
from watchkeeper.logs._levels import LEVELS
from watchkeeper.logs._logging import Logging
from watchkeeper.logs._render import MAX_LINE
from watchkeeper.logs.output._sink import DROP_REASONS
from watchkeeper.logs.redaction._patterns import DEFAULT_KEYS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/logs.md").read_text()
EXAMPLE, CONFIGURATION = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)


def types_in(source: str) -> set[str]:
    """Return the `type` of every line that this code writes."""
    return {
        keyword.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "type" and isinstance(keyword.value, ast.Constant)
        if any(isinstance(argument, ast.Constant | ast.Name | ast.IfExp) for argument in node.args)
        if isinstance(keyword.value.value, str)
    }


def test_every_type_of_line_is_documented() -> None:
    """docs/logs.md has a table of them."""
    sources = [*ROOT.glob("src/watchkeeper/**/*.py"), *ROOT.glob("apps/backend/src/**/*.py")]
    written = set().union(*(types_in(path.read_text()) for path in sources))
    assert {"job", "retention", "log", "websocket"} <= written
    written.add("request")  # its type is a constant of the renderer
    assert {name for name in written if f"\n| `{name}` |" not in PAGE} == set()


def test_every_level_key_and_reason_is_documented() -> None:
    """The limits are those of the code."""
    for name in (*LEVELS, *DEFAULT_KEYS, *DROP_REASONS):
        assert f"`{name}`" in PAGE
    assert f"{MAX_LINE // 1024} KiB" in PAGE


def test_example_is_a_real_line() -> None:
    """Its keys and their order are those of a real request line."""
    example: dict[str, Any] = parse_line(EXAMPLE)
    sink = LineList()
    logging = Logging(service=example["service"], env=example["env"], sink=sink)
    logging.log_request(documented_request_line(example))
    written = parse_line(sink.lines[0])
    assert list(written) == list(example)
    assert {**written, "time": example["time"]} == example


def test_example_configuration_names_the_handler() -> None:
    """By its real path, for the loggers of the servers that it is tested with."""
    configuration = json.loads(CONFIGURATION)
    assert configuration["handlers"]["lines"]["()"] == "watchkeeper.logs.line_handler"
    assert set(configuration["loggers"]) == {"uvicorn", "_granian"}
