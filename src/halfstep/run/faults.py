"""Faults of the machine in one line each: a disk that is full, read-only, broken or another user's, and no memory.

Libraries report them in their own ways, some only by a message, so an exception and its causes are searched.
"""

import errno
import os
import re
from itertools import takewhile

from halfstep.run.errors import Interrupted, MachineFault, UserError, causes

STORAGE_FAULTS = {
    errno.ENOSPC: ("no space is left on the disk", "free space"),
    errno.EDQUOT: ("the disk quota is used up", "free space, or have the quota raised"),
    errno.EROFS: ("the file system is read-only", "make it writable"),
    errno.EFBIG: ("the file is larger than may be written here", "raise the limit (ulimit -f)"),
    errno.EIO: ("the disk reports an input/output error", "see to the disk"),
    errno.EACCES: ("permission denied", "give this user access to it (ls -l, chown)"),
    errno.EPERM: ("permission denied", "give this user access to it (ls -l, chown)"),
}
"""What each error number means, and the way out."""
REFUSALS = (errno.EACCES, errno.EPERM)
MEMORY_HINT = (
    "raise the stage's num_accumulation_steps or lower its batch_size (halfstep fit-batch --stage STAGE finds what"
    " fits); in prepare lower data.num_workers; else lower data.context_length, model.hidden_size or model.num_blocks"
)
"""Of these the number of accumulation steps, of workers, and the batch size of sampling leave results as they are."""

# As Python, and pyarrow; as Rust prints an error (tokenizers), and its debug form (safetensors).
_NUMBER = re.compile(r"\[[Ee]rrno (\d+)\]|\(os error (\d+)\)|\bOs \{ code: (\d+)")
# The name of a file that is in the text alone, as shutil, pyarrow and safetensors have it.
_NAMED = re.compile(r"(?:\[Errno \d+\][^:'\"]*:? '|^No such file or directory: )([^'\n]+)")
# NumPy drops the number when a write comes up short; SQLite has words of its own.
_WORDS = (
    (re.compile(r"\b\d+ requested and \d+ written\b"), errno.ENOSPC),
    (re.compile(r"\bdatabase or disk is full\b"), errno.ENOSPC),
    (re.compile(r"\battempt to write a readonly database\b"), errno.EROFS),
)
_MEMORY_WORDS = re.compile(r"DefaultCPUAllocator|can't allocate memory|not enough memory", re.IGNORECASE)
_AMOUNT = re.compile(r"[Tt]ried to allocate ([\d.]+ [KMGTP]iB|\d+ bytes)|[Uu]nable to allocate ([\d.]+ [KMGTP]iB)")


def storage_fault(error: BaseException) -> tuple[int, str | None] | None:
    """The fault of a disk behind an exception.

    Returns:
        (error number, one of `STORAGE_FAULTS`; the file's name if the exception has it); None for other exceptions.
    """
    for cause in takewhile(lambda cause: not isinstance(cause, UserError | Interrupted), causes(error)):
        name, number = getattr(cause, "filename", None), _storage_errno(cause)
        # Of a full disk the text may name what was copied, which is not there.
        may_be_refusal = number in REFUSALS or isinstance(cause, FileNotFoundError)
        if name is None and may_be_refusal and (named := _NAMED.search(str(cause))):
            name = named[1]
        # safetensors says of a file that it may not read that it is not there.
        if isinstance(cause, FileNotFoundError) and name and os.path.exists(name) and not os.access(name, os.R_OK):
            number = errno.EACCES
        if number is not None:
            return number, None if name is None else os.fsdecode(name)
    return None


def fault_line(error: BaseException) -> str | None:
    """The line for a fault of the machine; None for any other exception, whose traceback should be seen."""
    if isinstance(error, MachineFault):
        return str(error)
    if lacks_memory(error):
        amount = _AMOUNT.search(str(error))
        asked = f" (it asked for {_readable(amount[1] or amount[2])} at once)" if amount else ""
        return f"memory ran out{asked}: {MEMORY_HINT}"
    found = storage_fault(error)
    if found is None:
        return None
    number, name = found
    what, way_out = STORAGE_FAULTS[number]
    return f"{name or 'a file'}: {what}: {way_out}, then the same command goes on"


def refusal_line(error: UserError) -> str | None:
    """The line for a denied permission of which a reader made a `UserError`; None for all others."""
    cause = error.__context__
    found = storage_fault(cause) if cause else None
    return fault_line(cause) if cause and found and found[0] in REFUSALS else None


def _storage_errno(error: BaseException) -> int | None:
    number = getattr(error, "errno", None) if isinstance(error, OSError) else None
    if number is not None:
        return number if number in STORAGE_FAULTS else None
    text = str(error)
    written = _NUMBER.search(text)
    if written:
        number = int(next(group for group in written.groups() if group))
        return number if number in STORAGE_FAULTS else None
    return next((number for words, number in _WORDS if words.search(text)), None)


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception says that memory could not be had, on the CPU or an accelerator."""
    # torch is not imported for this: commands that do without it start at once. Its errors are RuntimeErrors.
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    is_torch = isinstance(error, RuntimeError)
    return is_torch and (type(error).__name__ == "OutOfMemoryError" or _MEMORY_WORDS.search(str(error)) is not None)


def _readable(amount: str) -> str:
    number, unit = amount.split()
    return f"{int(number) / 2**30:.3g} GiB" if unit == "bytes" else amount
