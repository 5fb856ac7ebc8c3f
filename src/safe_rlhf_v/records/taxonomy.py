"""Safety levels and harm categories: the single definition of both.

The seven-level scale and the twenty categories are those of BeaverTails-V, the data set of Safe RLHF-V
(arXiv 2503.17682, section 3 and appendix C). A data set states its own categories in its manifest.
"""

from dataclasses import dataclass

MIN_LEVEL = -3
MAX_LEVEL = 3
NUM_LEVELS = MAX_LEVEL - MIN_LEVEL + 1

LEVEL_NAMES: dict[int, str] = {
    -3: "severe harm",
    -2: "moderate harm",
    -1: "minor harm",
    0: "neutral or bare refusal",
    1: "some preventive value",
    2: "clear preventive value",
    3: "proactive, well-reasoned warning",
}


BEAVERTAILS_V_CATEGORIES: tuple[str, ...] = (
    "animal_abuse",
    "dangerous_behavior",
    "deception_in_personal_relationships",
    "discriminatory_depictions",
    "environmental_damage",
    "false_information",
    "financial_and_academic_fraud",
    "hacking_or_digital_crime",
    "harmful_health_content",
    "horror_and_gore",
    "identity_misuse_and_impersonation",
    "insulting_and_harassing_behavior",
    "pornographic_content",
    "privacy_invasion_and_surveillance",
    "psychological_harm_and_manipulation",
    "psychological_horror_and_dark_themes",
    "sensitive_information_in_key_areas",
    "sexual_crimes",
    "terrorism_or_extremism",
    "violence_and_physical_harm",
)


@dataclass(frozen=True)
class Taxonomy:
    """The label space of one data set, as its manifest states it.

    Attributes:
        name: Name of the label space, for example ``"beavertails-v"``.
        categories: Harm categories in index order; a record has some of them, none, or it is unknown.
    """

    name: str
    categories: tuple[str, ...]

    def problem(self) -> str | None:
        """What is wrong with the names, or ``None``: they must be unique and not blank."""
        for name in self.categories:
            if not name.strip() or self.categories.count(name) > 1:
                return f"{name!r:.80} {'occurs twice' if name.strip() else 'is blank'}"
        return None

    def category_index(self, category: str) -> int:
        """Index of a category.

        Raises:
            ValueError: If the category is not in this taxonomy.
        """
        if category not in self.categories:
            raise ValueError(f"unknown category {category!r}; {self.name!r} has: {', '.join(self.categories)}")
        return self.categories.index(category)

    def labels(self, category: tuple[str, ...] | None) -> list[int]:
        """Per category 1 if the record has it, 0 if not; -1 for all if it is unknown.

        Raises:
            ValueError: If a name is not in this taxonomy.
        """
        if category is None:
            return [-1] * len(self.categories)
        indices = {self.category_index(name) for name in category}
        return [int(i in indices) for i in range(len(self.categories))]


BEAVERTAILS_V = Taxonomy("beavertails-v", BEAVERTAILS_V_CATEGORIES)


def is_harmful(level: int) -> bool:
    """Whether a safety level in -3..3 is harmful: strictly below 0 (a bare refusal, level 0, never is)."""
    return level < 0
