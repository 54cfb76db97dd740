"""From the name of a model to its files: built-in models, the hub, its cache on this machine."""
