"""Tiny vision-language models with random weights, written offline as ordinary Hugging Face folders.

For tests and smoke runs of complete configs: every family has its real architecture, processor and chat template shape,
fewer than a million parameters and 28-pixel tiles, and is built in about a second without a download.

    python -m safe_rlhf_v.models.tiny qwen2_5_vl runs/tiny_qwen
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CORPUS = ["What does this picture show? Is it safe to touch, and who could get hurt by following the advice?"] * 2
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
_CLIP = {"model_type": "clip_vision_model", **_VISION, "image_size": 28, "patch_size": 14, "projection_dim": 32}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}  # sums to half the head size, 8

_TURNS = "{% for m in messages %}"
_PARTS = "{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
_CHATML = (
    f"{_TURNS}<|im_start|>{{{{ m['role'] }}}}\n{_PARTS}<|im_end|>\n{{% endfor %}}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _tokenizer(extra: dict[str, str], more: tuple[str, ...] = (), eos: str = "</s>") -> Any:
    """A byte-level tokenizer of about 300 entries; ``extra`` are special tokens that the processor reads by name.

    As in the real families, it puts ``<s>`` in front of a text unless the format is ChatML.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = list(dict.fromkeys(["<pad>", "<s>", eos, "<unk>", *extra.values(), *more]))
    trainer = trainers.BpeTrainer(
        vocab_size=270 + len(specials),
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if eos != "<|im_end|>":
        bos = ("<s>", tokenizer.token_to_id("<s>"))
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token=eos,
        unk_token="<unk>",
        additional_special_tokens=list(more),
        extra_special_tokens=extra,
        padding_side="left",
    )


class _Parts:
    """The parts of a family's folder."""

    def __init__(self, tokenizer: Any, image_processor: Any, config: dict[str, Any], processor: dict[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.config = config
        self.processor = processor

    def id(self, token: str) -> int:
        """Id of a token."""
        return int(self.tokenizer.convert_tokens_to_ids(token))


def _llava() -> _Parts:
    from transformers import CLIPImageProcessorPil

    size = {"height": 28, "width": 28}
    parts = _Parts(
        _tokenizer({"image_token": "<image>"}),
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size),
        {"text_config": {"model_type": "llama", **_TEXT}, "vision_config": _CLIP},
        {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    )
    parts.config["image_token_id"] = parts.id("<image>")
    return parts


def _llava_next() -> _Parts:
    from transformers import LlavaNextImageProcessorPil

    grid = [[28, 56], [56, 28], [56, 56]]
    parts = _llava()
    parts.image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grid
    )
    parts.config |= {"image_grid_pinpoints": grid}
    parts.config["text_config"] = {"model_type": "mistral", **_TEXT, "sliding_window": None}
    turn = _PARTS.replace("IMAGE", "<image>\n")
    parts.processor["chat_template"] = (
        f"{{{{ bos_token }}}}{_TURNS}{{% if m['role'] == 'user' %}}[INST] {turn} [/INST]"
        f"{{% else %}} {turn}{{{{ eos_token }}}}{{% endif %}}{{% endfor %}}"
    )
    return parts


def _llava_onevision() -> _Parts:
    from transformers import LlavaOnevisionImageProcessorPil

    grid = [[28, 56], [56, 28], [56, 56]]
    parts = _Parts(
        _tokenizer({"image_token": "<image>", "video_token": "<video>"}, ("<|im_start|>",), eos="<|im_end|>"),
        LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=grid),
        {
            "text_config": {"model_type": "qwen2", **_TEXT},
            "vision_config": {"model_type": "siglip_vision_model", **_VISION, "image_size": 28, "patch_size": 14},
            "vision_feature_select_strategy": "full",
            "vision_feature_layer": -1,
            "image_grid_pinpoints": grid,
        },
        {
            "num_image_tokens": 4,
            "vision_feature_select_strategy": "full",
            "chat_template": _CHATML.replace("IMAGE", "<image>\n"),
        },
    )
    parts.config["image_token_id"] = parts.id("<image>")
    parts.config["video_token_id"] = parts.id("<video>")
    return parts


