"""Self-tests of Hugging Face families, kept in the user's cache: one file per config and version.

A cache that cannot be read or written costs the seconds of another test, and nothing else.
"""

import hashlib
import json
import logging
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from safe_rlhf_v import __version__
from safe_rlhf_v.models import family_check
from safe_rlhf_v.models.family_check import FamilyReport
from safe_rlhf_v.models.family_shrink import plain_cpu
from safe_rlhf_v.records.user_files import write_whole

_LOG = logging.getLogger(__name__)
_WIDE_LIMIT = 1_000_000_000
"""Parameters of the largest copy of full width that is tried."""


def family_report(backbone: Any) -> FamilyReport | None:
    """Test a backbone's family, or read what an earlier test found; rows are not packed where that is wrong.

    Args:
        backbone: An ``HFVLM``; its ``packs`` follows the report.

    Returns:
        The report; ``None`` while networks are only planned, on the meta device.

    Raises:
        ValueError: If the family fails, in one line that says what.
    """
    if torch.get_default_device().type == "meta" or next(backbone.parameters()).is_meta:
        return None
    file = cache_folder() / f"{_key(backbone)}.json"
    report = read_report(file)
    if report is None:
        report = tested(backbone)
        if not report.refused:  # a refusal may come from a package that is missing today
            write_report(file, report)
        _LOG.log(logging.WARNING if report.switched else logging.INFO, report.line)
    if report.refused:
        raise ValueError(f"{report.line}; self_test: false skips the test")
    backbone.packs = report.packs
    return report


def cache_folder() -> Path:
    """Where reports are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "safe_rlhf_v" / "families"


def read_report(file: Path) -> FamilyReport | None:
    """A stored report; ``None`` if there is none, or no whole one."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        report = FamilyReport(
            stored["family"], tuple(stored["passed"]), tuple(stored["switched"]), stored["refused"], stored["packs"]
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    texts = (report.family, report.refused, *report.passed, *report.switched)
    valid = all(isinstance(text, str) for text in texts) and isinstance(report.packs, bool)
    return report if valid else None


def write_report(file: Path, report: FamilyReport) -> None:
    """Store a report; whoever reads at the same time sees the old file or the new one."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(report._asdict()).encode())


def _key(backbone: Any) -> str:
    """Hash of everything that decides a report: config, processor, what is trained, and the versions of the code."""
    import transformers

    config = {k: v for k, v in backbone.model.config.to_dict().items() if k not in ("_name_or_path", "dtype")}
    parts = {
        "config": config,
        "generation": backbone.model.generation_config.to_dict(),
        "image_processor": backbone.processor.image_processor.to_dict(),
        "processor": backbone.processor.to_dict(),
        "template": [backbone.processor.chat_template, backbone.tokenizer.chat_template],
        "tokenizer": [type(backbone.tokenizer).__name__, len(backbone.tokenizer)],
        "freezing": backbone._freezing,
        "lora": repr(backbone.lora),
        "versions": [__version__, transformers.__version__, torch.__version__, _own_code()],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


@cache
def _own_code() -> str:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def tested(backbone: Any) -> FamilyReport:
    """Test a narrow copy; one of full width has the last word where the narrow one is not wholly right.

    Args:
        backbone: An ``HFVLM``, which is not changed.
    """
    with plain_cpu():
        return _tested(backbone)


def _tested(backbone: Any) -> FamilyReport:
    report: FamilyReport | None = None
    for narrow in (True, False):
        try:
            twin = backbone.small_copy(narrow)
        except Exception as error:  # a config can be too odd to be shrunk
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            failed = FamilyReport(
                str(backbone.model.config.model_type), (), (), f"small copy: {type(error).__name__}: {first}", True
            )
            report = report or failed
            continue
        if not narrow and sum(p.numel() for p in twin.parameters()) > _WIDE_LIMIT:
            break
        report = family_check.run_checks(twin)
        if not report.refused and report.packs == backbone.packs:
            break
    assert report is not None
    return report
