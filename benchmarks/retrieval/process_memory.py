"""What a process holds in memory, told apart by whether a file backs it."""

from __future__ import annotations

from pathlib import Path


def memory(process: int) -> tuple[int, int]:
    """Bytes that no file backs, and those of mapped files, of a process; none once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in lines)
    own, mapped = (int(fields.get(name, "0").split()[0]) for name in ("RssAnon", "RssFile"))
    return own * 1_024, mapped * 1_024
