"""What a server tells of itself: metrics, the live picture, what was expected."""
