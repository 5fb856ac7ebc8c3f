"""Prompts in a model's own chat format, from texts that nobody checked."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from safe_rlhf_v.models.plain_inputs import chat_text, filled, message, plain_messages
from safe_rlhf_v.records import Context

FALLBACK_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] | upper }}: {% endif %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""What prompts look like without a chat template of processor or tokenizer, as LLaVA-1.5 writes them."""

_MARK = "RESPONSE"
_QUESTION = "QUESTION"
_ALONE = Context()


class PromptWriter:
    """Writes conversations in the model's own chat format.

    The template is the processor's, else the tokenizer's, else :data:`FALLBACK_TEMPLATE`. Control tokens spelled out in a
    text are split by a space (``<image>`` becomes ``< image>``), so that no text acts as a control token. If the template has
    no system role, the system text stands in front of the user's first turn. What the template would leave out is refused.

    Attributes:
        form: What :func:`~safe_rlhf_v.models.plain_inputs.chat_text` reads.
        end_id: Id of the token that ends a response: what the template writes after one, if the model stops there.
        banned_ids: Ids that must never be sampled: all special tokens and marks of turns except the end token, placeholders,
            unused rows.
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
        self.form: dict[str, Any] = {
            "template": template["default"] if isinstance(template, dict) else template,
            "placeholder": processor.image_token,
            "parts": [],
        }
        if "image" in self.form["template"]:
            self.form["parts"].append("user")  # the others are tried beside a question
            for role in ("assistant", "system"):
                if self._takes(role, parts=True):
                    self.form["parts"].append(role)
        self.form["system"] = "system" in self.form["parts"] or self._takes("system", parts=False)
        added = self._control_tokens()
        self.form["control"] = control_pattern({*added.values(), processor.image_token})
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
        return chat_text(self._tokenizer, self.form, context.system, context.turns(question, images))

    def messages(self, question: str, images: int, context: Context = _ALONE) -> list[tuple[str, str, int]]:
        """The conversation of :meth:`write` as (role, text, number of pictures), for a program that fills the template itself.

        Args:
            question: The user's last turn.
            images: Number of images of the whole conversation.
            context: What stands before the question.
        """
        return plain_messages(self.form, context.system, context.turns(question, images))

    def _takes(self, role: str, *, parts: bool) -> bool:
        """Whether the template writes a text of this role as text, and a system text otherwise than a turn of the assistant."""
        question = self._message("user", _QUESTION)
        text = message(self.form, role, _MARK, parts=parts)
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
            return self._render([self._message("assistant", _MARK), question], generate=True)
        except Exception:  # a template raises what it likes
            return ""

    def _message(self, role: str, text: str) -> dict[str, Any]:
        return message(self.form, role, text, parts=role in self.form["parts"])

    def _render(self, messages: Sequence[dict[str, Any]], generate: bool) -> str:
        return filled(self._tokenizer, self.form, messages, generate=generate)

    def _control_tokens(self) -> dict[int, str]:
        """Added tokens by id that no text may act as: special ones, and those by which the template marks turns."""
        turns = [self._message(role, _MARK) for role in ("user", "assistant", "user")]
        system = [self._message("system", _MARK)] if self.form["system"] else []
        written: list[str] = []
        for messages in ([*system, *turns], turns, turns[:1]):
            try:  # without the start of a response, which the model may write, too
                written.append(self._render(messages, generate=False))
            except Exception:  # a template raises what it likes
                continue
        return control_tokens(self._tokenizer, written)

    def _end(self, stops: set[int | None]) -> int:
        messages = [self._message("user", "?"), self._message("assistant", _MARK)]
        try:
            text = self._render(messages, generate=False)
        except Exception:  # a template that writes no response
            return int(self._tokenizer.eos_token_id)
        after = self._tokenizer(text.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"]
        return next((int(i) for i in after if i in stops), int(self._tokenizer.eos_token_id))


def control_tokens(tokenizer: Any, written: Iterable[str]) -> dict[int, str]:
    """Added tokens by id that no text may act as: special ones, and those in conversations that a chat template wrote.

    Args:
        tokenizer: Of the model; some add the marks of roles as plain tokens.
        written: Conversations without any added token in their texts.
    """
    marks = {int(i) for text in written for i in tokenizer(text, add_special_tokens=False)["input_ids"]}
    return {
        i: token.content
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.special or (i in marks and token.content.strip())  # line breaks may be added tokens, too
    }


def control_pattern(tokens: Iterable[str]) -> str:
    """Regular expression of control tokens, the longest first; "" for none."""
    longest_first = sorted(set(tokens), key=len, reverse=True)
    return "|".join(re.escape(token) for token in longest_first if len(token) > 1)
