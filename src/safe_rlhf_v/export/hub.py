"""An exported folder, sent to the Hugging Face Hub."""

import re
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SECRET = re.compile(r"hf_\w+")


def check_name(repo: str) -> None:
    """Raises: ValueError: If this is no name of a repository."""
    if not _NAME.fullmatch(repo):
        raise ValueError(f"--push {repo[:100]!r}: is no name on the hub; give OWNER/NAME")


def push(folder: Path, repo: str, public: bool = False, api: Any | None = None) -> str:
    """Send a folder to a repository, which is created if it is missing; gives its address.

    Args:
        folder: Every file in it is sent.
        repo: ``OWNER/NAME``.
        public: Whether everybody may see a repository that is created here.
        api: Stands for ``huggingface_hub.HfApi()``, which takes the user's own login.

    Raises:
        ValueError: In one line, without secrets, if the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    check_name(repo)
    hub = HfApi() if api is None else api
    try:
        hub.create_repo(repo, private=not public, exist_ok=True)
        commit = hub.upload_folder(folder_path=folder, repo_id=repo, commit_message="Exported by safe_rlhf_v")
    except Exception as error:  # its client raises errors of many packages
        reason = _SECRET.sub("hf_...", " ".join(str(error).split()))[:200]
        raise ValueError(
            f"--push {repo}: the hub did not take it ({type(error).__name__}: {reason}); {folder} is complete: send it again "
            "with 'hf upload', or export into another folder"
        ) from None
    return str(getattr(commit, "repo_url", None) or f"https://huggingface.co/{repo}")
