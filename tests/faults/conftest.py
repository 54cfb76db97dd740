"""Paths to what other rooms' tests share."""

from __future__ import annotations
