"""Strata over HTTP, as clients already speak: OpenAI's, Anthropic's and Ollama's protocols.

Needs the ``server`` extra. The modules here are imported by ``strata serve`` alone.
"""

from __future__ import annotations

from strata.server.settings import Settings

__all__ = ["Settings"]
