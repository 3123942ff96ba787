"""Compiled kernels: building, finding and opening them."""
