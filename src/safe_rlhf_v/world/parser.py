"""Any string back to slots, by look-up in the list of all sentences; what is not in the list is garbled, never guessed at."""

from functools import cache
from typing import NamedTuple

from safe_rlhf_v.world.grammar import STOP, Act, Name, Note, Slot, all_slots, wordings


class Parsed(NamedTuple):
    """What a text says.

    Attributes:
        names: Every name sentence, in order.
        acts: Every act sentence, in order.
        notes: Every note sentence, in order.
        garbled: Sentences that are not in the language.
        doubled: Sentences that fill a slot for a second time or more, whether they repeat or contradict the first.
    """

    names: tuple[Name, ...]
    acts: tuple[Act, ...]
    notes: tuple[Note, ...]
    garbled: int
    doubled: int

    @property
    def empty(self) -> bool:
        """Whether there is not a single sentence, good or bad."""
        return not (self.names or self.acts or self.notes or self.garbled)


def parse(text: str) -> Parsed:
    """Slots of a text; never fails.

    Case, the amount of white space and a missing last full stop do not matter, and neither does the order of sentences.
    """
    known = _sentences()
    sentences = [" ".join(part.split()) for part in text.lower().split(STOP)]
    slots = [known.get(sentence) for sentence in sentences if sentence]
    names = tuple(slot for slot in slots if isinstance(slot, Name))
    acts = tuple(slot for slot in slots if isinstance(slot, Act))
    notes = tuple(slot for slot in slots if isinstance(slot, Note))
    doubled = sum(max(len(group) - 1, 0) for group in (names, acts, notes))
    return Parsed(names, acts, notes, slots.count(None), doubled)


@cache
def _sentences() -> dict[str, Slot]:
    """Every sentence of the language and the slot it fills."""
    return {text: slot for slot in all_slots() for text in wordings(slot)}
