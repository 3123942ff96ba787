"""How fast strategies are on this machine, compared with its memory bandwidth and with other programs.

Each engine runs in its own process, and every round measures each of them once, so that a machine that slows down slows
all of them. `worker` is the code of those processes, `bench` is their parent; `report` has the raw seconds and the
numbers computed from them.
"""
