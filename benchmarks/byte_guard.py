"""A guard of the embedded world with a byte-level tokenizer, as large models have: it has no unknown token.

``python benchmarks/byte_guard.py --data data/world --root runs/byte_guard``: trains tokenizer, tower, decoder and guard with
the quickstart's settings and fewer steps, and calibrates it. About five CPU minutes.
"""

import argparse
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from safe_rlhf_v.demo.processes import execute
from safe_rlhf_v.demo.runs import Run
from safe_rlhf_v.demo.steps import Step, run_steps
from safe_rlhf_v.models.corpus_tokenizer import ANSWER_TOKEN, IMAGE_TOKEN, SPECIAL_TOKENS
from safe_rlhf_v.shards import ShardedSplit

VOCABULARY = 400
"""256 bytes and the commonest pairs: words are one to four tokens."""
STEPS = {"vision": 150, "supervised": 300, "guard": 468}


def build(data: Path, out: Path) -> None:
    """Byte-level pair encoding (as in GPT-2) of the training texts."""
    texts = []
    for split in ("supervised", "train"):
        for record in ShardedSplit(data, split):
            texts += [record.question, *(response.text for response in record.responses)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    names = [*SPECIAL_TOKENS.values(), IMAGE_TOKEN, ANSWER_TOKEN]
    names.remove(SPECIAL_TOKENS["unk_token"])
    specials = [AddedToken(name, lstrip=True, rstrip=True, special=True) for name in names]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    known = {name: token for name, token in SPECIAL_TOKENS.items() if name != "unk_token"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=[IMAGE_TOKEN, ANSWER_TOKEN], **known
    ).save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/world"))
    parser.add_argument("--root", type=Path, default=Path("runs/byte_guard"))
    options = parser.parse_args()
    tokenizer = options.root / "tokenizer"
    if not tokenizer.exists():
        build(options.data, tokenizer)
    run = Run(options.data, options.root)
    before = ""
    stages: list[Step] = []
    for stage, steps in STEPS.items():
        command = run.fit(
            stage,
            f"--model.init_args.backbone.init_args.tokenizer={tokenizer}",
            f"--trainer.max_steps={steps}",
            f"--trainer.val_check_interval={steps}",
            *([f"--model.init_args.init_from={options.root / before}"] if before else []),
        )
        stages.append(Step(stage, f"{steps} steps", command, (before,)))
        before = stage
    run_steps(stages, run.root)
    execute(run.calibrate("guard"), logs=run.root / "output")


if __name__ == "__main__":
    main()
