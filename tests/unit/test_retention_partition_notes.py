"""Notes about partitions that are not dropped as a whole."""

from watchkeeper.retention.table._partitions import abbreviate, explain_kept


def test_notes_group_partitions_by_reason() -> None:
    """One sentence per reason, with the first three names."""
    kept = {f"p{number}": "other transactions have it locked" for number in range(5)} | {
        "q": "it was changed during the drop"
    }
    assert explain_kept(kept) == [
        "Not dropped: p0, p1, p2 and 2 more, because other transactions have it locked.",
        "Not dropped: q, because it was changed during the drop.",
    ]
    assert explain_kept({}) == []


def test_notes_list_up_to_three_names() -> None:
    """Up to three."""
    assert [abbreviate(names) for names in (["a"], ["a", "b", "c"])] == ["a", "a, b, c"]
