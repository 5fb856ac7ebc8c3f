"""What a run holds on each rank: networks by role, and the phases of a step, of which the largest counts.

Weights, gradients and optimizer states are counted as in ZeRO (arXiv 1910.02054, section 3.1): bytes of the trained parameters
for gradients, and as many again for each state; sharding divides them by the ranks (section 5.3).
"""

import math
from typing import Any, NamedTuple

from safe_rlhf_v.planning.network import BackboneOptions, Sizes, sizes_of
from safe_rlhf_v.planning.passes import Passes, Reads, Rows
from safe_rlhf_v.planning.settings import RunSettings

SAMPLING_BYTES = 28
"""Per response and word of the vocabulary while a token is drawn: logits, banned logits and probabilities in 32 bits,
probabilities and their sum in 64 bits."""

SORTING_BYTES = 16
"""Besides, where the words are sorted: their order, and the sum before each, in 64 bits."""


class RoleBytes(NamedTuple):
    """Bytes of one role on one rank.

    Attributes:
        role: Its name.
        weights: Of its network, or of its adapter.
        gradients: Of what it trains.
        optimizer: States of what it trains.
    """

    role: str
    weights: int
    gradients: int = 0
    optimizer: int = 0


class Phase(NamedTuple):
    """One phase of a step.

    Attributes:
        name: What happens.
        gradients: Held while it runs, and not part of ``activations``.
        activations: What its passes hold.
        cache: Keys and values of sampled tokens.
        features: Pictures, and features of pictures.
    """

    name: str
    gradients: int = 0
    activations: int = 0
    cache: int = 0
    features: int = 0

    @property
    def total(self) -> int:
        """Bytes beside weights and optimizer states."""
        return self.gradients + self.activations + self.cache + self.features


class MemoryPlan(NamedTuple):
    """What one rank needs.

    Attributes:
        settings: Of the run.
        roles: Its networks.
        phases: Of a step.
    """

    settings: RunSettings
    roles: tuple[RoleBytes, ...]
    phases: tuple[Phase, ...]

    @property
    def resident(self) -> int:
        """Weights and optimizer states, which are always there."""
        return sum(role.weights + role.optimizer for role in self.roles)

    @property
    def largest(self) -> Phase:
        """The phase that holds most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def peak(self) -> int:
        """Most bytes of tensors at once."""
        return self.resident + self.largest.total


class Planner:
    """Makes plans; networks with the same settings are sized and traced once."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._sizes: dict[Any, Sizes] = {}
        self._passes: dict[Any, Passes] = {}

    def plan(self, settings: RunSettings) -> MemoryPlan:
        """The plan of a run.

        Raises:
            ValueError: If its prompts do not fit, or its network cannot be a backbone.
        """
        if settings.shared and settings.backbone.lora is None:
            raise ValueError(
                "SharedRoles puts adapters on one base: give the backbone lora settings, or use SeparateRoles"
            )
        if settings.sharded and settings.backbone.quantization:
            raise ValueError("quantised weights are not sharded over ranks: use DDP, or no quantization")
        run = _Run(settings, self._sizes_of(settings), self._passes_of(settings.backbone, settings.mixed))
        if settings.stage == "policy":
            return MemoryPlan(settings, tuple(run.policy_roles()), tuple(run.policy_phases()))
        return MemoryPlan(settings, tuple(run.stage_roles()), tuple(run.stage_phases()))

    def _sizes_of(self, settings: RunSettings) -> Sizes:
        key = (_key(settings.backbone), settings.stage in ("reward", "cost", "guard") and not settings.reads_tokens)
        if key not in self._sizes:
            self._sizes[key] = sizes_of(settings.backbone, head=not key[1])
        return self._sizes[key]

    def _passes_of(self, options: BackboneOptions, mixed: bool) -> Passes:
        key = (_key(options), mixed)
        if key not in self._passes:
            self._passes[key] = Passes(options, mixed)
        return self._passes[key]


def make_plan(settings: RunSettings) -> MemoryPlan:
    """The plan of one run; see :class:`Planner`."""
    return Planner().plan(settings)


