"""The fields of an RWKV-4's state, for tests that compare states."""

FIELDS = ("att_shift", "ffn_shift", "wkv_num", "wkv_den", "wkv_max")


def tensors(state):
    """Every tensor of a state."""
    return [*state.fields.values(), state.position]
