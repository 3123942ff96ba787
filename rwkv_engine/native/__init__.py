"""Builds, finds and loads the compiled kernels."""
