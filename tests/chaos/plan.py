"""The sabotage of one run from inside: which process dies at which write, what fills up, how slow the model is."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

ENVIRONMENT_NAME = "CHAOS_PLAN"
# (height, width) of the image that kills the model.
POISON_SIZE = (24, 41)

Poison = Literal["", "segfault", "hang"]


@dataclass(frozen=True)
class Strike:
    """One SIGKILL at a write, once.

    victim: "driver", or "writer" for the process that writes.
    moment: before or after the write.
    keys: a regular expression searched for in the written uri.
    mark: a file that exists once it has happened.
    """

    victim: Literal["driver", "writer"]
    moment: Literal["before", "after"]
    keys: str
    mark: str


@dataclass(frozen=True)
class Plan:
    """The sabotage of one command.

    delay_s: seconds the model takes for a batch.
    poison: what the model does on an image of POISON_SIZE.
    strike: a kill at a write, or None.
    full_disk: while a file of this name exists, local writes have no space left; "" for never.
    largest_file: bytes that a file written by a worker may have; None for no limit.
    pressure_mib: MiB that the driver puts into Ray's object store and keeps there.
    """

    delay_s: float = 0.0
    poison: Poison = ""
    strike: Strike | None = None
    full_disk: str = ""
    largest_file: int | None = None
    pressure_mib: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Plan":
        values = json.loads(text)
        strike = values.pop("strike")
        return Plan(**values, strike=Strike(**strike) if strike else None)
