"""Building a data set of your own: stages from images to shards, endpoints, judges, people, and an audit of the labels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safe_rlhf_v.construct.alarms import Tolerances
    from safe_rlhf_v.construct.asking import EndpointJudge, EndpointQuestions, EndpointResponder
    from safe_rlhf_v.construct.audit import Audit
    from safe_rlhf_v.construct.endpoint import Endpoint
    from safe_rlhf_v.construct.gold import GoldResponses
    from safe_rlhf_v.construct.grounding import Ground
    from safe_rlhf_v.construct.images import CollectImages, ImageFolder
    from safe_rlhf_v.construct.judging import JudgeResponses
    from safe_rlhf_v.construct.models import CostJudge, GuardJudge, PolicyResponder, RewardJudge
    from safe_rlhf_v.construct.questions import AskQuestions, QuestionFile
    from safe_rlhf_v.construct.responses import Respond, StoredResponses
    from safe_rlhf_v.construct.select import AskPeople
    from safe_rlhf_v.construct.write import WriteShards

_HOME = {
    "AskPeople": "select",
    "AskQuestions": "questions",
    "Audit": "audit",
    "CollectImages": "images",
    "CostJudge": "models",
    "Endpoint": "endpoint",
    "EndpointJudge": "asking",
    "EndpointQuestions": "asking",
    "EndpointResponder": "asking",
    "GoldResponses": "gold",
    "Ground": "grounding",
    "GuardJudge": "models",
    "ImageFolder": "images",
    "JudgeResponses": "judging",
    "PolicyResponder": "models",
    "QuestionFile": "questions",
    "Respond": "responses",
    "RewardJudge": "models",
    "StoredResponses": "responses",
    "Tolerances": "alarms",
    "WriteShards": "write",
}
__all__ = [
    "AskPeople",
    "AskQuestions",
    "Audit",
    "CollectImages",
    "CostJudge",
    "Endpoint",
    "EndpointJudge",
    "EndpointQuestions",
    "EndpointResponder",
    "GoldResponses",
    "Ground",
    "GuardJudge",
    "ImageFolder",
    "JudgeResponses",
    "PolicyResponder",
    "QuestionFile",
    "Respond",
    "RewardJudge",
    "StoredResponses",
    "Tolerances",
    "WriteShards",
]


def __getattr__(name: str) -> Any:
    """Load a class when it is asked for: help and plans need no torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
