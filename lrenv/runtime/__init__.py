"""Tools that have nothing to do with learning: files, the process, trees of tensors, memory, compilers.

Read a file when it is first used elsewhere; these are read by most of the others:

- `ambient.py`: lrenv's own torch settings hold inside its functions, whatever a program has set around them;
- `trees.py`: choosing, cutting and joining trees of tensors, whose first axis is that of the environments;
- `compiling.py`: `torch.compile` and CUDA graphs for decisions; `memory.py`: how many trainees fit a device;
- `transfer.py`: a tree of tensors to the host in one copy.

What commands need: `files.py` (files are replaced whole or appended to by whole lines), `json_values.py` (JSON without
NaN), `process.py` (signals, the allocator, exit codes) and `progress.py` (progress bars).
"""
