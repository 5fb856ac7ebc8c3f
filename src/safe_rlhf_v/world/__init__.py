"""The embedded world: a procedural, synthetic image-text safety world with an exact ground-truth scorer."""

from safe_rlhf_v.world.construction import WorldPictures, WorldQuestions, WorldResponder
from safe_rlhf_v.world.judge import WorldJudge
from safe_rlhf_v.world.scenes import WORLD, Scene
from safe_rlhf_v.world.simulated import SimulatedJudge
from safe_rlhf_v.world.truth import helpfulness, safety
from safe_rlhf_v.world.write import SIZES, SMALL_SIZES, TWO_TURN_SPLITS, write_world

__all__ = [
    "SIZES",
    "SMALL_SIZES",
    "TWO_TURN_SPLITS",
    "WORLD",
    "Scene",
    "SimulatedJudge",
    "WorldJudge",
    "WorldPictures",
    "WorldQuestions",
    "WorldResponder",
    "helpfulness",
    "safety",
    "write_world",
]
