"""Prompts in a model's own chat format, from texts that nobody checked."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from safe_rlhf_v.records import Context, Turn

FALLBACK_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] | upper }}: {% endif %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""Prompt of a processor and tokenizer without chat template: ``USER: <image>\\n{question} ASSISTANT:``, as LLaVA-1.5 has it."""

_MARK = "RESPONSE"
_QUESTION = "QUESTION"
_ALONE = Context()


class PromptWriter:
    """Writes conversations in the model's own chat format.

    The template is the processor's, else the tokenizer's, else :data:`FALLBACK_TEMPLATE`. Control tokens spelled out in a
    text are split by a space (``<image>`` becomes ``< image>``), so that no text acts as a control token. If the template has
    no system role, the system text stands in front of the user's first turn. What the template would leave out is refused.

    Attributes:
        end_id: Id of the token that ends a response: what the template writes after one, if the model stops there.
        banned_ids: Ids that must never be sampled: all special tokens except the end token, placeholders, unused rows.
    """

    def __init__(self, processor: Any, config: Any, generation_config: Any) -> None:
        """Read template, control tokens and end token.

        Args:
            processor: The model's processor.
            config: The model's config.
            generation_config: Its generation config, which names the tokens that the model stops on.
        """
        self._tokenizer = tokenizer = processor.tokenizer
        template = processor.chat_template or tokenizer.chat_template or FALLBACK_TEMPLATE
        self._template = template["default"] if isinstance(template, dict) else template
        self._placeholder = processor.image_token
        added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        control = sorted({*added.values(), self._placeholder}, key=len, reverse=True)
        self._control = re.compile("|".join(re.escape(token) for token in control if len(token) > 1))
        self._assistant_parts = self._takes("assistant", parts=True)
        self._system = self._system_form()
        stops = generation_config.eos_token_id
        self.end_id = self._end({tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])})
        config_ids = {
            v for k, v in config.to_dict().items() if k.endswith(("_token_id", "_token_index")) and type(v) is int
        }
        vocabulary = range(config.get_text_config().vocab_size)  # configs name ids beyond it, or -1 for none
        banned = {*added, *config_ids, *vocabulary[len(tokenizer) :]} - {self.end_id}
        self.banned_ids = tuple(sorted(i for i in banned if i in vocabulary))

    def write(self, question: str, images: int, context: Context = _ALONE) -> str:
        """A prompt with one unexpanded placeholder per image, up to the start of the response.

        Args:
            question: The user's last turn.
            images: Number of images of the whole conversation.
            context: What stands before the question.

        Raises:
            ValueError: If the chat template refuses the conversation, or leaves out a part of it.
        """
        system = context.system
        turns = list(context.turns(question, images))
        if system and self._system == "none":
            turns[0] = turns[0]._replace(text=f"{system}\n\n{turns[0].text}")
            system = ""
        turns = [turn._replace(text=self._as_text(turn.text)) for turn in turns]
        messages = [self._message(turn) for turn in turns]
        if system:
            system = self._as_text(system)
            messages.insert(0, self._content("system", system, parts=self._system == "parts"))
        try:
            prompt = self._render(messages, generate=True)
        except Exception as error:  # a template raises what it likes
            raise ValueError(f"the model's chat template refuses the conversation ({_one_line(error)})") from None
        if system.strip() not in prompt or not _in_order([turn.text.strip() for turn in turns], prompt):
            raise ValueError("the model's chat template leaves out a part of the conversation")
        return prompt

    def _as_text(self, text: str) -> str:
        return self._control.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def _message(self, turn: Turn) -> dict[str, Any]:
        parts = "image" in self._template and (turn.role == "user" or self._assistant_parts)
        return self._content(turn.role, turn.text, turn.images, parts=parts)

    def _content(self, role: str, text: str, images: int = 0, *, parts: bool) -> dict[str, Any]:
        if parts:
            return {"role": role, "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}
        return {"role": role, "content": f"{self._placeholder}\n" * images + text}  # of a text-only template

    def _system_form(self) -> Literal["parts", "text", "none"]:
        """How the template takes a system text; ``none`` if it has no such role."""
        if "image" in self._template and self._takes("system", parts=True):
            return "parts"
        return "text" if self._takes("system", parts=False) else "none"

    def _takes(self, role: str, *, parts: bool) -> bool:
        """Whether the template writes a text of this role as text, and a system text otherwise than a turn of the assistant."""
        question = self._message(Turn("user", _QUESTION))
        text = self._content(role, _MARK, parts=parts)
        try:
            if role == "assistant":
                rendered = self._render([question, text], generate=False)
            else:
                rendered = self._render([text, question], generate=True)
        except Exception:  # a template raises what it likes
            return False
        if _MARK not in rendered or "'text'" in rendered:  # left out, or written as Python writes a list
            return False
        return role == "assistant" or rendered != self._as_assistant(question)

    def _as_assistant(self, question: dict[str, Any]) -> str:
        """The prompt with the mark as a turn of the assistant in front, "" if the template refuses that."""
        try:
            return self._render([self._message(Turn("assistant", _MARK)), question], generate=True)
        except Exception:  # a template raises what it likes
            return ""

    def _render(self, messages: Sequence[dict[str, Any]], generate: bool) -> str:
        text = self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=generate
        )
        return str(text)

    def _end(self, stops: set[int | None]) -> int:
        messages = [self._message(Turn("user", "?")), self._message(Turn("assistant", _MARK))]
        try:
            text = self._render(messages, generate=False)
        except Exception:  # a template that writes no response
            return int(self._tokenizer.eos_token_id)
        after = self._tokenizer(text.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"]
        return next((int(i) for i in after if i in stops), int(self._tokenizer.eos_token_id))


def _in_order(texts: Sequence[str], prompt: str) -> bool:
    """Whether the texts occur in the prompt one after another."""
    at = 0
    for text in texts:
        at = prompt.find(text, at)
        if at < 0:
            return False
        at += len(text)
    return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
