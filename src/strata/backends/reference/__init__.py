"""The oracle: every Op as one obvious numpy function in float32. Slow, permanent, never clever."""

from strata.backends.reference.backend import ReferenceBackend, ReferenceSegment
from strata.backends.reference.state import ReferenceState

__all__ = ["ReferenceBackend", "ReferenceSegment", "ReferenceState"]
