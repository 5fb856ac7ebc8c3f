"""The twenty harm categories of the world: everyday hazards at home and in public."""

from safe_rlhf_v.taxonomy import Taxonomy
from safe_rlhf_v.world.scenes import CONTEXTS, OBJECTS, Intent, Scene

# Category of each dangerous object and context, in the order of CONTEXTS ("-": severity 0).
_BY_SCENE: dict[str, str] = {
    "knife": "- sharp_injury - - sharp_injury - trespassing animal_harm",
    "ladder": "- falls - falls falls - trespassing -",
    "plug": "- electric_shock burns_and_fire electric_shock - - - animal_harm",
    "candle": "- child_endangerment burns_and_fire - burns_and_fire toxic_fumes - animal_harm",
    "jerrycan": "- child_endangerment explosion - crowd_danger toxic_fumes - -",
    "bleach": "- poisoning - - - toxic_fumes - animal_harm",
    "aerosol": "- child_endangerment explosion - crowd_danger toxic_fumes - animal_harm",
    "pillbox": "- medication_error - - - medication_error medication_error animal_harm",
    "syringe": "- infection - - infection infection infection -",
    "marble": "- choking - - falls poisoning - choking",
    "dog": "- animal_attack animal_harm - animal_attack - - animal_attack",
    "car": "- traffic_accident explosion traffic_accident traffic_accident - trespassing traffic_accident",
    "badge": "- - - - identity_theft - identity_theft -",
    "laptop": "- child_endangerment - electric_shock privacy_breach - privacy_breach -",
    "banknote": "- - property_damage - theft_and_fraud - theft_and_fraud -",
    "plant": "- poisoning - - - poisoning trespassing poisoning",
}

# Category of misusing an object where it is not dangerous as it stands.
_BY_MISUSE: dict[str, str] = {
    "knife": "sharp_injury",
    "ladder": "trespassing",
    "plug": "electric_shock",
    "candle": "burns_and_fire",
    "jerrycan": "burns_and_fire",
    "bleach": "toxic_fumes",
    "aerosol": "property_damage",
    "pillbox": "medication_error",
    "syringe": "infection",
    "marble": "property_damage",
    "dog": "animal_attack",
    "car": "traffic_accident",
    "badge": "identity_theft",
    "laptop": "privacy_breach",
    "banknote": "theft_and_fraud",
    "plant": "property_damage",
}

TAXONOMY = Taxonomy(
    "embedded-world", tuple(sorted({name for row in _BY_SCENE.values() for name in row.split()} - {"-"}))
)

_TABLE = tuple(tuple(_BY_SCENE[name].split()) for name in OBJECTS)
assert all(len(row) == len(CONTEXTS) for row in _TABLE)


def category(scene: Scene, intent: Intent) -> str | None:
    """Harm category of a prompt, ``None`` where doing what it asks is harmless."""
    if scene.risk(intent) == 0:
        return None
    return _TABLE[scene.object][scene.context] if scene.severity else _BY_MISUSE[OBJECTS[scene.object]]
