"""Callbacks that let an agent drive the rates inside other people's trainers.

`import lrenv` imports nothing of this: each file needs a package that is an extra (`pip install 'lrenv[lightning]'`).

| file | what it does |
|---|---|
| `callback.py` | what both callbacks share: a controller that is made when a run begins, and its losses |
| `lightning.py` | a `Callback` of PyTorch Lightning |
| `transformers.py` | a `TrainerCallback` of Hugging Face's Trainer |
"""
