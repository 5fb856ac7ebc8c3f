"""Models out of run folders: what later stages, commands and evaluations start from.

Load only runs you trust: a run's configuration names the classes that are imported.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from safe_rlhf_v.checkpoints import CheckpointError, find_checkpoint, fingerprint, load_stage, read_stage
from safe_rlhf_v.models.backbone import Backbone
from safe_rlhf_v.models.heads import Head

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule


def stored_config(stage: dict[str, Any]) -> dict[str, Any]:
    """The configuration that travels inside a checkpoint.

    Raises:
        CheckpointError: If it carries none.
    """
    if "config_yaml" not in stage:
        raise CheckpointError(f"{stage['file']}: carries no configuration; train it by 'python -m safe_rlhf_v fit'")
    content: dict[str, Any] = yaml.safe_load(stage["config_yaml"])
    return content


def load_run(path: str | Path) -> "LightningModule":
    """The module of a run's newest checkpoint, on the CPU and in evaluation mode.

    Args:
        path: Run folder or checkpoint.

    Raises:
        CheckpointError: If there is no readable checkpoint of this library.
    """
    cls = _module_class(read_stage(str(path)))
    module: LightningModule = cls.load_from_checkpoint(find_checkpoint(path), map_location="cpu", weights_only=True)
    return module.eval()


def _module_class(stage: dict[str, Any]) -> Any:
    home, _, name = stored_config(stage)["model"]["class_path"].rpartition(".")
    return getattr(import_module(home), name)


def load_head(stage: dict[str, Any], backbone: Backbone) -> Head:
    """The head of a reward or cost model, reading a backbone that exists already: no second one is built.

    Args:
        stage: What :func:`~safe_rlhf_v.checkpoints.read_stage` gave.
        backbone: Stands where the run's own stood.
    """
    from lightning.pytorch.cli import instantiate_module

    module: Any = instantiate_module(_module_class(stage), stored_config(stage)["model"]["init_args"])
    module.make_backbone = lambda: backbone
    module.build()
    weights = {k.removeprefix("head."): v for k, v in stage["state_dict"].items() if k.startswith("head.")}
    head: Head = module.head
    head.load_state_dict(weights)
    return head


def load_backbone(path: str | Path) -> Backbone:
    """The backbone alone of any stage's newest checkpoint: a policy, without critics and scorers.

    Args:
        path: Run folder or checkpoint.

    Raises:
        CheckpointError: If there is no readable checkpoint of this library.
    """
    from jsonargparse import ArgumentParser

    stage = read_stage(str(path))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=Callable[[], Backbone])
    config = parser.parse_object({"backbone": stored_config(stage)["model"]["init_args"]["backbone"]})
    backbone: Backbone = parser.instantiate_classes(config).backbone()
    load_stage(stage, backbone, fingerprint(backbone))
    return backbone.eval()
