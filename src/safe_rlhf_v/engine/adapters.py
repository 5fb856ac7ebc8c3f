"""The policy's adapter as a file that an engine loads, under a name that its content gives it."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safe_rlhf_v.construct.replies import Reply
from safe_rlhf_v.export.folder import new_folder
from safe_rlhf_v.export.vlm import write_adapter_files
from safe_rlhf_v.models.adapters import adapter_tensors
from safe_rlhf_v.models.hf_vlm import HFVLM
from safe_rlhf_v.models.sharding import full_tensor
from safe_rlhf_v.training.base_tensors import tensor_hash

Post = Callable[[str, Mapping[str, Any]], Reply]


class ServedAdapter:
    """Keeps an engine at the policy's adapter.

    An adapter's name is a hash of its tensors. Another adapter has another name, so that nothing an engine keeps by name (its
    prefix cache) is used for the wrong one, and one that has not changed is not loaded again.

    Attributes:
        name: Of the adapter that is loaded; "" before the first.
    """

    def __init__(self, folder: Path) -> None:
        """Note the folder.

        Args:
            folder: Where adapters are written; the engine reads it under the same path.
        """
        self.folder = folder
        self.name = ""
        self._written = ""  # if this process wrote the adapter's files

    def update(self, policy: HFVLM, post: Post) -> str:
        """Write and load the policy's adapter unless it is loaded, take the one before out, and give the name.

        With several ranks, all of which hold the same adapter, the first one does it, and the others wait.

        Args:
            policy: With adapters.
            post: Sends JSON to a route of the engine.

        Raises:
            ValueError: If the engine does not load it.
        """
        state = adapter_tensors(policy.language_model.state_dict())
        tensors = {key: full_tensor(value).detach().cpu() for key, value in state.items()}
        name = _name(tensors, str(policy.lora))
        if name != self.name:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                self._change_once(name, policy, tensors, post)
            else:
                self._change(name, policy, tensors, post)
            self.name = name
        return name

    def _change_once(self, name: str, policy: HFVLM, tensors: dict[str, Tensor], post: Post) -> None:
        """The first rank changes the adapter; if it fails, all ranks do, so that none waits for it."""
        problem = [""]
        if torch.distributed.get_rank() == 0:
            try:
                self._change(name, policy, tensors, post)
            except (OSError, ValueError) as error:
                problem = [f"{error}" or type(error).__name__]
        torch.distributed.broadcast_object_list(problem)
        if problem[0]:
            raise ValueError(problem[0])

    def _change(self, name: str, policy: HFVLM, tensors: dict[str, Tensor], post: Post) -> None:
        path = (self.folder / name).absolute()
        written = ""
        if not path.is_dir():  # a folder gets its name when it is complete
            self.folder.mkdir(parents=True, exist_ok=True)
            with new_folder(path) as part:
                write_adapter_files(policy, tensors, part)
            written = name
        reply = post("/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
        if reply.failed and "already" not in reply.error:  # loaded by a try whose reply was lost, or by an earlier run
            raise ValueError(f"cannot load the adapter {path}: {reply.kind}: {reply.error}")
        if self.name:
            post("/unload_lora_adapter", {"lora_name": self.name})  # an engine that has lost it is as good
        if self._written:
            shutil.rmtree(self.folder / self._written, ignore_errors=True)
        self._written = written


def _name(tensors: dict[str, Tensor], settings: str) -> str:
    digest = hashlib.sha256(settings.encode())
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {tensor_hash(value)}\n".encode())
    return f"safe-rlhf-v-{digest.hexdigest()[:20]}"
