"""What computed a vector, and why so."""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Computation:
    """How vectors were computed.

    backend: what ran the model; device: by its name; dtype: of the weights; compiled: by compiled
    code; attention: how it saw each text alone: `varlen` (one call for texts of all lengths),
    `groups` (one for each length), `padded`, or empty where there is none; reason: why all this
    was chosen.
    """

    device: str
    dtype: str
    compiled: bool = False
    backend: str = "torch"
    attention: str = ""
    reason: str = ""

    @property
    def is_slow(self) -> bool:
        """Tell whether a GPU did without the kernel that it is fast with."""
        return self.device != "cpu" and self.attention not in ("", "varlen")

    def __str__(self) -> str:
        compiled = ", compiled" if self.compiled else ""
        attention = f", attention {self.attention}" if self.attention else ""
        return f"{self.device}, {self.dtype} by {self.backend}{compiled}{attention}"
