"""The types of callbacks that report the progress of long computations."""

from __future__ import annotations

from collections.abc import Callable

# Called with the number of units done so far and their total; the function that takes it says what a unit is.
Progress = Callable[[int, int], None]

# The same for several stages. The first argument is the stage's name, such as "loading"; the total is 0 if unknown.
StageProgress = Callable[[str, int, int], None]
