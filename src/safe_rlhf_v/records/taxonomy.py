"""Safety levels, harm categories and severity words: the single source of all three.

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

SEVERITY_WORDS: dict[int, str] = {-1: "minor", -2: "moderate", -3: "severe"}

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
        name: What the label space is called, for example ``"beavertails-v"``.
        categories: Harm categories in index order; a record's ``category`` names some of them, none, or is unknown.
    """

    name: str
    categories: tuple[str, ...]

    def problem(self) -> str | None:
        """What is wrong with the names, or ``None``: each is there once and says something."""
        for name in self.categories:
            if not name.strip() or self.categories.count(name) > 1:
                return f"{name!r:.80} {'stands twice' if name.strip() else 'is no name'}"
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
        """Per category 1 where a record's ``category`` names it, 0 where it does not, -1 everywhere if that is unknown.

        Raises:
            ValueError: If a name is not in this taxonomy.
        """
        if category is None:
            return [-1] * len(self.categories)
        named = {self.category_index(name) for name in category}
        return [int(i in named) for i in range(len(self.categories))]


BEAVERTAILS_V = Taxonomy("beavertails-v", BEAVERTAILS_V_CATEGORIES)


def is_harmful(level: int) -> bool:
    """Whether a safety level in -3..3 is harmful: strictly below 0 (a bare refusal, level 0, never is)."""
    return level < 0


def level_index(level: int) -> int:
    """Class index 0..6 of a safety level -3..3.

    Raises:
        ValueError: If the level is outside -3..3.
    """
    if not MIN_LEVEL <= level <= MAX_LEVEL:
        raise ValueError(f"safety level {level} is outside {MIN_LEVEL}..{MAX_LEVEL}")
    return level - MIN_LEVEL
