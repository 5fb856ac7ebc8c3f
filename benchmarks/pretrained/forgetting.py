"""What the language model of a run still knows: log-likelihood of plain text, and short factual questions, as JSON.

    python benchmarks/pretrained/forgetting.py RUN --out FILE

RUN is a run folder of the vision stage (the language model as it came), of the supervised stage or of a policy.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from general import FACTS, PASSAGES

from safe_rlhf_v.models import ClipDecoder
from safe_rlhf_v.models.sampling import SamplingOptions, sample
from safe_rlhf_v.records.batches import Prompts
from safe_rlhf_v.records.user_files import write_whole
from safe_rlhf_v.training.runs import load_backbone


@torch.no_grad()
def log_likelihood(backbone: Any) -> float:
    """Mean log-probability of the tokens of the passages, in nats."""
    values = []
    for passage in PASSAGES:
        ids = torch.tensor(
            [backbone.tokenizer(passage, add_special_tokens=False)["input_ids"]], device=backbone.decoder.device
        )
        log_probs = backbone.decoder(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
        values.append(log_probs.gather(-1, ids[:, 1:, None]).flatten())
    return float(torch.cat(values).mean())


def facts(backbone: ClipDecoder) -> list[dict[str, Any]]:
    """Every question with the greedy reply, and whether a word of the right one is in it."""
    questions = tuple(question for question, _ in FACTS)
    none = ((),) * len(questions)
    replies = sample(backbone, Prompts(none, none, questions), SamplingOptions(24, 0.0)).text
    return [{"question": question, "reply": reply, "right": bool(re.search(rf"\b(?:{words})\b", reply.lower()))}
            for (question, words), reply in zip(FACTS, replies, strict=True)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--base", help="folder that the run's adapters are on, in place of the one that it names")
    parser.add_argument("--device", default="cpu", help="where the network runs")
    chosen = parser.parse_args()
    backbone = load_backbone(chosen.run, kinds=("policy", "tower"), base=chosen.base).to(chosen.device)
    answered = facts(backbone)
    right = sum(row["right"] for row in answered) / len(answered)
    values = {"log_likelihood_of_plain_text": log_likelihood(backbone), "facts_right": right, "replies": answered}
    write_whole(chosen.out, (json.dumps(values, indent=1) + "\n").encode())
    print(
        f"{chosen.run}: plain text {values['log_likelihood_of_plain_text']:.3f} nats a token, {right:.2f} of the facts right"
    )


if __name__ == "__main__":
    main()
