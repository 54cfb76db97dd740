"""Helpers of the tests, one module a subject."""
