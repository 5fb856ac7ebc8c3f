"""What the steps of a pipeline import: once, in the process that every step is forked from (ten CPU-seconds each otherwise)."""

import gc
import time
from importlib import import_module

MODULES = (
    "matplotlib.figure",
    "open_clip",
    "safe_rlhf_v.callbacks",
    "safe_rlhf_v.commands.fit",
    "safe_rlhf_v.guard",
    "safe_rlhf_v.world",
    "torch.utils.tensorboard",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)

for name in MODULES:
    import_module(name)
gc.collect()
gc.freeze()  # these objects stay: no collection in a forked step needs to look at them again

SECONDS = time.process_time()
"""CPU-seconds that the imports took."""
