"""Kernels that do in one pass over memory what torch does in several."""
