"""Components that cannot be built: named by their setting, unless the fault is in a user's own class."""

import pytest
import torch

from safe_rlhf_v.training.named import build_component


class Own(torch.nn.Module):
    """A component of a user with a fault."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(-1, 2)


def test_what_a_library_refuses_is_named_but_a_users_fault_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="head: cannot be built from its settings"):
        build_component("head", torch.nn.Linear, -1, 2)
    with pytest.raises(RuntimeError, match="negative dimension"):
        build_component("head", Own)
    with pytest.raises(ValueError, match="optimizer: is null"):
        build_component("optimizer", None)
