"""Which metrics a PromQL expression reads, for tests that compare names with what is exposed."""

import re
from typing import Final

_NAME_MATCHER: Final = re.compile(r'__name__=~"([^"]*)"')
# Quoted text, braces, brackets, comments, and the label lists of aggregations and joins.
_NO_METRICS: Final = re.compile(
    r"""
    "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*'
    | \#[^\n]* | \{[^}]*\} | \[[^]]*\]
    | \b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)
    """,
    re.VERBOSE,
)
_WORD: Final = re.compile(r"(?<![\w.:])[a-zA-Z_:][\w:]*(?!\w*\s*\()")
_KEYWORDS: Final = frozenset(("and", "or", "unless", "offset", "bool", "by", "without", "on", "ignoring"))


def metric_names(expression: str) -> set[str]:
    """Return the metrics that a valid expression reads."""
    named = {name for group in _NAME_MATCHER.findall(expression) for name in group.split("|")}
    # Empty the quotes first: a brace in a label's value does not close the selector.
    unquoted = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    return named | (set(_WORD.findall(_NO_METRICS.sub(" ", unquoted))) - _KEYWORDS)
