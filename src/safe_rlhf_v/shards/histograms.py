"""How often each label occurs in a split."""

from collections import Counter

from safe_rlhf_v.records import Record


class Histograms:
    """Counts per category, image severity, number of responses, safety level and source."""

    def __init__(self) -> None:
        """Nothing counted yet."""
        names = ("category", "image_severity", "responses", "safety", "source")
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in names}

    def add(self, record: Record) -> None:
        """Count the labels of one record."""
        self._counts["category"].update(("(unknown)",) if record.category is None else record.category or ("(none)",))
        self._counts["image_severity"][str(record.image_severity)] += 1
        self._counts["responses"][str(len(record.responses))] += 1
        for response in record.responses:
            self._counts["safety"][str(response.safety)] += 1
            self._counts["source"][response.source or "unknown"] += 1

    def counts(self) -> dict[str, dict[str, int]]:
        """What the manifest states."""
        return {name: dict(sorted(counts.items())) for name, counts in self._counts.items()}
