"""Telling an allocation that failed from every other error."""

import torch

PHRASES = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "std::bad_alloc")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: CUDA's own error, Python's, or the CPU allocator's, which is a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in PHRASES)
