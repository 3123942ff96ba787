"""The classes of the `rwkv` package (0.8) for RWKV-4 and RWKV-7. Programs need only a change of their imports.

Modules have the same names: `from rwkv.utils import PIPELINE` becomes `from rwkv_engine.compat.utils import PIPELINE`.
"""

from rwkv_engine.compat.model import RWKV
from rwkv_engine.compat.utils import PIPELINE, PIPELINE_ARGS

__all__ = ["PIPELINE", "PIPELINE_ARGS", "RWKV"]
