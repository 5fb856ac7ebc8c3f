"""The self-test of a family: right families pass, every kind of fault is found, and reports are kept."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from safe_rlhf_v.models import family_check, family_reports
from safe_rlhf_v.models import hf_families as families
from safe_rlhf_v.models.family_shrink import shrunk_config
from safe_rlhf_v.models.hf_vlm import HFVLM
from safe_rlhf_v.models.tiny import FAMILIES, write_tiny_vlm
from safe_rlhf_v.models.types import ImageFeatures

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "families.md"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    written: dict[str, str] = {}

    def of(family: str) -> str:
        if family not in written:
            written[family] = str(write_tiny_vlm(family, tmp_path_factory.mktemp(family)))
        return written[family]

    return of


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "safe_rlhf_v" / "families"


def load(folder: str, **options: Any) -> HFVLM:
    return HFVLM(model=folder, local_files_only=True, **options)


def table(*header: str) -> list[list[str]]:
    """Cells of the rows of the page's table that begins with these words."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {' | '.join(header)}"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_page_lists_what_is_tested() -> None:
    rows = table("Family (`model_type`)")
    assert [row[0].strip("`") for row in rows] == list(FAMILIES)
    assert {row[4] for row in rows} == {"contract, generate, self-test"}
    checks = [row[0] for row in table("Check", "What must hold")]
    assert checks == [*family_check.CHECKS, "packed rows", "gradients"]
    for name in ("test_hf_contract", "test_hf_generate"):  # both run every tiny family
        assert re.search(
            r"params?(etrize\(\"family\", |=)list\(FAMILIES\)",
            (PAGE.parents[2] / f"tests/models/{name}.py").read_text(),
        )


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_tiny_family_passes(folders: Callable[[str], str], family: str) -> None:
    vlm = load(folders(family), freeze_tower=False, freeze_projector=False)
    report = vlm.family_report
    assert report is not None
    assert set(family_check.CHECKS) | {"gradients"} <= set(report.passed)
    hybrid = family == "qwen3_5"
    assert (report.packs, vlm.packs, bool(report.switched)) == (not hybrid, not hybrid, hybrid)
    cells = {row[0].strip("`"): row for row in table("Family (`model_type`)")}[family]
    assert cells[3].startswith("yes" if report.packs else "no: ")
    assert all(cell.startswith("yes") for cell in cells[1:3])  # in the checks that it passed
    assert "\n" not in report.line


def reading_padding(self: Any, input_ids: Tensor, mask: Tensor, *args: Any, **options: Any) -> Tensor:
    hidden: Tensor = TRUNK(self, input_ids, torch.ones_like(mask), *args, **options)
    return hidden


def changed(change: Callable[[list[Tensor]], list[Tensor]]) -> Callable[..., ImageFeatures]:
    encode = HFVLM.encode

    def other(self: HFVLM, images: Any) -> ImageFeatures:
        features = encode(self, images)
        return ImageFeatures(tuple(change(list(features.tokens))), features.levels)

    return other


def off_by_some(self: Any, *args: Any, cache: Any = None, **options: Any) -> Tensor:
    hidden: Tensor = TRUNK(self, *args, cache=cache, **options)
    return hidden if cache is None else hidden + 0.3 * hidden.flip(-1)


def off_by_some_packed(self: Any, input_ids: Tensor, mask: Tensor, *args: Any, **options: Any) -> Tensor:
    hidden: Tensor = TRUNK(self, input_ids, mask, *args, **options)
    return hidden if mask.dim() == 2 else hidden + 0.3 * hidden.flip(-1)


TRUNK = HFVLM.trunk
FAULTS: dict[str, tuple[str, Any]] = {
    "padded rows": ("trunk", reading_padding),
    "placeholders": ("encode", changed(lambda tokens: [t[1:] for t in tokens])),
    "pictures are seen": ("encode", changed(lambda tokens: [torch.zeros_like(t) for t in tokens])),
    "features equal pixels": ("encode", changed(lambda tokens: [2 * t.flip(-1) for t in tokens])),
    "features alone": ("encode", changed(lambda tokens: [t * (1 + 0.01 * (len(tokens) - 1)) for t in tokens])),
    "cached decoding": ("trunk", off_by_some),
    "gradients": ("encode", changed(lambda tokens: [t.detach() for t in tokens])),
}


