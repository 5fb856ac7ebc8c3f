"""The embedded world as a source of images, questions and responses, for building data sets without any endpoint."""

import random
from collections.abc import Sequence
from functools import lru_cache

from safe_rlhf_v.construct.images import ImageSource
from safe_rlhf_v.construct.lines import Row
from safe_rlhf_v.construct.questions import Kind, Pictured, Question, QuestionReply, QuestionSource
from safe_rlhf_v.construct.responses import Responded, Responder
from safe_rlhf_v.records import Record
from safe_rlhf_v.shards.manifest import WORLD_ORIGIN
from safe_rlhf_v.world.grammar import QUESTIONS, Slots, write
from safe_rlhf_v.world.judge import scene_from
from safe_rlhf_v.world.render import encode
from safe_rlhf_v.world.responses import demonstrate, direct, right_name
from safe_rlhf_v.world.scenes import INTENTS, Intent, Scene, category, draw_prompt, prompt_risk, redraw
from safe_rlhf_v.world.simulated import intent_of, named_scene


class WorldPictures(ImageSource):
    """Pictures of the embedded world.

    YAML::

        source: {class_path: safe_rlhf_v.world.WorldPictures, init_args: {count: 200}}
    """

    synthetic = True

    def __init__(self, count: int = 200, seed: int = 0) -> None:
        """Choose how many.

        Args:
            count: Number of pictures.
            seed: Of the scenes.
        """
        if count < 1:
            raise ValueError(f"count is {count}; it must be positive")
        self.count = count
        self.seed = seed

    def listed(self) -> list[Row]:
        scenes = [_scene(self.seed, number) for number in range(self.count)]
        return [
            {
                "name": f"scene-{number:06d}",
                "licence": "CC0-1.0",
                "source": WORLD_ORIGIN,
                "severity": scene.severity,
                "category": None,
                "attributes": scene.attributes(),
            }
            for number, scene in enumerate(scenes)
        ]

    def read(self, entry: Row) -> bytes:
        return encode(_scene(self.seed, int(entry["name"].partition("-")[2])))


@lru_cache(maxsize=4096)
def _scene(seed: int, number: int) -> Scene:
    return draw_prompt(random.Random(f"{seed}/picture/{number}"))[0]


class WorldQuestions(QuestionSource):
    """Questions of the embedded world; some can be made to leak: they name what the picture shows.

    YAML::

        source: {class_path: safe_rlhf_v.world.WorldQuestions, init_args: {per_image: 2, leaking: 0.1}}
    """

    def __init__(self, per_image: int = 2, leaking: float = 0.0) -> None:
        """Choose how many.

        Args:
            per_image: Questions about a picture, each of another intent.
            leaking: Share of questions that say what the picture shows, so that they can be answered without it.
        """
        if not 1 <= per_image <= len(INTENTS) or not 0 <= leaking <= 1:
            raise ValueError(f"per_image is 1..{len(INTENTS)} and leaking a share, not {per_image} and {leaking}")
        self.per_image = per_image
        self.leaking = leaking

    def most(self, images: int) -> tuple[int, int]:
        return images * self.per_image, 0

    def ask(self, images: Sequence[Pictured], seed: int) -> list[QuestionReply]:
        return [QuestionReply(tuple(self._questions(image, seed))) for image in images]

    def _questions(self, image: Pictured, seed: int) -> list[Question]:
        scene = scene_from(image.row["attributes"])
        rng = random.Random(f"{seed}/questions/{image.row['key']}")
        return [self._question(scene, intent, rng) for intent in rng.sample(INTENTS, self.per_image)]

    def _question(self, scene: Scene, intent: Intent, rng: random.Random) -> Question:
        text = rng.choice(QUESTIONS[intent])
        leaks = rng.random() < self.leaking
        if leaks:
            text = f"{write(Slots('full', scene.count, scene.colour, scene.object, scene.context))} {text}"
        harm = category(scene, intent)
        kind: Kind = "harmful" if intent == "misuse" else "borderline" if prompt_risk(scene, intent) else "benign"
        return Question(text, kind, (harm,) if harm else (), {"intent": intent, "leaks": str(leaks).lower()})


class WorldResponder(Responder):
    """Writes responses from what the picture shows; without a picture from what the question says, else from a guess.

    YAML::

        class_path: safe_rlhf_v.world.WorldResponder
        init_args: {helpful: true, accuracy: 0.9}
    """

    def __init__(
        self, helpful: bool = False, accuracy: float = 0.9, seed: int = 0, families: Sequence[str] = ()
    ) -> None:
        """Choose the manner.

        Args:
            helpful: Always name the scene and do what is asked; else a mixture of vague, eager, careful, refusing and wrong.
            accuracy: Probability that it takes the picture for what it shows.
            seed: Of everything it draws.
            families: Families of models it claims to descend from.
        """
        self.helpful = helpful
        self.accuracy = accuracy
        self.seed = seed
        self.families = tuple(families)

    def respond(self, records: Sequence[Record], seed: int, draw: int = 0) -> list[Responded]:
        return [Responded(self._response(record, seed, draw)) for record in records]

    def _response(self, record: Record, seed: int, draw: int) -> str:
        pictures = "+".join(image.id for image in record.images)
        rng = random.Random(f"{seed}/{self.seed}/{record.key}/{pictures}/{draw}")
        named = named_scene(record.question)
        scene = scene_from(record.truth.attributes) if record.truth else named
        if scene is None or rng.random() >= self.accuracy:
            scene = redraw(scene or draw_prompt(rng)[0], rng)
        intent = intent_of(record)
        if not self.helpful:
            return demonstrate(scene, intent, rng)
        name = right_name(scene, rng)
        return write(name if intent == "describe" else direct(name, intent, scene.object))
