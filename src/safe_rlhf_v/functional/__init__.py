"""Pure functions over tensors, with shapes: no parameters, no state, nothing of Lightning."""
