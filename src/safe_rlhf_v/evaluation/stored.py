"""Ready responses out of a file as a policy: of any model, from anywhere."""

import codecs
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_rlhf_v.construct.stage import file_content
from safe_rlhf_v.evaluation.policies import Policy
from safe_rlhf_v.policy.answers import Answer
from safe_rlhf_v.records import Record
from safe_rlhf_v.records.parsing import RecordError, check_text, parse_json
from safe_rlhf_v.records.user_files import open_regular

if TYPE_CHECKING:  # torch: seconds to import
    from safe_rlhf_v.models.sampling import SamplingOptions

_MOST = 10_000_000


class ResponsesFile(Policy):
    """Responses out of a JSONL file: one object per line, with the key of the record and the response.

    A line that is not plainly a response stops the evaluation and is named. Records without a line are counted as missing.

    YAML::

        policies:
          theirs: {class_path: safe_rlhf_v.evaluation.ResponsesFile, init_args: {file: theirs.jsonl, families: [qwen]}}
    """

    samples = False

    def __init__(self, file: str, key: str = "key", response: str = "response", families: Sequence[str] = ()) -> None:
        """Name the file.

        Args:
            file: JSON lines.
            key: Name of the field that holds the key of the record.
            response: Name of the field that holds the response.
            families: Families of models that wrote the responses, as qwen.
        """
        self.file = file
        self.key = key
        self.response = response
        self.families = tuple(families)
        self._texts: dict[str, str] | None = None

    @property
    def about(self) -> str:
        """See :class:`~safe_rlhf_v.evaluation.policies.Policy`."""
        return self.file

    def content(self) -> str:
        """See :class:`~safe_rlhf_v.construct.stage.Reads`."""
        return file_content(self.file)

    def check(self) -> None:
        self.texts()

    def check_keys(self, keys: Collection[str]) -> None:
        """Refuse a file about other prompts.

        Args:
            keys: Keys of all prompts.

        Raises:
            ValueError: If it has no response to any of them.
        """
        if not set(keys) & set(self.texts()):
            theirs = next(iter(self.texts()))
            raise ValueError(
                f"{self.file}: holds no response to any of the {len(keys)} prompts; its first {self.key} is {theirs!r:.60}, "
                f"that of the prompts {next(iter(keys))!r:.60}"
            )

    def respond(
        self, records: Sequence[Record], sampling: "SamplingOptions", seed: int, reference: Policy | None = None
    ) -> list[Answer]:
        texts = self.texts()
        return [Answer(texts[r.key]) if r.key in texts else Answer("", "missing") for r in records]

    def texts(self) -> dict[str, str]:
        """Response by key.

        Raises:
            ValueError: Naming the first line that is no response.
        """
        if self._texts is None:
            self._texts = self._read()
        return self._texts

    def _read(self) -> dict[str, str]:
        texts: dict[str, str] = {}
        lines: dict[str, int] = {}
        with open_regular(Path(self.file)) as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if not line.strip():
                    continue
                if number == 1 and line.lstrip().startswith(b"["):
                    raise ValueError(f"{self.file}, line 1: is a JSON list; give one JSON object per line")
                try:
                    body = parse_json(line, "", _MOST)
                except RecordError as error:
                    raise ValueError(f"{self.file}, line {number}: {error.problem}") from None
                key, text = (self._field(body, name, number) for name in (self.key, self.response))
                if key in texts:
                    raise ValueError(
                        f"{self.file}, line {number}: {self.key} {key!r:.100} stands in line {lines[key]} already; keep one"
                    )
                texts[key] = text
                lines[key] = number
        if not texts:
            raise ValueError(f"{self.file}: holds no response; give one JSON object per line")
        return texts

    def _field(self, body: dict[str, Any], name: str, number: int) -> str:
        value = body.get(name)
        if not isinstance(value, str):
            what = "is missing" if name not in body else f"is {json.dumps(value)[:60]}, not a text"
            raise ValueError(f"{self.file}, line {number}: the field {name!r} {what}")
        if problem := check_text(value):
            raise ValueError(f"{self.file}, line {number}: the field {name!r} {problem}")
        return value
