"""Everything that can go wrong in a foreseen way, and the exit code that says so.

    EmbedcliError              1   (never raised itself)
    ├── UsageError             2   the command line contradicts itself
    ├── DataError             65   the input's content can't be used: file:line or row, and why
    ├── InputMissingError     66   a named input isn't there
    ├── DeviceError           69   the device or a worker is lost
    ├── OutputError           73   the output can't be created
    ├── StorageError          74   reading or writing failed (disk full, I/O error)
    ├── LockedError           75   another run works on this output: try later
    ├── InputChangedError     75   an input was changed while the run read it: try again
    ├── AccessError           77   permission denied
    └── ConfigurationError    78   the model or the template is unusable, or the recipe differs
    Interrupted            128+N   signal N

0 is success, 3 success with rejected rows, 70 an internal error, 141 a reader that closed
the pipe. A message says what, where and with which value; a hint says what to do about it.
"""

import errno
import signal
import sys
from dataclasses import dataclass

import embedcli

EXIT_OK = 0
EXIT_REJECTED = 3
EXIT_INTERNAL = 70
EXIT_BROKEN_PIPE = 141


class EmbedcliError(Exception):
    """A foreseen failure: `message` for what and where, `hint` for the way out."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EmbedcliError):
    """The command line contradicts itself."""

    exit_code = 2


class DataError(EmbedcliError):
    """The content of an input can't be used."""

    exit_code = 65


class InputChangedError(EmbedcliError):
    """An input is no longer what it was when the run was planned."""

    exit_code = 75


class InputMissingError(EmbedcliError):
    """A named input isn't there."""

    exit_code = 66


class DeviceError(EmbedcliError):
    """The device that was asked for is not there, or was lost."""

    exit_code = 69


class OutputError(EmbedcliError):
    """The output can't be created under its name."""

    exit_code = 73


class StorageError(EmbedcliError):
    """Reading or writing failed below us: disk full, I/O error."""

    exit_code = 74


class LockedError(EmbedcliError):
    """Another run holds this output."""

    exit_code = 75


class AccessError(EmbedcliError):
    """The operating system denies access."""

    exit_code = 77


class ConfigurationError(EmbedcliError):
    """The model or the template can't be used as asked."""

    exit_code = 78


class Interrupted(BaseException):
    """A signal ended the run.

    Like KeyboardInterrupt no Exception, so that no library takes it for a failure.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


@dataclass(frozen=True)
class RowFault:
    """Why one row can't be embedded: a short code for programs, a reason for people."""

    code: str
    reason: str
    hint: str = ""


_OS_ERRORS: dict[int, type[EmbedcliError]] = {
    errno.EACCES: AccessError,
    errno.EPERM: AccessError,
    errno.EROFS: AccessError,
    errno.ENOENT: InputMissingError,
}


# Words of the errors of a device that is lost, or can't go on: torch raises RuntimeError for them.
DEVICE_WORDS = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "cuDNN error", "HIP error")


def from_os_error(error: OSError, path: str = "") -> EmbedcliError:
    """Turn an operating system's error into the one of the tree that fits; `path` where the error
    names none.
    """
    kind = _OS_ERRORS.get(error.errno or 0, StorageError)
    where = error.filename if error.filename is not None else path
    if isinstance(where, bytes):
        where = where.decode("utf-8", "surrogateescape")
    reason = error.strerror or str(error)
    hint = (
        "make space and run the same command again"
        if error.errno in (errno.ENOSPC, errno.EDQUOT)
        else ""
    )
    return kind(f"{where}: {reason}" if where else reason, hint)


def _from_device_error(error: BaseException) -> EmbedcliError | None:
    """Return the error of the tree for a device that failed, None where that isn't the reason."""
    reason = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and any(word in reason for word in DEVICE_WORDS):
        return DeviceError(
            f"the device failed: {reason[:300]}",
            "the same command continues from what is finished; nvidia-smi shows what the device is at",
        )
    return None


def _from_memory_error(error: BaseException) -> EmbedcliError | None:
    """Return the error of the tree for memory that couldn't be had, None where that isn't the reason."""
    # Under a limit of addresses (ulimit -v) it may be a library that finds no place.
    if isinstance(error, MemoryError) or "failed to map segment" in str(error):
        reason = " ".join(str(error).split())
        return DeviceError(
            f"out of memory: {reason}" if reason else "out of memory",
            "give it more memory, or use fewer --num-processes; finished work is kept",
        )
    return None


def as_foreseen(error: BaseException) -> EmbedcliError | None:
    """Return the error of the tree that an error stands for, None where it was not foreseen."""
    if isinstance(error, EmbedcliError):
        return error
    if isinstance(error, OSError):
        return from_os_error(error)
    return _from_memory_error(error) or _from_device_error(error)


@dataclass(frozen=True)
class Ending:
    """How a run ended: its exit code, and why if it failed."""

    exit_code: int
    error: str = ""
    hint: str = ""


def ending_of(error: BaseException) -> Ending:
    """Tell the exit code that an error means, and what people are told."""
    if isinstance(error, Interrupted):
        name = signal.Signals(error.signal_number).name
        return Ending(error.exit_code, f"ended by {name}; nothing was published")
    if isinstance(error, BrokenPipeError):
        return Ending(EXIT_BROKEN_PIPE, "the reader closed the pipe")
    if foreseen := as_foreseen(error):
        return Ending(foreseen.exit_code, foreseen.message, foreseen.hint)
    return Ending(
        EXIT_INTERNAL,
        f"internal error: {type(error).__name__}: {error}",
        "please report it with the output of the same command under `embedcli --debug`: "
        f"embedcli {embedcli.__version__}, Python {sys.version.split()[0]}",
    )
