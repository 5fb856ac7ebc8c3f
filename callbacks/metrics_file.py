"""Test results as a file that other programs read."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from safe_rlhf_v.records.user_files import json_text, write_whole


class MetricsFile(Callback):
    """Writes every metric of a test run to one JSON file, whole or not at all.

    YAML::

        callbacks:
          - class_path: safe_rlhf_v.callbacks.MetricsFile
            init_args: {path: runs/reward/metrics.json}
    """

    def __init__(self, path: str) -> None:
        """Keep the name of the file.

        Args:
            path: File to write.
        """
        self.path = Path(path)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``{metric: value}``, sorted by name; null for a value that is no finite number."""
        if not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, (json_text(metrics, indent=1) + "\n").encode())
