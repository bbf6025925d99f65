"""How servers' certificates are checked: the platform's way, its authorities loaded once."""

from __future__ import annotations

import ssl
from functools import cache


@cache
def tls_context() -> ssl.SSLContext:
    """The context of every client here; making one reads hundreds of certificates."""
    import httpx2

    return httpx2.create_ssl_context()
