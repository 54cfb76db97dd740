"""Executors of Programs: reference (numpy, the oracle), cpu (native kernels), null (counts)."""
