"""Seeds as pure functions of what they are for.

Every random draw in the package comes from ``derive_seed(run seed, step, question id, ...)``, so
order, batching and restarts change nothing. Code of others (a reward function of the user's, a
layer with dropout) draws from the libraries' global streams, which are set anew for every step.
"""

from __future__ import annotations

import hashlib
import random


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order."""
    # The separator, doubled where a part holds it, and the type tag keep (1, "23"), ("12", 3) and
    # ("12\x1fint:3",) apart. Ids from JSON may hold half a surrogate pair.
    tagged = (f"{type(part).__name__}:{part}".replace("\x1f", "\x1f\x1f") for part in parts)
    text = "\x1f".join(tagged).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def seed_global_streams(seed: int) -> None:
    """Set the streams of ``random``, NumPy and PyTorch, on every device."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
