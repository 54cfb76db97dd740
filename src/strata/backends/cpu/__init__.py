"""The native backend: Programs lowered to nodes, weights packed or streamed."""
