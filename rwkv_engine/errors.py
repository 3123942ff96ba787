"""The errors that this package raises. All of them derive from `RwkvError`.

A message is one line: what failed, what was found, what was expected, and what to do.
"""


class RwkvError(Exception):
    """Base class: every error that is caused by input, files or the environment is one of these."""


class CheckpointError(RwkvError):
    """A model cannot be read: it is missing, damaged, inconsistent, or not an RWKV-4 checkpoint."""


class OutOfMemoryError(RwkvError):
    """There is not enough memory to open, load or convert a model."""


class StrategyError(RwkvError):
    """A strategy cannot be parsed, does not fit the model, or cannot run on this machine."""


class TokenizerError(RwkvError):
    """A tokenizer is missing, cannot be read, or does not fit the model."""


class ExtensionError(RwkvError):
    """Compiled kernels were requested but could not be built or loaded."""


class RequestError(RwkvError):
    """An argument is invalid: token ids, sampling options, or a state of another model."""


class BenchmarkError(RwkvError):
    """`bench` could not measure an engine, because it failed or its process ended."""


class HubError(RwkvError):
    """Nothing was uploaded: the hub refused it or could not be reached, or there is nothing to upload."""
