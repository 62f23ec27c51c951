"""What has nothing to do with learning: the process, files, memory, compilers, and trees of tensors."""
