"""Where results may not go: into shards, into a model's folder, which is passed on as a whole, or onto a run."""

from collections.abc import Iterable
from pathlib import Path

from safe_rlhf_v.records.user_files import printable
from safe_rlhf_v.shards.manifest import FILE_NAME, Manifest, ShardError


def check_outside_shards(option: str, folder: Path) -> None:
    """Refuse a folder that is one of shards, or lies in one.

    Args:
        option: That named it.
        folder: It need not exist.

    Raises:
        ValueError: Naming the shards.
    """
    place = folder.resolve()
    for above in (place, *place.parents):
        if (above / FILE_NAME).is_file() and _readable(above):
            _refuse(option, folder, above, "shards", above == place)


def check_outside_runs(option: str, folder: Path, runs: Iterable[str]) -> None:
    """Refuse a folder that is that of a run, or where its checkpoints lie, or lies in that of a model.

    Args:
        option: That named it.
        folder: It need not exist.
        runs: Runs, checkpoints, models' folders and names on the hub.

    Raises:
        ValueError: Naming the run or model.
    """
    from safe_rlhf_v.training.models import is_model  # torch: seconds to import

    place = folder.resolve()
    for run in map(Path, runs):
        home = run.resolve() if run.is_dir() else run.resolve().parent
        if not run.exists() or not place.is_relative_to(home):
            continue
        if is_model(run) or place == home or any(folder.glob("*.ckpt")):
            _refuse(option, folder, run, "a model" if is_model(run) else "a run", place == home)


def _readable(folder: Path) -> bool:
    try:
        Manifest.load(folder)
    except ShardError:  # a manifest of something else
        return False
    return True


def _refuse(option: str, folder: Path, place: Path, kind: str, same: bool) -> None:
    relation = "is the folder of" if same else "lies in the folder of"
    raise ValueError(f"{option} {printable(folder)}: {relation} {kind}, {printable(place)}; name another folder")
