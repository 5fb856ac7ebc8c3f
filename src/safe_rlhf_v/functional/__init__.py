"""Pure functions over tensors, with shapes: no parameters, no state, independent of Lightning."""
