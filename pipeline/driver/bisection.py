"""Finds the images of one shard that kill workers, by bisection; plain bookkeeping without Ray.

The shard's images are tried in groups, and the result of a group that survives is kept, so that no image is computed
again needlessly. A group that kills its worker is halved. When its first half survives, the second half must hold the
image that kills, and is halved without a death of its own. One such image among n so costs at most
log2(n) + CONFIRMING_DEATHS workers, half as many on average.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipeline.messages import PartialResult, ShardFailure

# An image fails for good when it killed a worker twice while it was alone: workers also die by chance, and a single
# image is done so soon that chance hardly hits it twice.
CONFIRMING_DEATHS = 2
# After this number of deaths without a survivor every sixteenth of the shard would hold an image that kills: the
# images are not the cause then.
MAX_DEATHS_WITHOUT_SURVIVOR = 32


@dataclass
class _Group:
    positions: tuple[int, ...]
    is_first_half: bool = False
    deaths: int = 0


class Bisection:
    """The state of one shard's bisection.

    pieces: the results of the groups that survived.
    verdicts: the images that fail, by their position in the shard, with the reason.
    """

    def __init__(self, image_count: int) -> None:
        self.pieces: list[PartialResult] = []
        self.verdicts: dict[int, str] = {}
        # First in, first out: all parts of the shard are tried before any is halved further, which is how a broken
        # machine, on which everything dies, is distinguished from a broken image.
        self._groups: deque[_Group] = deque([_Group(tuple(range(image_count)))])
        self._deaths = 0

    @property
    def group(self) -> tuple[int, ...]:
        """Positions in the shard to try next, ascending; empty when every image is settled."""
        return self._groups[0].positions if self._groups else ()

    @property
    def is_given_up(self) -> bool:
        """Whether every group has died so often that the images are not the cause."""
        return not self.pieces and self._deaths >= MAX_DEATHS_WITHOUT_SURVIVOR

    def survived(self, piece: PartialResult) -> None:
        """Record that the group survived."""
        group = self._groups.popleft()
        self.pieces.append(piece)
        if group.is_first_half:
            self._halve(self._groups.popleft())

    def killed(self, failure: ShardFailure) -> None:
        """Record that a worker died on the group, or was ended because it hung.

        A hang names its images, so that a single one is settled at once; the suspects that a death leaves narrow the
        search, and cost at most one more death when they are wrong.
        """
        group = self._groups.popleft()
        self._deaths += 1
        group.deaths += 1
        suspects = tuple(each for each in group.positions if each in set(failure.suspects))
        if failure.kind == "hang" and len(suspects) == 1:
            self.verdicts[suspects[0]] = failure.reason
            self._add(_without(group.positions, suspects))
        elif 0 < len(suspects) < len(group.positions):
            self._split(_without(group.positions, suspects), suspects)
        elif len(group.positions) > 1:
            self._halve(group)
        elif group.deaths < CONFIRMING_DEATHS:
            self._groups.appendleft(group)
        else:
            self.verdicts[group.positions[0]] = failure.reason

    def _halve(self, group: _Group) -> None:
        """Halve a group that holds an image that kills; a single image must kill a worker while it is alone."""
        if len(group.positions) == 1:
            self._groups.appendleft(group)
            return
        middle = len(group.positions) // 2
        self._split(group.positions[:middle], group.positions[middle:])

    def _split(self, first: Sequence[int], second: Sequence[int]) -> None:
        # Side by side, because a first half that survives means that the second one kills.
        self._groups.append(_Group(tuple(first), is_first_half=True))
        self._groups.append(_Group(tuple(second)))

    def _add(self, positions: Sequence[int]) -> None:
        if positions:
            self._groups.append(_Group(tuple(positions)))


def _without(positions: Sequence[int], others: Collection[int]) -> tuple[int, ...]:
    return tuple(each for each in positions if each not in others)
