"""The model card: what the model is, what it was trained on, what was measured, and what it is not for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from safe_rlhf_v.export.trained import Trained
from safe_rlhf_v.guard.calibration import run_home
from safe_rlhf_v.records.markdown import escaped, table
from safe_rlhf_v.records.taxonomy import LEVEL_NAMES
from safe_rlhf_v.records.user_files import FileError, read_bounded
from safe_rlhf_v.shards import Manifest, ShardError
from safe_rlhf_v.shards.manifest import WORLD_ORIGIN
from safe_rlhf_v.training.checkpoints import CheckpointError
from safe_rlhf_v.training.stored_config import leads_out, stored_options

MEASURED = ("metrics.json", "assessment.json", "evaluation/summary.json")
"""Files of a run folder that hold measurements."""
_MAX_BYTES = 10_000_000
_MAX_ROWS = 80
_TITLES = {
    "policy": "A policy: it responds to a prompt with pictures",
    "reward": "A reward model: how helpful a response is",
    "cost": "A cost model: how harmful a response is",
    "guard": "A guard: how safe a response, and how hazardous a prompt is",
}
_USES = {
    "policy": (
        "Responds to questions about pictures. It was trained to be helpful while the mean of a *learned* cost stays within a "
        "budget where the table below names one. A budget that is met bounds the learned cost, not true harm: judge responses "
        "by something that had no part in the training before anybody relies on them, and put a guard behind it."
    ),
    "reward": (
        "Orders responses to one prompt: higher is more helpful. Values of different prompts, and zero, mean nothing by "
        "themselves. It says nothing about safety."
    ),
    "cost": (
        "Scores one response: higher is more harmful, and a cost above 0 means harmful (sigmoid(cost) is the model's probability "
        "of harm where it was trained with a sign term). It says nothing about helpfulness, and is no moderation system."
    ),
    "guard": (
        "Gives the probability of each of seven safety levels for a response, of a hazardous prompt, and of harm categories. "
        "These are the bare model's numbers: the library's own guard (`moderate`) also reads disguised text in several ways, "
        "looks at every picture of an animation, refuses what its training did not cover, and fails closed. This folder does not."
    ),
}


def write_card(
    trained: Trained, path: Path, settings: dict[str, Any], data: Path | None, difference: float | None
) -> str:
    """The card as Markdown.

    Args:
        trained: The run.
        path: Its folder or checkpoint.
        settings: ``export.json``.
        data: Shard folder that it was trained on, in place of the one that the run names.
        difference: Of the folder's values from the run's; ``None`` if they were not compared.
    """
    manifest = _manifest(trained, data)
    sections = [
        _front(settings, manifest),
        f"# {_TITLES[trained.kind]}",
        _about(settings, difference),
        f"## Intended use\n\n{_USES[trained.kind]}",
        f"## How to load it\n\n{_how(settings)}",
        f"## Data\n\n{_data(manifest)}",
        *_budget(trained),
        *_calibration(trained, settings),
        f"## Measured\n\n{_measured(path)}",
        f"## Limits\n\n{_limits(trained, manifest)}",
        f"## Licence\n\n{_licence(settings, manifest)}",
    ]
    return "\n\n".join(sections) + "\n"


def _front(settings: dict[str, Any], manifest: Manifest | None) -> str:
    """Metadata that hubs read; the licence is the user's to choose."""
    meta: dict[str, Any] = {
        "library_name": {"adapter": "peft", "clip": "pytorch"}.get(settings["form"], "transformers"),
        "tags": ["safe_rlhf_v", settings["kind"]],
        "license": "other",
        "license_name": "see-the-section-licence",
    }
    if settings["base"]:
        meta["base_model"] = settings["base"]
    if settings["form"] in ("policy", "adapter"):
        meta["pipeline_tag"] = "image-text-to-text"
    if manifest is not None and manifest.origin.get("dataset") == WORLD_ORIGIN:
        meta["tags"].append("synthetic-data")
    return f"---\n{yaml.safe_dump(meta, sort_keys=False)}---"


