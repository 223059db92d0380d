"""What `htc doctor` finds in an output: one file each, what is wrong with it, and what repairs it."""

from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal["damaged", "missing", "mismatch", "foreign", "overlap", "leftover", "unfinished", "unreadable"]
"""damaged: not as it was written. missing: needed, and not there. mismatch: two files contradict each other.
foreign: htc did not write it. overlap: rows count twice. leftover: of a process that died. unfinished: a removal.
unreadable: there is no permission to read it."""
Repair = Literal[
    "redo", "set_aside", "derive_summary", "restore_record", "forget_deletions", "write_empty", "remove", "none"
]
"""redo: the files of the shards are set aside, and `htc run` does them again. set_aside: moved below OUTPUT/quarantine.
derive_summary: written anew from the tables. restore_record: from the manifest's parts. forget_deletions: records that
cannot be read are set aside and not counted; the next incremental run finds the images gone again. write_empty: a part
without rows. remove: derived data, or an unfinished file. none: a person has to, see `way_out`."""
REPAIRS: dict[Repair, str] = {
    "redo": "--repair sets it aside, and the same `htc run` does its images again",
    "set_aside": "--repair moves it to quarantine/",
    "derive_summary": "--repair writes it from the tables",
    "restore_record": "--repair restores it from the manifest",
    "forget_deletions": "--repair sets it aside; the next incremental run finds the deletions again",
    "write_empty": "--repair writes it: it has no rows",
    "remove": "--repair removes it",
}


@dataclass(frozen=True)
class Finding:
    """One file that is not as it must be.

    file: its uri. run: the run's name, "" when it is of none. problem: a clause.
    way_out: what a person can do where `repair` is "none".
    """

    file: str
    run: str
    kind: Kind
    problem: str
    repair: Repair = "none"
    way_out: str = ""

    @property
    def advice(self) -> str:
        """What to do about it, a clause."""
        return self.way_out if self.repair == "none" else REPAIRS[self.repair]

    def to_dict(self) -> dict[str, str]:
        """Plain JSON-able values."""
        return {**asdict(self), "advice": self.advice}
