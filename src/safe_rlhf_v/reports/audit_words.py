"""The audit's names in plain words: what each alarm means for the labels, and what can be done about it."""

from typing import NamedTuple


class Explanation(NamedTuple):
    """An alarm in plain words.

    Attributes:
        title: What is wrong.
        meaning: What it means for the labels.
        action: What can be done.
    """

    title: str
    meaning: str = ""
    action: str = ""


_LEAVE_OUT = "Leave the judge out on this axis, or correct its prompt, and judge again."
ALARMS = {
    "position_bias": Explanation(
        "Prefers a response for its place",
        "The order in which two responses are shown decides, and not what they say: such votes are noise.",
        "Ask in both orders and count contradicting votes as ties (the labels already do); or leave the judge out.",
    ),
    "length_bias": Explanation(
        "Prefers longer responses",
        "A repeated sentence makes a response better in its eyes. A model trained on such votes learns to be long.",
        _LEAVE_OUT,
    ),
    "picture_not_read": Explanation(
        "Not shown to look at the picture",
        "Another picture does not change its ratings more often than asking again does: perhaps it judges the text alone.",
        "Check that pictures reach the judge at all; if they do, leave it out wherever the picture decides.",
    ),
    "too_many_ties": Explanation(
        "Calls almost everything a tie",
        "Its votes teach nothing, and the pairs it alone has judged are lost.",
        "Ask for ratings in place of comparisons, or choose another judge.",
    ),
    "unparsable": Explanation(
        "Gives replies that cannot be read",
        "They are never counted as labels; but if they are not random, what is left is not representative.",
        "Read the replies among the examples: usually the prompt or the limit of tokens is at fault.",
    ),
    "unstable": Explanation(
        "Says something else when asked again",
        "The same question gave another opinion: a part of every label is chance.",
        "Lower its temperature, or ask several times and let the majority decide.",
    ),
    "against_gold": Explanation(
        "Contradicts the gold items",
        "Where the right label is known, it gives another one too often: its other labels will be no better.",
        "Look at its matrix and its examples; correct the rubric or the gold items if these are wrong, or leave it out.",
    ),
    "not_independent": Explanation(
        "Not independent",
        "The judge belongs to the family of a model that wrote the responses or made the labels. Models prefer their own "
        "style and share mistakes, so its agreement confirms nothing.",
        "Add a judge of another family, or people.",
    ),
    "leaking": Explanation(
        "Questions do not need their picture",
        "Response and verdict stay the same without the picture: such items teach a model not to look.",
        "Leave these questions out (the grounding filter does), or write questions that depend on the picture.",
    ),
}

MEASURES = {
    "flips": ("the order changes the choice", "lower is better"),
    "ties": ("ties", ""),
    "longer_preferred": ("the longer one is preferred", "0.5 without bias, if length says nothing"),
    "retest_choice": ("the same choice when asked again", "higher is better"),
    "retest_rating": ("the same rating when asked again", "higher is better"),
    "picture_swapped_changed": ("another picture changes the rating", "more than asking again does"),
    "picture_repeat_changed": ("asking again changes the rating", "lower is better"),
    "gold_choice": ("the choice of the gold items", "higher is better"),
    "gold_rating": ("the rating of the gold items", "higher is better"),
    "gold_rating_within_one": ("at most one level from the gold rating", "higher is better"),
    "unparsable": ("cannot be read", ""),
    "refused": ("refused", ""),
    "failed": ("no reply", ""),
    "unknown": ("says that it does not know", ""),
    "leak": ("the picture is not needed", "neither for the response nor for the verdict"),
    "answer_leak": ("as helpful without the picture", ""),
    "verdict_leak": ("the same verdict without the picture", ""),
}
"""Rates of the audit: what they count, and how to read them."""


def explain(name: str) -> Explanation:
    """An alarm in plain words; for a name that is not known here, the name.

    Args:
        name: The alarm's name.
    """
    return ALARMS.get({"leak": "leaking"}.get(name, name)) or Explanation(name.replace("_", " ").capitalize())
