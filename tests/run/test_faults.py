"""Which exceptions are faults of the machine, however a library words them."""

import errno
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import SafetensorError

from halfstep.run.errors import UserError
from halfstep.run.faults import MEMORY_HINT, fault_line, lacks_memory, storage_fault
from halfstep.tools.cli import app


def _caused_by(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "number", "name"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC, None),
        (OSError(errno.EROFS, "Read-only file system", "models/0"), errno.EROFS, "models/0"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT, None),
        (OSError("4096 requested and 512 written"), errno.ENOSPC, None),
        (
            SafetensorError('Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "No'),
            errno.ENOSPC,
            None,
        ),
        (Exception("No space left on device (os error 28)"), errno.ENOSPC, None),
        (OSError("[Errno 27] Error writing bytes to file. Detail: File too large"), errno.EFBIG, None),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), errno.ENOSPC, None),
        (RuntimeError("(sqlite3.OperationalError) attempt to write a readonly database"), errno.EROFS, None),
        (PermissionError(errno.EACCES, "Permission denied", "models/0"), errno.EACCES, "models/0"),
        (PermissionError(errno.EPERM, "Operation not permitted", "a"), errno.EPERM, "a"),
        (OSError(errno.EACCES, "Failed to open local file 'a.parquet'. Detail: [errno 13]"), errno.EACCES, "a.parquet"),
        (shutil.Error([("a", "b", "[Errno 13] Permission denied: 'a'")]), errno.EACCES, "a"),
        (Exception("Permission denied (os error 13)"), errno.EACCES, None),
        (_caused_by(RuntimeError("generation failed"), OSError(errno.EIO, "I/O", "a.arrow")), errno.EIO, "a.arrow"),
    ],
)
def test_faults_of_the_disk_are_known_by_number_or_word(error: Exception, number: int, name: str | None) -> None:
    assert storage_fault(error) == (number, name)
    line = fault_line(error)
    assert line is not None
    assert line.startswith(f"{name or 'a file'}: ")
    assert line.endswith("then the same command goes on")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a"),
        UserError("[Errno 28] is in the text of the user"),
        ValueError("28 requested"),
        RuntimeError("size mismatch"),
    ],
)
def test_other_errors_are_none(error: Exception) -> None:
    assert storage_fault(error) is None
    assert fault_line(error) is None


def _torch_asks_for_too_much() -> None:
    torch.empty(2**50)


def _numpy_asks_for_too_much() -> None:
    np.empty(2**50)


@pytest.mark.parametrize(
    ("ask", "amount"), [(_torch_asks_for_too_much, "4.19e+06 GiB"), (_numpy_asks_for_too_much, "8.00 PiB")]
)
def test_a_lack_of_memory_is_reported_with_its_amount(ask, amount: str) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as raised:
        ask()
    assert lacks_memory(raised.value)
    assert f"{fault_line(raised.value)}".startswith(
        f"memory ran out (it asked for {amount} at once): raise the stage's "
    )


def test_a_lack_of_memory_on_an_accelerator_is_one() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ...")
    assert f"{fault_line(error)}".startswith("memory ran out (it asked for 2.50 GiB at once): raise the stage's ")
    assert not lacks_memory(RuntimeError("CUDA error: device-side assert triggered"))


def test_the_hint_for_memory_names_parameters_and_a_command_that_exist() -> None:
    values = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))
    for section, name in re.findall(r"\b(data|model)\.(\w+)", MEMORY_HINT):
        assert name in values[section]
    assert {"num_accumulation_steps", "batch_size"} <= values["pretrain"].keys()
    assert "fit-batch" in {command.name for command in app.registered_commands}
