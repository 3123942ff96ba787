"""How long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

# Called with the number of units done so far and their total; the function that takes it says what a unit is.
Progress = Callable[[int, int], None]

# The same for work of several stages: called with a stage's name first, such as "loading". The total is 0 where it is
# unknown.
StageProgress = Callable[[str, int, int], None]