def _about(settings: dict[str, Any], difference: float | None) -> str:
    compared = "not compared" if difference is None else f"{difference:.1e} of their size"
    rows = {
        "Kind": settings["kind"],
        "Run": f"{settings['run']}, step {settings['step']}",
        "Base model": settings["base"] or "none: trained from random weights",
        **({"Revision of the base": revision} if (revision := settings.get("revision")) else {}),
        "Written by": settings["written_by"],
        "Loads with": settings["loads_with"],
        "Dtype": settings["dtype"],
        **({"Base in training": stored} if (stored := settings.get("quantization")) else {}),
        "Difference of this folder's values from the run's, on two probes": compared,
    }
    left = "".join(f"\n- {escaped(part)}" for part in settings["left_out"])
    return table(("", ""), rows.items()) + (f"\n\nNot in this folder:\n{left}" if left else "")


def _how(settings: dict[str, Any]) -> str:
    picture = "from PIL import Image\n"
    ask = '([Image.open("photo.jpg")], "Can I drink this?"'
    if settings["form"] == "clip":
        call = f'model{ask}, "Yes, it is safe.")' if settings["outputs"] else f"model.respond{ask})"
        code = f'{picture}from loader import Model\n\nmodel = Model(".")\n{call}'
    elif settings["form"] == "scorer":
        code = f'{picture}from loader import Scorer\n\nmodel = Scorer(".")\nmodel{ask}, "Yes, it is safe.")'
    elif settings["form"] == "adapter":
        revision = f', revision="{settings["revision"]}"' if settings.get("revision") else ""
        stored = settings.get("quantization")
        note = f"# trained on a base stored as {stored}: a plain one gives slightly other numbers\n" if stored else ""
        code = (
            "from peft import PeftModel\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
            f'{note}base = AutoModelForImageTextToText.from_pretrained("{settings["base"]}"{revision})\n'
            'model = PeftModel.from_pretrained(base, ".")\nprocessor = AutoProcessor.from_pretrained(".")'
        )
    else:
        code = (
            "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
            'model = AutoModelForImageTextToText.from_pretrained(".")\nprocessor = AutoProcessor.from_pretrained(".")'
        )
    if settings["kind"] == "guard":
        code = f"from levels import verdict\n{code}".replace("\nmodel(", "\noutputs = model(")
        code += "\nverdict(outputs, model.settings)"
    more = ""
    if settings.get("class") == "AutoModelForSequenceClassification":
        more = (
            "\n\n`transformers.AutoModelForSequenceClassification` loads the same weights with their head; its input is the "
            "prompt in the chat template, the response as plain text, and the end token, as `loader.py` writes it."
        )
    return f"In this folder:\n\n```python\n{code}\n```{more}"


def _manifest(trained: Trained, data: Path | None) -> Manifest | None:
    """Of the training data, if they are at hand.

    Raises:
        ShardError: If the named folder holds none.
    """
    if data is not None:
        return Manifest.load(data)
    try:
        stored = stored_options(trained.run.stage, "data").get("path")
        return Manifest.load(stored) if isinstance(stored, str) and not leads_out(stored) else None
    except (ShardError, CheckpointError):
        return None


def _data(manifest: Manifest | None) -> str:
    if manifest is None:
        return "The shard folder was not at hand when this was written (`--data` names it)."
    rows = {
        "Name": manifest.name,
        "Licence": manifest.licence,
        **manifest.origin,
        "Manifest (SHA-256)": manifest.digest,
    }
    sizes = [(name, split.samples, split.groups) for name, split in manifest.splits.items()]
    return f"{table(('', ''), rows.items())}\n\n{table(('Split', 'Records', 'Image groups'), sizes)}"


def _budget(trained: Trained) -> Iterator[str]:
    """The constraint of a policy that has one."""
    try:
        dual = stored_options(trained.run.stage, "model").get("dual")
        constraints = stored_options(trained.run.stage, "model").get("constraints")
    except CheckpointError:
        return
    if not isinstance(dual, dict):
        return
    stored = dual.get("init_args")
    options = stored if isinstance(stored, dict) else {}
    rows = {
        "Rule of the multiplier": str(dual.get("class_path")),
        **{name: json.dumps(v) for name, v in options.items()},
    }
    rows |= {"constraints": json.dumps(constraints)} if constraints else {}
    for name, value in trained.run.stage["state_dict"].items():
        if name.startswith("dual.") and value.numel() <= 8:
            rows[f"at the end: {name.removeprefix('dual.')}"] = ", ".join(f"{x:.4g}" for x in value.flatten().tolist())
    numbers = table(("", ""), rows.items())
    yield (
        "## Budget\n\nThe budget is the mean learned cost that the training allowed; its unit is the spread of the starting "
        f"policy's cost unless scores were not normalised. Below 0 a response counts as harmless.\n\n{numbers}"
    )