@pytest.mark.parametrize("check", list(FAULTS))
def test_each_fault_is_found(folders: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    monkeypatch.setattr(HFVLM, *FAULTS[check])
    with pytest.raises(ValueError, match=f"^model_type 'llava' fails its self-test: {check}: .*self_test: false") as e:
        load(folders("llava"), freeze_tower=False, freeze_projector=False)
    assert "\n" not in str(e.value)
    load(folders("llava"), freeze_tower=False, freeze_projector=False, self_test=False)


def test_a_placeholder_that_can_be_sampled_is_found(folders: Callable[[str], str]) -> None:
    twin = load(folders("llava"), self_test=False).small_copy(narrow=True)
    twin.banned_ids = ()
    assert "can be sampled" in family_check.run_checks(twin).refused


@pytest.mark.parametrize("family", ["qwen3_5", "llava"])
def test_rows_are_not_packed_where_that_is_wrong(
    folders: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Found by numbers, too, and not only by the names of the layers."""
    monkeypatch.setattr(families, "packs", lambda config: True)
    if family == "llava":
        monkeypatch.setattr(HFVLM, "trunk", off_by_some_packed)
    else:
        monkeypatch.setattr(
            HFVLM,
            "new_cache",
            lambda self, room: DynamicCache(config=self.model.config.get_text_config()),
        )
        monkeypatch.setattr(family_check, "CHECKS", {})  # that cache has no rows to repeat
    vlm = load(folders(family))
    assert vlm.family_report is not None
    assert not vlm.packs
    assert vlm.family_report.switched[0].startswith(
        "rows are not packed, as packed rows: hidden states packed and alone"
    )
    prompts = family_check.example_prompts()
    assert len(vlm.prepare(prompts, family_check.RESPONSES, packed=True).tokens.input_ids) == 6


def test_a_report_is_kept_and_belongs_to_one_config(
    folders: Callable[[str], str], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(folders("llava")).family_report
    (file,) = own_cache.iterdir()
    monkeypatch.setattr(family_check, "run_checks", lambda twin: pytest.fail("tested again"))
    assert load(folders("llava")).family_report == first
    with pytest.raises(pytest.fail.Exception, match="tested again"):
        load(folders("llava"), freeze_projector=False)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache.parents[1]))
    for broken in ("", "{", "[]", "null", json.dumps({"family": 3}), "\udce9".encode("utf-8", "surrogateescape")):
        file.write_bytes(broken) if isinstance(broken, bytes) else file.write_text(broken)
        assert family_reports.read_report(file) is None
    assert load(folders("llava")).family_report == first
    assert family_reports.read_report(file) == first


def test_a_cache_that_cannot_be_written_costs_only_the_test(
    folders: Callable[[str], str], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache.parents[1].write_text("a file where the folder should be")
    assert load(folders("llava")).family_report is not None


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_does_not_matter_under_what_a_network_is_built(
    folders: Callable[[str], str], context: Callable[[], Any]
) -> None:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with context(), torch.autocast("cpu", dtype=torch.bfloat16):
            report = load(folders("llava"), freeze_tower=False).family_report
    finally:
        torch.set_default_dtype(default)
    assert report is not None and "gradients" in report.passed


def test_nothing_is_tested_on_the_meta_device(folders: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_check, "run_checks", lambda twin: pytest.fail("tested"))
    vlm = load(folders("llava"), self_test=False).to("meta")
    assert family_reports.family_report(vlm) is None


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5", "llava_next"])
def test_small_copies_keep_the_structure(folders: Callable[[str], str], family: str) -> None:
    config = load(folders(family), self_test=False).model.config
    text = config.get_text_config()
    options = config.to_dict()
    kinds = getattr(text, "layer_types", None)
    if kinds:  # as in real ones, many layers of two kinds
        options["text_config"] |= {"num_hidden_layers": 8, "layer_types": [*kinds[:1] * 7, kinds[1]]}
    for narrow in (True, False):
        small = shrunk_config(type(config).from_dict(options), narrow).get_text_config()
        assert small.num_hidden_layers == (2 if kinds else 1)
        assert (getattr(small, "layer_types", None) or None) == (kinds or None)
        assert small.vocab_size == text.vocab_size
        ratio = text.num_attention_heads // text.num_key_value_heads
        assert small.num_attention_heads // small.num_key_value_heads == ratio
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        assert (getattr(small, "head_dim", None) or small.hidden_size // small.num_attention_heads) == head
