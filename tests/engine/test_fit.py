"""A whole training whose rollouts a server samples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.server import EngineServer, engine_server
from tests.shared_runs import command, policy, shared, train, vlm

from safe_rlhf_v.commands.fit import main
from safe_rlhf_v.models.tiny import write_tiny_vlm

KEY = "sk-THE-SECRET-KEY-0123456789"


@pytest.fixture(scope="module")
def home(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and a reward and a cost model on it."""
    root = tmp_path_factory.mktemp("engine")
    write_tiny_vlm("llava", root / "base")
    for name in ("reward", "cost"):
        train(f"{name.title()}Module", world, root / name, vlm(root / "base", self_test=False))
    return root


@pytest.fixture
def run(home: Path, world: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Command line of a greedy policy training; with a server, that samples."""

    def of(out: str, server: EngineServer | None = None, **options: Any) -> list[str]:
        model = policy(shared(home), sampling={"max_new_tokens": 5, "temperature": 0.0})
        if server is not None:
            settings = {"base_url": server.url, "adapter_folder": str(tmp_path / "adapters"), "retries": 0}
            model["sampler"] = {
                "class_path": "safe_rlhf_v.engine.EngineSampler",
                "init_args": {**settings, "key_variable": "TEST_ENGINE_KEY"},
            }
        backbone = vlm(home / "base", self_test=False)
        return command("ConstrainedPolicyModule", world, tmp_path / out, backbone, **model, **options)

    return of


@pytest.mark.slow
def test_a_training_with_an_engine_is_the_training_without_it(
    home: Path, run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_ENGINE_KEY", KEY)
    own = main(run("own"))
    with engine_server(home / "base") as server:
        engine = main(run("engine", server))
    names = {body["lora_name"] for body in server.asked("load_lora_adapter")}
    assert len(names) == 2  # at the start, and after the first step
    assert len(list((tmp_path / "adapters").iterdir())) == 1
    weights = engine.model.state_dict()
    for name, value in own.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-3, msg=name)
    curves = engine.trainer.callback_metrics
    assert float(curves["rollout/engine_difference"]) < 1e-4
    assert abs(float(curves["rollout/engine_kl"])) < 1e-4
    assert float(curves["policy/truncated_weights"]) == 0
    assert not {"rollout/engine_difference", "policy/truncated_weights"} & {*own.trainer.callback_metrics}
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written and not any(KEY.encode() in file.read_bytes() for file in written)


@pytest.mark.slow
def test_a_server_that_dies_ends_the_run_and_the_checkpoint_goes_on(
    home: Path,
    run: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TEST_ENGINE_KEY", KEY)
    with engine_server(home / "base") as server:
        main(run("run", server, steps=2))
        (checkpoint,) = (tmp_path / "run").glob("*.ckpt")
        content = checkpoint.read_bytes()
        loaded = len(server.asked("load_lora_adapter"))

        def dies(handler: Any, body: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any] | None:
            if len(server.asked("load_lora_adapter")) < loaded + 2:  # one more step is made
                return reply
            handler.close_connection = True
            return None

        server.spoil = dies
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(run("run", server, steps=5, resume=tmp_path / "run"))
        assert end.value.code == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
        assert line.startswith(f"error: {server.url}: prompt ") and "connection" in line
        assert checkpoint.read_bytes() == content
        server.spoil = None
        resumed = main(run("run", server, steps=4, resume=tmp_path / "run"))
        assert resumed.trainer.global_step == 4


@pytest.mark.slow
def test_a_policy_without_adapters_is_refused_in_one_line(
    home: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampler = {
        "class_path": "safe_rlhf_v.engine.EngineSampler",
        "init_args": {"base_url": "http://127.0.0.1:9/v1", "adapter_folder": str(tmp_path)},
    }
    roles = {**shared(home), "class_path": "safe_rlhf_v.policy.SeparateRoles"}
    with pytest.raises(SystemExit) as end:
        main(
            command(
                "ConstrainedPolicyModule",
                world,
                tmp_path / "out",
                vlm(home / "base", self_test=False, lora=None),
                **policy(roles, sampler=sampler),
            )
        )
    assert end.value.code == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert "EngineSampler loads adapters" in line
