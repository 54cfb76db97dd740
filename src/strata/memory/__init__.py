"""Memory as measured and, in time, as owned."""

from __future__ import annotations

from strata.memory.peak import peak_bytes

__all__ = ["peak_bytes"]
