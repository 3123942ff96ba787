"""Runs programs written for the `rwkv` package (0.8) and RWKV-4: only the package's name changes in their imports.

Modules are named as there: `from rwkv.utils import PIPELINE` becomes `from rwkv_engine.compat.utils import PIPELINE`.
"""

from rwkv_engine.compat.model import RWKV
from rwkv_engine.compat.utils import PIPELINE, PIPELINE_ARGS

__all__ = ["PIPELINE", "PIPELINE_ARGS", "RWKV"]
