"""``python -m safe_rlhf_v export``: a run's model as a folder that loads without this library."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from safe_rlhf_v.commands.options import AnyPath
from safe_rlhf_v.commands.runner import run as run_command

EXAMPLES = (
    "export runs/quickstart/cost exported/cost",
    "export runs/llava_1_5_7b/ppo_lag exported/policy --adapter --push me/my-policy",
)
ABOUT = """A policy of a Hugging Face family becomes a folder of AutoModelForImageTextToText, its adapters merged; of a policy
run it is the actor. A reward, cost or guard model with a linear head becomes the model, score.safetensors and loader.py,
and a class of transformers where the family has one for scores. A ClipDecoder, whatever its head, becomes a folder with
loader.py, which needs torch, open_clip and transformers. README.md is a model card: read it before you publish it."""


class Exported(NamedTuple):
    """What :func:`export` gives.

    Attributes:
        path: The folder.
        kind: ``policy``, ``reward``, ``cost`` or ``guard``.
        loads_with: What loads it.
        left_out: What of the run is not in it, in words.
        difference: Largest difference of the folder's values from the run's, in units of their size; ``None`` if not compared.
        address: Where it was sent, or "".
    """

    path: Path
    kind: str
    loads_with: str
    left_out: tuple[str, ...]
    difference: float | None
    address: str


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    return run_command(export, args, name="export", show=_as_text, examples=EXAMPLES, about=ABOUT, positional=True)


def export(
    run: AnyPath,
    out: AnyPath,
    adapter: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    data: AnyPath | None = None,
    check: bool = True,
    push: str | None = None,
    public: bool = False,
    trust: Sequence[str] = (),
    base: str | None = None,
) -> Exported:
    """Write a run's model as a folder that loads without this library, with a model card.

    The folder is loaded on its own and compared with the run before it gets its name.

    Args:
        run: Run folder or checkpoint of a policy, reward, cost or guard model.
        out: Folder to write; it must be new, or empty.
        adapter: Write a policy's adapter (peft) without its base, instead of a merged model.
        dtype: Of the weights; without it as they were trained.
        data: Shard folder that it was trained on, for the card; without it the one that the run names.
        check: Load what was written and compare it with the run; needs the memory of a second model.
        push: Repository on the Hugging Face Hub to send the folder to, as OWNER/NAME; the login is that of 'hf auth login'.
        public: Let everybody see a repository that is created by --push; without it only its owner does.
        trust: Packages of yours whose classes a run may name, beside this library's; see docs/security.md.
        base: Folder or hub name of the pretrained model, in place of the one that a run names.

    Raises:
        CheckpointError: If the run cannot be read, or trains nothing that is exported.
        FileError: If something stands where the folder goes.
        ValueError: If the model cannot be exported, differs when it is loaded on its own, or the hub does not take it.
    """
    from safe_rlhf_v.export import hub
    from safe_rlhf_v.export.folder import check_new
    from safe_rlhf_v.export.trained import load_trained
    from safe_rlhf_v.export.write import write_export
    from safe_rlhf_v.shards import Manifest

    folder = Path(out)
    check_new(folder)
    if push is not None:
        hub.check_name(push)
    elif public:
        raise ValueError("--public: nothing is sent anywhere without --push OWNER/NAME")
    if data is not None:
        Manifest.load(data)
    trained = load_trained(run, tuple(trust), base)
    written = write_export(trained, Path(run), folder, None if data is None else Path(data), adapter, dtype, check)
    address = hub.push(folder, push, public) if push is not None else ""
    return Exported(folder, *written, address)


def _as_text(result: Exported) -> str:
    difference = (
        "not compared with the run" if result.difference is None else f"{result.difference:.1e} from the run's values"
    )
    lines = [f"{result.kind}: {result.path} ({difference}); loads with {result.loads_with}; read its README.md"]
    lines += [f"left out: {part}" for part in result.left_out]
    return "\n".join([*lines, *([f"sent to {result.address}"] if result.address else [])])
