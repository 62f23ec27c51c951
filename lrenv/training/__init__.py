"""A trainee: what it learns, how it takes a step, and the derivatives of its training."""
