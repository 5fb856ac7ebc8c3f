"""Policy runs one after another, each in a process of its own: ``python policy_run.py '[{"args": [...], ...}, ...]'``.

Options: args (command line of ``fit``), kill_at (step after which the process kills itself), devices, out (file for the
final state). Prints how each process ended (minus the signal's number).
"""

import json
import os
import signal
import sys
import warnings
from typing import Any

import torch


def main(options: dict[str, Any]) -> None:
    """Train, and keep everything that must be equal."""
    from safe_rlhf_v.commands.fit import main as train
    from safe_rlhf_v.policy import ConstrainedPolicyModule

    warnings.simplefilter("ignore")
    if kill_at := options.get("kill_at"):

        def kill(self: ConstrainedPolicyModule, *_: Any) -> None:
            if self.global_step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        ConstrainedPolicyModule.on_train_batch_start = kill  # the checkpoint of the step before is on disk
    extra = []
    if options.get("devices", 1) > 1:
        extra = [
            f"--trainer.devices={options['devices']}",
            "--trainer.strategy=lightning.pytorch.strategies.DDPStrategy",
            "--trainer.strategy.process_group_backend=gloo",
            "--trainer.strategy.start_method=fork",
        ]
    if options.get("gather"):
        keep_ranks(ConstrainedPolicyModule, options["out"])
    cli = train([*options["args"], *extra])
    trainer = cli.trainer
    if trainer.is_global_zero and not options.get("gather"):
        state = {
            "step": trainer.global_step,
            "weights": cli.model.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict()["state"],
            "data": cli.datamodule.state_dict(),
            "rate": trainer.optimizers[0].param_groups[0]["lr"],
        }
        torch.save(state, options["out"])


def keep_ranks(module: Any, out: str) -> None:
    """Every rank writes its weights and responses down."""

    def end(self: Any) -> None:
        torch.save({"weights": self.state_dict(), "texts": self.texts}, f"{out}-{self.global_rank}")

    rollout = module.rollout

    def note(self: Any, batch: Any) -> Any:
        made = rollout(self, batch)
        self.texts = [*getattr(self, "texts", []), made.generation.text]
        return made

    module.on_train_end, module.rollout = end, note


if __name__ == "__main__":
    torch.set_num_threads(1)
    ends = []
    for run in json.loads(sys.argv[1]):
        child = os.fork()  # a fork spares the imports
        if child == 0:
            main(run)
            os._exit(0)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(ends))
