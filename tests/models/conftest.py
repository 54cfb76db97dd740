"""Tiny models: `tools` holds their maker, so that a person can make them too."""

from __future__ import annotations
