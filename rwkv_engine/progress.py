"""How long work reports how far it is."""

from __future__ import annotations

from collections.abc import Callable

# Called with the number of units done so far and their total; the function that takes it says what a unit is.
Progress = Callable[[int, int], None]
