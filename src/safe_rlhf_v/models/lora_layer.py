"""The linear layer with adapters, with as few passes over its output as possible.

Shapes: an input (..., in) gives (..., out); A is (r, in) and B is (out, r).
"""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor


class LoraLinear(Linear):  # type: ignore[misc]  # peft's types are incomplete
    """peft's layer with another forward pass: ``base(x) + alpha / r B A x`` (arXiv 2106.09685, equation 3).

    The update is added while B is multiplied, by one ``addmm``. peft scales it and adds it in passes of their own, and under
    autocast casts x to float32 and back first: on an H100 the scoring passes of a 7B policy took 1.78 s with it and take 1.48 s
    so (``docs/results/policy.md``). The base layer may be of any kind, quantised too.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., out) from (..., in), in the dtype of the base layer's output."""
        if self.merged:  # by peft's own methods: the base layer holds the update already
            merged: Tensor = super().forward(x, *args, **kwargs)
            return merged
        base: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return base
        result = base.reshape(-1, base.shape[-1])
        for name in self.active_adapters:
            if name not in self.lora_A:  # it is on other layers only
                continue
            a = self.lora_A[name].weight
            b = self.lora_B[name].weight
            dropped = self.lora_dropout[name](x)
            # Autocast casts to its own dtype, but never from float64.
            if base.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
                dtype = torch.promote_types(base.dtype, a.dtype)
                result, dropped, a, b = (each.to(dtype) for each in (result, dropped, a, b))
            low = F.linear(dropped, a)
            result = torch.addmm(result, low.reshape(-1, low.shape[-1]), b.t(), alpha=self.scaling[name])
        return result.reshape(base.shape).to(base.dtype)
