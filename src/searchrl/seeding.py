"""Seeds as pure functions of what they are for.

Every random draw in the package comes from ``derive_seed(run seed, step, question id, ...)``, so
order, batching and restarts change nothing.
"""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order."""
    # The separator and the type tag keep (1, "23") and ("12", 3) apart.
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1