class _Run:
    """The roles and phases of one run."""

    def __init__(self, settings: RunSettings, sizes: Sizes, passes: Passes) -> None:
        self.settings = settings
        self.sizes = sizes
        self.passes = passes
        self.cut = settings.ranks if settings.sharded else 1

    # --- networks -----------------------------------------------------------------------------------------------------

    @property
    def trained(self) -> int:
        """Bytes of one network's trained parameters on this rank."""
        return math.ceil((self.sizes.trained_blocks + self.sizes.trained_rest) / self.cut)

    @property
    def network(self) -> int:
        """Bytes of one network without adapters on this rank; a frozen part outside the blocks is on every rank."""
        trained = 0 if self.settings.backbone.lora is not None else self.sizes.trained_rest
        return math.ceil(self.sizes.blocks / self.cut + trained / self.cut) + self.sizes.rest - trained

    @property
    def adapter(self) -> int:
        return math.ceil(self.sizes.adapter / self.cut)

    def _learner(self, role: str, weights: int, trained: int | None = None) -> RoleBytes:
        own = self.trained if trained is None else trained
        return RoleBytes(role, weights, own, math.ceil(own * self.settings.optimizer_states))

    def stage_roles(self) -> list[RoleBytes]:
        """Of every stage but a policy's iteration."""
        stage = self.settings.stage
        trains = "policy" if stage in ("supervised", "preference_optimisation") else f"{stage} model"
        roles = [self._learner(trains, self.network + self.adapter)]
        if stage == "preference_optimisation":  # it shares with the policy what that does not train
            roles.append(RoleBytes("reference", self.trained))
        return roles

    def policy_roles(self) -> list[RoleBytes]:
        """Six networks, or one with adapters."""
        scorers = ("reward", "cost")
        critics = [f"{name} critic" for name in scorers] if self.settings.critics else []
        if not self.settings.shared:
            one_network = self.network + self.adapter
            learners = [self._learner(role, one_network) for role in ("actor", *critics)]
            return [learners[0], *(RoleBytes(role, one_network) for role in ("reference", *scorers)), *learners[1:]]
        start = [RoleBytes("reference", self.adapter)] if self.settings.started else []
        return [
            RoleBytes("base of all roles", self.network),
            self._learner("actor", self.adapter),
            *start,
            *(RoleBytes(name, self.adapter) for name in scorers),
            *(self._learner(role, self.adapter) for role in critics),
        ]

    # --- phases -------------------------------------------------------------------------------------------------------

    def _rows(self, prompts: int, responses: int, packed: bool) -> Rows:
        s = self.settings
        if not packed:
            return Rows(prompts * responses, s.prompt + s.room, s.room, 1, s.vision.tokens)
        if s.stage == "guard":  # the end token alone stands for the prompt
            longest = responses * s.room if s.joined else s.room
            width = s.prompt + longest + (responses - 1) * s.room + 1
            return Rows(prompts, width, longest, responses + 1, s.vision.tokens)
        return Rows(prompts, s.prompt + responses * s.room, s.room, responses, s.vision.tokens)

    def _pass(self, name: str, rows: Rows, reads: Reads, *, gradients: int | None = None, held: bool = False) -> Phase:
        """A training pass if ``gradients`` says what others hold, otherwise one without a graph."""
        learns = gradients is not None
        held_bytes = self.passes.peak(rows, reads, learns=learns, held=held)
        others = gradients or 0
        if self.cut > 1:  # gradients in the pass are those of whole blocks, which leave one by one
            held_bytes += self._gathered()
        if learns and self._trains_vision():
            held_bytes += self._vision_graph(rows.rows)
        own = self.trained if held else 0
        return Phase(name, others + own, held_bytes, features=self._features(rows.rows))

    def _gathered(self) -> int:
        """Two blocks are whole at a time: the one that runs and the next."""
        depth = self.settings.backbone.config.get_text_config().num_hidden_layers
        return math.ceil(2 * self.sizes.blocks / int(depth) * (1 - 1 / self.cut))

    def _buckets(self) -> int:
        """DDP copies gradients into buckets for the exchange."""
        return self.trained if self.settings.ranks > 1 and not self.settings.sharded else 0

    def _trains_vision(self) -> bool:
        return not self.settings.backbone.freeze_tower

    def _vision_graph(self, pictures: int) -> int:
        vision = self.settings.vision
        graph = vision.graph // 8 if self.settings.backbone.gradient_checkpointing else vision.graph
        return pictures * graph * self._item

    @property
    def _item(self) -> int:
        """Bytes of a number that the network computes."""
        return 2 if self.settings.mixed else int(self.settings.backbone.dtype.itemsize)

    def _features(self, pictures: int) -> int:
        """Pixels and features of a pass's pictures, and the cache."""
        vision = self.settings.vision
        d = int(self.settings.backbone.config.get_text_config().hidden_size)
        weight = int(self.settings.backbone.dtype.itemsize)
        cached = self.settings.feature_cache * vision.tokens * d * weight
        return cached + pictures * (4 * vision.pixel_values + vision.tokens * d * weight)

    def _encoding(self, pictures: int, gradients: int = 0) -> Phase:
        tower = pictures * self.settings.vision.tower * self._item
        return Phase("pictures are encoded", gradients, tower, features=self._features(pictures))

    def _stepping(self, gradients: int, trained: int) -> Phase:
        """On a GPU the optimizer works on all tensors at once, and needs their size once more (torch.optim, ``foreach``)."""
        return Phase("optimizer step", gradients, 0 if self.settings.cpu else trained)

    def stage_phases(self) -> list[Phase]:
        """Of a step of every stage but a policy's iteration."""
        s = self.settings
        held = s.accumulated > 1
        paired = s.stage in ("reward", "cost", "guard", "preference_optimisation")
        rows = self._rows(s.batch, s.responses if paired else 1, s.packed if paired else False)
        reads: Reads = "log_probs"
        if s.stage in ("reward", "cost", "guard"):
            reads = "evidence" if s.reads_tokens else "states"
        learning = self._pass("forward and backward pass", rows, reads, gradients=self._buckets(), held=held)
        phases = [self._encoding(s.batch), learning]
        if s.evaluated:
            held_out = self._rows(s.evaluated, s.responses if paired else 1, s.packed if paired else False)
            phases.append(self._pass("validation", held_out, reads))
        if s.stage == "preference_optimisation":
            reference = self._pass("reference's pass", rows, reads)
            phases.append(reference._replace(activations=reference.activations + self._graph(rows, reads)))
        return [*phases, self._stepping(self.trained + self._buckets(), self.trained)]

    def _graph(self, rows: Rows, reads: Reads) -> int:
        """What the policy's graph holds while the reference runs, from above: its pass without a pass that keeps nothing."""
        return max(
            0, self.passes.peak(rows, reads, learns=True, held=True) - self.passes.peak(rows, reads, learns=False)
        )

    def policy_phases(self) -> list[Phase]:
        """Of one iteration: every picture of the batch stays encoded until it ends."""
        s = self.settings
        size = min(s.minibatch or s.batch, s.batch)
        micro = min(s.micro_batch or size, size)
        several = micro < s.batch  # further micro-batches add to gradients that are there
        rows = self._rows(micro, s.responses, s.responses > 1)
        pictures = self._features(s.batch)
        phases = [
            self._encoding(s.batch),
            self._rollout("rollout", s.batch, s.responses),
            self._pass("reward, cost, reference", rows, "log_probs"),
        ]
        if s.evaluated:
            evaluated = self._rows(s.evaluated, 1, False)
            phases.append(self._rollout("rollout of a validation", s.evaluated, 1))
            phases.append(self._pass("start and validation: scores", evaluated, "log_probs"))
        critics = 2 if s.critics else 0
        for i in range(critics):
            name = f"{('reward', 'cost')[i]} critic learns"
            phases.append(self._pass(name, rows, "states", gradients=i * self.trained, held=several))
        others = critics * self.trained + self._buckets() * (1 + critics)
        if s.demonstrations:
            demonstrations = self._rows(s.demonstrations, 1, False)
            phases.append(self._pass("demonstrations (PTX)", demonstrations, "log_probs", gradients=others))
        held = several or s.demonstrations > 0
        phases.append(self._pass("actor learns", rows, "log_probs", gradients=others, held=held))
        phases.append(self._stepping(others + self.trained, self.trained * (1 + critics)))
        return [phase._replace(features=max(phase.features, pictures)) for phase in phases]

    def _rollout(self, name: str, prompts: int, samples: int) -> Phase:
        """Sampling; keys and values of every token of every response stay.

        Their bytes are 2 x layers x key-value heads x head size x tokens (Pope et al., arXiv 2211.05102, section 2).

        Args:
            name: Of the phase.
            prompts: Sampled from together.
            samples: Responses of each.
        """
        s = self.settings
        text = s.backbone.config.get_text_config()
        head = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * self._item
        n = prompts * samples
        alone = Rows(prompts, s.prompt, 0, 0, s.vision.tokens)
        prefill = self.passes.peak(alone, "nothing", learns=False)
        sampling = n * text.vocab_size * (SAMPLING_BYTES + s.sorts * SORTING_BYTES)
        gathered = math.ceil(self.sizes.blocks * (1 - 1 / self.cut))  # a sharded actor is gathered while it samples
        cache = n * (s.prompt + s.room) * per_token
        grown = cache // text.num_hidden_layers  # a layer's keys and values are copied once: at the first token
        features = self._features(prompts)
        reading = Phase(name, 0, prefill + gathered, prompts * s.prompt * per_token, features)
        writing = Phase(name, 0, sampling + grown + gathered, cache, features)
        return max(reading, writing, key=lambda phase: phase.total)


def _key(options: BackboneOptions) -> tuple[Any, ...]:
    return (id(options.config), *options[1:])
