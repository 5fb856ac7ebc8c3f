"""Token log-probabilities without full-vocabulary logits in memory.

Shapes: N sequences, R response tokens, D hidden, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def log_probs_of(logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) float32 log-probability of one target per row.

    ``log_softmax`` first subtracts the largest logit. Subtracting ``logsumexp`` from the target's logit instead would keep the
    rounding error of the logits themselves, 1e-3 at logits of 1e4. Both need memory for two (n, V) tensors.

    Args:
        logits: (n, V).
        targets: (n,) int64.
    """
    logits = logits.float()  # the same name: half-precision logits are freed
    return logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


def token_log_probs(
    hidden: Tensor, lm_head: Callable[[Tensor], Tensor], targets: Tensor, mask: Tensor, *, chunk: int = 1024
) -> Tensor:
    """(N, R) float32 log p(target | hidden), 0 where masked.

    The LM head runs at unmasked positions only, ``chunk`` at a time; with gradients enabled, a chunk's logits are recomputed
    in the backward pass, so that at most ``chunk`` x V logits exist.

    Args:
        hidden: (N, R, D) states *before* each target.
        lm_head: Maps (n, D) to (n, V) logits.
        targets: (N, R) int64.
        mask: (N, R) bool, True = count.
        chunk: Positions per LM-head call.
    """

    def score(states: Tensor, targets: Tensor) -> Tensor:
        return log_probs_of(lm_head(states), targets)

    states = hidden[mask]  # (n, D)
    pieces = list(zip(torch.split(states, chunk), torch.split(targets[mask], chunk), strict=True))
    if len(pieces) > 1 and torch.is_grad_enabled():
        scores = [checkpoint(score, s, w, use_reentrant=False) for s, w in pieces]
    else:
        scores = [score(s, w) for s, w in pieces]
    out = torch.zeros(mask.shape, dtype=torch.float32, device=hidden.device)
    return out.masked_scatter(mask, torch.cat(scores)) if scores else out
