"""The sequence of passes of the released Safe RLHF-V step, re-created from a description of it, as something to measure against.

Six whole LLaVA models. Per step, all on prompts with 64 sampled tokens (left-padded, B rows, S positions, V words):

* ``generate``: the pictures encoded, one prefill, 63 cached decoding steps;
* reward and cost model, and both critics: each encodes the pictures again and runs the whole conditional-generation model,
  with logits at all S positions, every layer's hidden states and a key-value cache, to read one number per position;
* actor and reference: pictures again, logits at all positions, log-softmax over all of them;
* update: actor, reward critic and cost critic once more with pictures and full logits, each with its own backward pass and
  its own Adam;
* three deep copies of the batch, pictures included.

That is 10 encodings of every picture, 10 forward passes over the prompt and 63 decoding steps. Where the description leaves a
choice the cheaper one is taken, and what costs little and teaches nothing is left out (loops over rows, gradient clipping, the
DeepSpeed engine, PTX): this is a lower bound of the released step's cost. Its known mistakes do not show here, because
no response ends early: all have 64 tokens.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


class ScoreModel(nn.Module):
    """A conditional-generation model with a linear score of the last hidden state at every position."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        width = network.config.get_text_config().hidden_size
        self.head = nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.head.weight, std=1 / (width + 1) ** 0.5)

    def forward(self, batch: Batch) -> Tensor:
        """(B, S) scores; the model's logits and cache are made and thrown away."""
        out = self.network(**batch, output_hidden_states=True)
        scores: Tensor = self.head(out.hidden_states[-1]).squeeze(-1)
        return scores


class Experience(NamedTuple):
    """What the update needs: the sequences, and per response token what was said and thought when they were sampled."""

    batch: Batch
    log_probs: Tensor
    reference: Tensor
    reward: Tensor
    cost: Tensor
    reward_values: Tensor
    cost_values: Tensor


class ReleasedStep:
    """Rollout and update in the released order; constants are the released ones."""

    kl, clip, clip_score, clip_value, gamma, gae = 0.02, 0.2, 50.0, 5.0, 1.0, 0.95

    def __init__(
        self,
        actor: Any,
        reference: Any,
        scorers: tuple[ScoreModel, ScoreModel],
        critics: tuple[ScoreModel, ScoreModel],
        *,
        new_tokens: int,
        banned: list[int],
        lr: float = 1e-5,
    ) -> None:
        """Store the networks and create the optimizers.

        Args:
            actor: A ``LlavaForConditionalGeneration``.
            reference: A copy of the actor at the start.
            scorers: Reward and cost model.
            critics: Reward and cost critic.
            new_tokens: Number of tokens of a response.
            banned: Token ids that are not sampled.
            lr: Learning rate of all three optimizers.
        """
        self.actor, self.reference, self.scorers, self.critics = actor, reference, scorers, critics
        for frozen in (reference, *scorers):
            frozen.requires_grad_(False).eval()
        trained = [[p for p in model.parameters() if p.requires_grad] for model in (actor, *critics)]
        self.optimizers = [torch.optim.Adam(parameters, lr=lr, fused=True) for parameters in trained]
        self.options = {"max_new_tokens": new_tokens, "do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        self.options |= {"suppress_tokens": banned, "eos_token_id": None, "pad_token_id": 0}
        self.lam = 1.0

    def step(self, batch: Batch) -> None:
        """One policy iteration."""
        self.update(self.score(self.sample(batch)))

    @torch.no_grad()
    def sample(self, batch: Batch) -> Batch:
        """The batch with a response behind each prompt."""
        self.actor.eval()
        inputs = copy.deepcopy(batch)
        sequence = self.actor.generate(**inputs, **self.options)  # (B, S)
        return with_sequence(copy.deepcopy(inputs), sequence, batch["attention_mask"])

    @torch.no_grad()
    def score(self, batch: Batch) -> Experience:
        """Six forward passes, each with the pictures and all logits."""
        start = batch["input_ids"].shape[1] - self.options["max_new_tokens"]
        for model in self.critics:
            model.eval()
        (reward, reward_values), (cost, cost_values) = [
            (scorer(batch)[:, -1], critic(batch)[:, start - 1 : -1])
            for scorer, critic in zip(self.scorers, self.critics, strict=True)
        ]
        batch = copy.deepcopy(batch)
        logits, reference = (
            model(**batch, use_cache=False).logits for model in (self.actor, self.reference)
        )  # (B, S, V)
        old, reference = (log_probs(x, batch["input_ids"])[:, start - 1 :] for x in (logits, reference))  # (B, R)
        return Experience(batch, old, reference, reward, cost, reward_values, cost_values)

    def update(self, seen: Experience) -> None:
        """Three forward and backward passes, and three optimizer steps."""
        kl = self.kl * (seen.log_probs - seen.reference)
        ends = [
            torch.nn.functional.pad(score.clamp(-self.clip_score, self.clip_score)[:, None], (kl.shape[1] - 1, 0))
            for score in (seen.reward, seen.cost)
        ]
        signals = [(end + sign * kl).clamp(-50, 50) for end, sign in zip(ends, (-1, 1), strict=True)]
        values = (seen.reward_values, seen.cost_values)
        (reward, reward_returns), (cost, cost_returns) = [
            self.advantages(s, v) for s, v in zip(signals, values, strict=True)
        ]
        advantages = (reward - self.lam * cost) / (1 + self.lam)
        start = seen.batch["input_ids"].shape[1] - kl.shape[1]

        self.actor.train()
        logits = self.actor(**seen.batch, use_cache=False).logits
        new = log_probs(logits, seen.batch["input_ids"])[:, start - 1 :]
        ratio = (new - seen.log_probs).exp()
        surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - self.clip, 1 + self.clip) * advantages)
        self.learn(0, -surrogate.mean(1).mean())
        for i, (critic, old, returns) in enumerate(
            zip(self.critics, values, (reward_returns, cost_returns), strict=True), start=1
        ):
            critic.train()
            now = critic(seen.batch)[:, start - 1 : -1]
            near = old + (now - old).clamp(-self.clip_value, self.clip_value)
            error = torch.maximum((now - returns).square(), (near - returns).square())
            self.learn(i, 0.5 * error.mean(1).mean())

    def learn(self, number: int, loss: Tensor) -> None:
        """One step of one optimizer."""
        self.optimizers[number].zero_grad()
        loss.backward()
        self.optimizers[number].step()

    def advantages(self, signal: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, R) advantages and returns."""
        following = torch.nn.functional.pad(values[:, 1:], (0, 1))
        deltas = signal + self.gamma * following - values
        running, found = torch.zeros_like(deltas[:, 0]), []
        for t in reversed(range(deltas.shape[1])):
            running = deltas[:, t] + self.gamma * self.gae * running
            found.append(running)
        advantages = torch.stack(found[::-1], 1)
        return advantages, advantages + values


def with_sequence(batch: Batch, sequence: Tensor, mask: Tensor) -> Batch:
    """The batch with prompts and responses instead of prompts."""
    new = mask.new_ones(len(mask), sequence.shape[1] - mask.shape[1])
    return {**batch, "input_ids": sequence, "attention_mask": torch.cat([mask, new], 1)}


def log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """(B, S - 1) log-probability of every token but the first, by a log-softmax over all positions."""
    found: Tensor = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return found