def _calibration(trained: Trained, settings: dict[str, Any]) -> Iterator[str]:
    if trained.kind != "guard":
        return
    if not settings["calibrated"]:
        yield "## Calibration\n\n**None.** Temperatures are 1, and there are no thresholds: run `calibrate`, then export."
        return
    numbers = table(("", ""), [(name, f"{value:.6g}") for name, value in settings["calibration"].items()])
    levels = ", ".join(f"{level:+d} {name}" if level else f"0 {name}" for level, name in LEVEL_NAMES.items())
    facts = [
        (name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else value)
        for name, value in settings["certificate"].items()
    ]
    measured = (
        "What was measured when the thresholds were chosen. They bound *false alarms* (`fpr upper`, on data like these); misses "
        "are not bounded, and `recall lower` and `severe recall lower` (levels -2 and -3) say how many are caught at least.\n\n"
        f"{table(('', ''), facts)}\n\n"
    )
    yield (
        f"## Calibration\n\nFitted on data used for nothing else; `block` and `review` are thresholds.\n\n{numbers}\n\n"
        f"{measured if facts else ''}Levels: {levels}; below 0 is harmful."
    )


def _measured(path: Path) -> str:
    """Every number in the run folder's files of measurements."""
    home = run_home(path)
    parts: list[str] = []
    for name in MEASURED:
        if not (home / name).is_file():
            continue
        try:
            content = json.loads(read_bounded(home / name, _MAX_BYTES))
        except (FileError, ValueError, RecursionError):
            parts.append(f"`{name}` could not be read.")
            continue
        rows = list(_numbers(_by_place(content)))
        more = f"\n\n{len(rows) - _MAX_ROWS} more numbers stand in the file." if len(rows) > _MAX_ROWS else ""
        parts.append(f"From `{name}`:\n\n{table(('', ''), rows[:_MAX_ROWS])}{more}")
    return "\n\n".join(parts) or "Nothing: the run folder holds no results of `test`, `calibrate` or `evaluate`."


def _by_place(content: Any) -> Any:
    """The figures of an evaluation with the real pictures, by their place; anything else as it is."""
    if not isinstance(content, dict) or not isinstance(content.get("figures"), list):
        return content
    figures = [one for one in content["figures"] if isinstance(one, dict) and one.get("picture") == "real"]
    parts = ("policy", "split", "mode", "judge", "name")
    return {" / ".join(str(one[part]) for part in parts if one.get(part)): one.get("value") for one in figures}


def _numbers(content: Any, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _numbers(value, f"{place} / {name}" if place else str(name))
    elif isinstance(content, (int, float)) and not isinstance(content, bool):
        yield place, f"{content:.4g}"


def _limits(trained: Trained, manifest: Manifest | None) -> str:
    lines = ["It knows what its data showed it; other kinds of pictures, languages and harms are not covered.",
             "Models of preferences inherit the annotators' opinions and mistakes.",
             "It was not hardened against people who try to deceive it."]  # fmt: skip
    if manifest is not None and manifest.origin.get("dataset") == WORLD_ORIGIN:
        lines.insert(
            0, "**Trained on synthetic data (the embedded world): an illustration, of no use on real pictures.**"
        )
    return "\n".join(f"- {line}" for line in lines)


def _licence(settings: dict[str, Any], manifest: Manifest | None) -> str:
    base = escaped(str(settings["base"])) if settings["base"] else "none"
    data = escaped(manifest.licence) if manifest is not None else "not at hand"
    return (
        f"Weights derived from a base model are under that model's licence (base: {base}), and the data may bind, too (data: "
        f"{data}). Whoever publishes this folder names the licence here and in the first lines of this page."
    )
