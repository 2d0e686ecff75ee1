"""Notes about partitions that are not dropped as a whole."""

from __future__ import annotations

from watchkeeper.retention.table._partitions import explain, shortened


def test_notes_group_partitions_by_reason() -> None:
    """One sentence per reason, with the first three names."""
    kept = {f"p{number}": "other transactions have it locked" for number in range(5)} | {
        "q": "it was changed meanwhile"
    }
    assert explain(kept) == [
        "Not dropped as a whole: p0, p1, p2 and 2 more, because other transactions have it locked.",
        "Not dropped as a whole: q, because it was changed meanwhile.",
    ]
    assert explain({}) == []


def test_notes_list_up_to_three_names() -> None:
    """Up to three."""
    assert [shortened(names) for names in (["a"], ["a", "b", "c"])] == ["a", "a, b, c"]
