"""Who computes a call: the choice, and a layer on each backend as a differentiable function and as an operator."""
