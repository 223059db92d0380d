"""The selection counts of an incremental run, as sentences."""

from collections.abc import Mapping

from pipeline.text import count_of

# By `selection.Reason`.
_DONE = {
    "new": "new",
    "changed": "changed",
    "retried": "not ok before",
    "other_model": "of another model or other settings",
}
_LEFT = {"unchanged": "unchanged", "not_ok": "not ok and unchanged", "not_selected": "not selected"}


def selection_lines(selection: Mapping[str, int]) -> list[str]:
    """Return sentences on how many images are to do and why, and how many are left out; none for a full run.

    Args:
        selection: `Manifest.selection`.
    """
    if not selection:
        return []
    done = sum(selection.get(reason, 0) for reason in _DONE)
    of_them = f"{done:,} of them to be done ({_counted(selection, _DONE)})" if done else "none of them to be done"
    left = _counted(selection, _LEFT)
    lines = [f"{count_of(selection['listed'], 'image')} listed, {of_them}{f'; {left}' if left else ''}."]
    if deleted := selection.get("deleted", 0):
        lines.append(f"{count_of(deleted, 'image')} not listed any more; see the table deletions.")
    return lines


def _counted(selection: Mapping[str, int], words: Mapping[str, str]) -> str:
    return ", ".join(f"{selection[reason]:,} {word}" for reason, word in words.items() if selection.get(reason))
