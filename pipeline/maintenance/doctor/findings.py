"""Finding: a file of an output, what is wrong with it, and how it is repaired."""

from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal["damaged", "missing", "mismatch", "foreign", "overlap", "leftover", "unfinished", "unreadable"]
"""damaged: not as it was written. missing: needed, and not there. mismatch: two files contradict each other.
foreign: htc did not write it. overlap: rows count twice. leftover: of a process that died. unfinished: a removal.
unreadable: htc has no permission to read it."""
Repair = Literal[
    "redo",
    "set_aside",
    "derive_summary",
    "restore_record",
    "forget_deletions",
    "write_empty",
    "recount",
    "remove",
    "none",
]
"""redo: set the files of the shards aside, so that `htc run` does them again. set_aside: move below OUTPUT/quarantine.
derive_summary: write it again from the tables. restore_record: from the manifest's parts. forget_deletions: set aside
deletion records that cannot be read, and do not count them; the next incremental run finds the images missing again.
write_empty: write a part without rows. recount: record the counts of the shards again, from the tables. remove: derived
data, or an unfinished file. none: see `way_out`."""
REPAIRS: dict[Repair, str] = {
    "redo": "--repair sets it aside, and the same `htc run` command does its images again",
    "set_aside": "--repair moves it to quarantine/",
    "derive_summary": "--repair writes it from the tables",
    "restore_record": "--repair restores it from the manifest",
    "forget_deletions": "--repair sets it aside; the next incremental run finds the deletions again",
    "write_empty": "--repair writes it again: it has no rows",
    "recount": "--repair counts the rows again",
    "remove": "--repair removes it",
}


@dataclass(frozen=True)
class Finding:
    """A file that is not as it must be.

    file: its uri. run: the run's name, "" when it is of none. problem: a clause.
    way_out: what the user can do where `repair` is "none".
    """

    file: str
    run: str
    kind: Kind
    problem: str
    repair: Repair = "none"
    way_out: str = ""

    @property
    def advice(self) -> str:
        """What repairs it, a clause."""
        return self.way_out if self.repair == "none" else REPAIRS[self.repair]

    def to_dict(self) -> dict[str, str]:
        """Plain JSON-able values."""
        return {**asdict(self), "advice": self.advice}
