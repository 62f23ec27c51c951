"""Every draw is a function of a seed, a purpose and a step."""
