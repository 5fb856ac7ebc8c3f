"""Pictures that must be in one split, because records hold several of them."""

from collections.abc import Sequence

from safe_rlhf_v.records import Record


class PictureGroups:
    """Pictures that stand together in a record, directly or through further records, are one group (a union-find)."""

    def __init__(self) -> None:
        """Begin with every picture by itself."""
        self._parents: dict[str, str] = {}

    def join(self, ids: Sequence[str]) -> None:
        """Make one group of the groups of these pictures."""
        roots = sorted({self.group_of(name) for name in ids})
        for root in roots[1:]:
            self._parents[root] = roots[0]

    def name_of(self, record: Record) -> str:
        """Split group of a record: the smallest id of its group of pictures; without pictures that of its texts."""
        return self.group_of(record.group_members[0])

    def group_of(self, name: str) -> str:
        """The smallest id of a picture's group."""
        root = name
        while root in self._parents:
            root = self._parents[root]
        while name != root:  # so that the next search is short
            above = self._parents[name]
            self._parents[name] = root
            name = above
        return root
