"""Models into smaller types: which type each tensor gets, and the file that comes of it."""
