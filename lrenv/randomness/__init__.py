"""Random numbers as functions: every draw is a function of a seed, a stream (its purpose) and a step.

There are no generators with a state. A key, an int64, is hashed from another key and an integer,

    fold(key, i) = mix(mix(key) + (i + 1) G),    G = 2^64 / golden ratio    (`mix` of SplitMix64, modulo 2^64),

and numbers are hashed from keys. So environment i of a batch draws what it would draw by itself, snapshots need no
random state, and runs can be paired by their seeds.

Read `draws.py` first (keys, uniform numbers, permutations, batches), then `seeds.py` (which seeds serve which purpose:
training, tuning, validation, report). `named.py` draws settings by their names. `mersenne.py` is torch's own CPU
generator for many seeds in parallel, by which initial weights are those of plain PyTorch.
"""
