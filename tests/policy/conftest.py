"""A base, and reward and cost models trained on it, by family."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.shared_runs import train, vlm

from safe_rlhf_v.models.tiny import write_tiny_vlm


@pytest.fixture(scope="module")
def homes(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A base and a trained reward and cost model on it, by family."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            root = made[family] = tmp_path_factory.mktemp(family)
            write_tiny_vlm(family, root / "base")
            for name in ("reward", "cost"):
                train(f"{name.title()}Module", world, root / name, vlm(root / "base"))
        return made[family]

    return of


@pytest.fixture(params=("llava", "qwen2_5_vl"))
def home(request: pytest.FixtureRequest, homes: Callable[[str], Path]) -> Path:
    """Of each family."""
    return homes(request.param)


@pytest.fixture
def llava(homes: Callable[[str], Path]) -> Path:
    """Of one, where one is enough."""
    return homes("llava")
