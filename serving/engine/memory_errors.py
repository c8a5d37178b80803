"""Tells errors that mean too little memory: each library has its own. Imports no library."""

import errno
import re

# ONNX Runtime has no exception class for this. The messages are, in order, from its arena (bfc_arena.cc),
# CUDA (2 is cudaErrorMemoryAllocation), cuBLAS and cuDNN, C++, and Python's threads, which need a stack.
_OUT_OF_MEMORY = re.compile(
    r"failed to allocate memory|BFCArena::AllocateRaw|is smaller than requested bytes"
    r"|out of memory|CUDA failure 2:|OUT_OF_MEMORY"
    r"|STATUS_ALLOC_FAILED|ALLOCATION_FAILED|std::bad_alloc|can't start new thread",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of ONNX Runtime, CUDA, cuBLAS, cuDNN, numpy or the system means out of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None
