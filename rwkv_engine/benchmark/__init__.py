"""How fast is a strategy here, beside what memory allows and beside other programs?

Every engine runs in a process of its own, and every round measures each of them once, so a machine that slows down
slows all of them. `worker` is what runs there, `bench` what asks; `record` has the raw seconds, `summary` what they
say.
"""
