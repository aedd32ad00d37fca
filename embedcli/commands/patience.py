"""Trying again: `--wait` for an output that another run holds, `--retry` for what may pass."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from embedcli import console, signals
from embedcli.errors import (
    DeviceError,
    InputChangedError,
    LockedError,
    StorageError,
    UsageError,
    as_foreseen,
)

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_POLL_SECONDS = 2.0
# Before the second try; before each further one twice as long.
_FIRST_PAUSE_SECONDS = 5.0
_MAX_PAUSE_SECONDS = 300.0
_PASSING = (DeviceError, StorageError, InputChangedError)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """How long to wait for another run, in seconds, and how often to try again."""

    wait: float = 0.0
    retries: int = 0

    def give(self, run: Callable[[], Result]) -> Result:
        """Run until it succeeds, or fails in a way that no patience helps against.

        Raises what `run` raises.
        """
        deadline = time.monotonic() + self.wait
        retries = self.retries
        pause = _FIRST_PAUSE_SECONDS
        is_told = False
        while True:
            try:
                with signals.outrank_errors():
                    return run()
            except LockedError as error:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                if not is_told:
                    console.say(f"waiting up to {console.duration(self.wait)}: {error.message}")
                    is_told = True
                time.sleep(min(left, _POLL_SECONDS))
            except Exception as error:
                reason = as_foreseen(error)  # the system's own errors, too
                if not retries or not isinstance(reason, _PASSING):
                    raise
                retries -= 1
                console.warn(f"{reason.message}; trying again in {console.duration(pause)}")
                time.sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)


def seconds_of(duration: str, option: str) -> float:
    """Read a duration: `90`, `90s`, `10m`, `2h`, `1d`. Raises UsageError."""
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise UsageError(f"{option} {duration!r} is no duration, such as 90s, 10m or 2h")
    return float(match[1]) * _UNITS[match[2]]
