"""numba's compiled functions, kept on disk under a name that says what they were made of."""

import logging
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from llvmlite import binding
from numba import njit, types

log = logging.getLogger(__name__)

WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
"""Whether the processor has 32 registers of 16 float32 numbers; else 16 registers of 8, or of 4."""


def compiled(
    kernel: Callable[..., None], name: str, modules: Sequence[ModuleType], *arguments: Any
) -> Callable[..., None]:
    """Compile a kernel that returns nothing, or read it from disk.

    The file is named after the processor and the sources: machines that share a folder never run one another's code,
    and numba itself only looks at the age of the file that a kernel stands in.

    Args:
        kernel: Not run by Python. It holds the interpreter's lock for no longer than its call takes to start.
        name: Of its variant.
        modules: Whose sources decide the machine code, beside the kernel's own file.
        arguments: numba's types.
    """
    features = f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}"
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in modules)
    kernel.__qualname__ = f"{name}_{zlib.crc32(features.encode() + sources):08x}"
    try:
        return njit(types.void(*arguments), nogil=True, cache=True)(kernel)
    except (RuntimeError, OSError) as error:
        log.warning("Every process compiles its kernels again, about a second each: set NUMBA_CACHE_DIR. %s", error)
        return njit(types.void(*arguments), nogil=True)(kernel)
