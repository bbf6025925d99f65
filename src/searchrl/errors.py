"""The errors that cross a room's boundary, and the exit code each one ends a command with.

SearchRLError
├── InputError           what the user gave is wrong; the message names the file, the field, the fix
│   └── IntegrityError   a stored file is not what was written (checksum, form, version)
├── InfrastructureError  a retriever, generator or judge failed; never turned into a reward
└── UnstableError        training went wrong in a way that more steps do not mend
"""

from __future__ import annotations


class SearchRLError(Exception):
    """Root of all errors this package raises on purpose; its text is one line for the user."""

    exit_code = 1


class InputError(SearchRLError):
    """Something the user gave cannot be used. Commands print it as one line and exit 2."""

    exit_code = 2


class IntegrityError(InputError):
    """A file on disk differs from what was written there: truncated, altered or of another form."""


class InfrastructureError(SearchRLError):
    """A service the agent depends on failed after its retries.

    An episode that meets one carries it in ``Episode.error`` and leaves the loss and the group
    baseline; it is counted, and never scored.
    """

    exit_code = 75


class UnstableError(SearchRLError):
    """A guard stopped training; the last checkpoint stands."""

    exit_code = 3