def _mistral3() -> _Parts:
    from transformers import PixtralImageProcessorPil

    tokens = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
    reply = _PARTS.replace("IMAGE", "")
    parts = _Parts(
        _tokenizer(tokens, ("[INST]", "[/INST]")),
        PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size={"height": 14, "width": 14}),
        {
            "text_config": {"model_type": "mistral", **_TEXT, "sliding_window": None, "head_dim": 8},
            "vision_config": {"model_type": "pixtral", **_VISION, "image_size": 112, "patch_size": 14, "head_dim": 8},
            "spatial_merge_size": 2,
            "vision_feature_layer": -1,
        },
        {
            "patch_size": 14,
            "spatial_merge_size": 2,
            "chat_template": f"{{{{ bos_token }}}}{_TURNS}{{% if m['role'] == 'user' %}}[INST]"
            f"{_PARTS.replace('IMAGE', '[IMG]')}[/INST]{{% elif m['role'] == 'assistant' %}}"
            f"{reply}{{{{ eos_token }}}}{{% else %}}{reply}{{% endif %}}{{% endfor %}}",
        },
    )
    parts.config["image_token_id"] = parts.id("[IMG]")
    return parts


def _qwen2_vl() -> _Parts:
    return _qwen("qwen2_vl", 14, {"embed_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2})


def _qwen2_5_vl() -> _Parts:
    vision = {"hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 4, "out_hidden_size": 32}
    return _qwen("qwen2_5_vl", 14, {**vision, "fullatt_block_indexes": [1], "window_size": 56})


def _qwen3_vl() -> _Parts:
    vision = {"hidden_size": 32, "intermediate_size": 64, "depth": 3, "num_heads": 4, "out_hidden_size": 32}
    more = {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    return _qwen("qwen3_vl", 16, {**vision, **more})


def _qwen3_5() -> _Parts:
    """Hybrid: a layer of linear attention, and one of attention."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 4, "out_hidden_size": 32}
    parts = _qwen("qwen3_5", 16, {**vision, "num_position_embeddings": 64})
    parts.config["text_config"] |= {
        "head_dim": 16,
        "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5},
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    return parts


def _qwen(model_type: str, patch: int, vision: dict[str, Any]) -> _Parts:
    from transformers import Qwen2VLImageProcessorPil

    low = (2 * patch) ** 2
    high = (8 * patch) ** 2
    tokens = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    more = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>")
    text = {"model_type": f"{model_type}_text", **_TEXT, "rope_parameters": _ROPE}
    if model_type == "qwen3_vl":
        text["head_dim"] = 8
    parts = _Parts(
        _tokenizer(tokens, more, eos="<|im_end|>"),
        Qwen2VLImageProcessorPil(patch_size=patch, min_pixels=low, max_pixels=high),
        {"text_config": text, "vision_config": {**vision, "patch_size": patch, "in_channels": 3}},
        {"chat_template": _CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")},
    )
    parts.config |= {f"{name}_id": parts.id(token) for name, token in tokens.items()}
    parts.config |= {f"{name[2:-2]}_token_id": parts.id(name) for name in more[1:]}
    return parts


def _smolvlm() -> _Parts:
    from transformers import SmolVLMImageProcessorPil

    tokens = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
        "video_token": "<video>",
    }
    tiles = tuple(f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2))
    turn = f"{_TURNS}{{{{ m['role'] | capitalize }}}}: {_PARTS.replace('IMAGE', '<image>')}"
    parts = _Parts(
        _tokenizer(tokens, tiles, eos="<end_of_utterance>"),
        SmolVLMImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}),
        {
            "text_config": {"model_type": "llama", **_TEXT},
            "vision_config": {"model_type": "smolvlm_vision", **_VISION, "image_size": 28, "patch_size": 7},
            "scale_factor": 2,
        },
        {
            "image_seq_len": 4,
            "chat_template": f"<s>{turn}<end_of_utterance>\n{{% endfor %}}"
            "{% if add_generation_prompt %}Assistant:{% endif %}",
        },
    )
    parts.config["image_token_id"] = parts.id("<image>")
    return parts


def _gemma3() -> _Parts:
    from transformers import Gemma3ImageProcessorPil

    tokens = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    parts_of = _PARTS.replace("{{ c['text'] }}", "{{ c['text'] | trim }}").replace("IMAGE", "<start_of_image>")
    template = (  # as the real one: roles must alternate, and a system text stands in front of the first turn
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{% set prefix = messages[0]['content'][0]['text'] + '\n\n' %}{% set turns = messages[1:] %}"
        "{% else %}{% set prefix = '' %}{% set turns = messages %}{% endif %}{% for m in turns %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{% if loop.first %}{{ prefix }}{% endif %}"
        f"{parts_of}<end_of_turn>\n{{% endfor %}}{{% if add_generation_prompt %}}<start_of_turn>model\n{{% endif %}}"
    )
    parts = _Parts(
        _tokenizer(tokens, ("<start_of_turn>", "<end_of_turn>")),
        Gemma3ImageProcessorPil(size={"height": 56, "width": 56}),
        {
            "text_config": {
                "model_type": "gemma3_text",
                **_TEXT,
                "head_dim": 8,
                "query_pre_attn_scalar": 8,
                "sliding_window": 12,  # shorter than a prompt, so that tests meet the window
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "vision_config": {"model_type": "siglip_vision_model", **_VISION, "image_size": 56, "patch_size": 14},
            "mm_tokens_per_image": 4,
        },
        {
            "image_seq_length": 4,
            "chat_template": template,
        },
    )
    names = {"image_token_id": "image_token", "boi_token_id": "boi_token", "eoi_token_id": "eoi_token"}
    parts.config |= {key: parts.id(tokens[name]) for key, name in names.items()}
    parts.config["eos_token_id"] = [parts.id("</s>"), parts.id("<end_of_turn>")]
    return parts


def _internvl() -> _Parts:
    from transformers import GotOcr2ImageProcessorPil

    tokens = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    vision = {"model_type": "internvl_vision", **_VISION, "image_size": [28, 28], "patch_size": [7, 7]}
    parts = _Parts(
        _tokenizer(tokens, ("<|im_start|>",), eos="<|im_end|>"),
        GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, max_patches=3, crop_to_patches=True),
        {"text_config": {"model_type": "qwen2", **_TEXT}, "vision_config": vision, "image_seq_length": 4},
        {"image_seq_length": 4, "chat_template": _CHATML.replace("IMAGE", "<IMG_CONTEXT>\n")},
    )
    parts.config["image_token_id"] = parts.id("<IMG_CONTEXT>")
    return parts


FAMILIES: dict[str, Callable[[], _Parts]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_5": _qwen3_5,
    "smolvlm": _smolvlm,
    "gemma3": _gemma3,
    "internvl": _internvl,
    "mistral3": _mistral3,
}


def write_tiny_vlm(family: str, folder: str | Path, *, seed: int = 0) -> Path:
    """Write a tiny random model, its processor and its tokenizer.

    Args:
        family: One of ``FAMILIES``.
        folder: Created if missing; name it as ``model`` of :class:`~safe_rlhf_v.models.hf_vlm.HFVLM`.
        seed: Seed of the weights; the global random state is left alone.

    Returns:
        ``folder``.

    Raises:
        ValueError: If the family is unknown.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from safe_rlhf_v.models.hf_families import image_only_processor, save_processor

    if family not in FAMILIES:
        raise ValueError(f"no tiny {family!r}; families: {', '.join(FAMILIES)}")
    folder = Path(folder)
    parts = FAMILIES[family]()
    tokenizer = parts.tokenizer
    vocabulary = len(parts.tokenizer)
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    ids["eos_token_id"] = parts.config.pop("eos_token_id", tokenizer.eos_token_id)
    parts.config["text_config"] |= {"vocab_size": vocabulary, **ids}
    config = AutoConfig.for_model(family, **parts.config, tie_word_embeddings=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if (
                parameter.dim() > 1 and not parameter.any()
            ):  # Gemma 3's projector starts at zero and would hide pictures
                torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.update(**ids)
    model.save_pretrained(folder)
    save_processor(image_only_processor(config, parts.image_processor, tokenizer, parts.processor), folder)
    return folder


def main(argv: list[str] | None = None) -> None:
    """Command line: family and folder."""
    parser = argparse.ArgumentParser(description="Write a tiny random vision-language model as a Hugging Face folder.")
    parser.add_argument("family", choices=list(FAMILIES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    print(write_tiny_vlm(args.family, args.folder, seed=args.seed))


if __name__ == "__main__":
    main()
