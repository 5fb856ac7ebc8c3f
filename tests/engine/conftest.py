"""A policy and a server with the same base."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from tests.engine.server import EngineServer, engine_server

from safe_rlhf_v.engine import EngineSampler
from safe_rlhf_v.models import HFVLM
from safe_rlhf_v.models.lora import LoraSettings
from safe_rlhf_v.models.tiny import write_tiny_vlm
from safe_rlhf_v.records import Context, Turn
from safe_rlhf_v.records.batches import Prompts

Made = tuple[HFVLM, EngineServer]


def prompts() -> Prompts:
    """A conversation with two pictures and a system text, a picture with a control token spelled out, a text."""
    generator = torch.Generator().manual_seed(0)
    wide, high = (
        torch.randint(0, 255, size, dtype=torch.uint8, generator=generator) for size in ((28, 56, 3), (60, 28, 3))
    )
    history = (Turn("user", "Is it safe?", 1), Turn("assistant", "Yes, it is.", 0))
    return Prompts(
        ((wide, high), (high,), ()),
        (("w", "h"), ("h",), ()),
        ("And this one?", "What is <image> and </s>?", "Who?"),
        (Context("Be brief.", history), Context(), Context()),
    )


def move(policy: HFVLM, seed: int, scale: float = 0.3) -> None:
    """Change the adapter, as an update does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if "lora_" in name:
                value += scale * torch.randn(value.shape, generator=generator)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Made]]:
    """A policy whose adapter has moved, and a server, by family."""
    servers: dict[str, Made] = {}
    running = ExitStack()

    def of(family: str) -> Made:
        if family not in servers:
            base = write_tiny_vlm(family, tmp_path_factory.mktemp(family) / "base")
            policy = HFVLM(str(base), lora=LoraSettings(2, 4), self_test=False).eval()
            move(policy, 0)
            servers[family] = (policy, running.enter_context(engine_server(base)))
        policy, server = servers[family]
        server.spoil = None
        server.requests.clear()
        return policy, server

    with running:
        yield of


@pytest.fixture
def sampler_of(tmp_path: Path) -> Callable[..., EngineSampler]:
    """A sampler of a server; it waits for nothing that does not come at once."""

    def of(server: EngineServer, **settings: object) -> EngineSampler:
        return EngineSampler(server.url, str(tmp_path / "adapters"), **{"retries": 0, "timeout": 60.0, **settings})

    return of
