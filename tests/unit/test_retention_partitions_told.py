"""What is said of partitions that are not dropped as a whole."""

from __future__ import annotations

from watchkeeper.retention.table._partitions import explain, shortened


def test_partitions_are_told_by_their_reason() -> None:
    """One sentence a reason, and of many names the first three."""
    kept = {f"p{number}": "others keep it locked" for number in range(5)} | {"q": "it was changed meanwhile"}
    assert explain(kept) == [
        "Not dropped as a whole: p0, p1, p2 and 2 more, because others keep it locked.",
        "Not dropped as a whole: q, because it was changed meanwhile.",
    ]
    assert explain({}) == []


def test_few_names_are_all_told() -> None:
    """Up to three."""
    assert [shortened(names) for names in (["a"], ["a", "b", "c"])] == ["a", "a, b, c"]
