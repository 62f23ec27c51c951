"""Tools that have nothing to do with learning: torch's settings, trees of tensors, compilers, memory, files, processes.

Read `ambient.py` and `trees.py` first, which most of lrenv uses, and each of the others where it is first used:

- `ambient.py`: inside lrenv's functions its own torch settings hold, whatever a program has set around them;
- `trees.py`: choosing, cutting and joining trees of tensors, whose first axis is that of the environments;
- `compiling.py`: `torch.compile` and CUDA graphs for decisions;
- `memory.py`: devices, and how many trainees fit one; `transfer.py`: a tree of tensors to the host in one copy.

What commands need: `files.py` (files are replaced whole or appended to by whole lines), `json_values.py` (JSON without
NaN), `process.py` (signals, the allocator, exit codes) and `progress.py` (progress bars).
"""
