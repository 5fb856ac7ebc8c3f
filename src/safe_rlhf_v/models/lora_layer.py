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
    autocast casts x to float32 and back first: on a large GPU, where elementwise passes cost as much as the product of a
    frozen layer, that is a third of a training step. The base layer may be of any kind, quantised too.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., out) from (..., in), in the dtype of the base layer's output."""
        base: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return base
        result = base
        for name in self.active_adapters:
            a = self.lora_A[name].weight
            b = self.lora_B[name].weight
            dropped = self.lora_dropout[name](x)
            if not torch.is_autocast_enabled(x.device.type):  # which would cast to its own dtype
                result = result.to(a.dtype)
                dropped = dropped.to(a.dtype)
            low = F.linear(dropped, a).flatten(0, -2)
            result = torch.addmm(result.flatten(0, -2), low, b.t(), alpha=self.scaling[name]).view(base.shape)
        return result.to(base.dtype)
