"""Stands in until `generate` is merged."""


class Generation:
    """Nothing yet."""
