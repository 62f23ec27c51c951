"""The outer loop, in which agents learn: iterations, held-out validation, logs, checkpoints, and going on from them.

Every training is a `Training` (PPO, FDS and random search, NOH, learned optimizers, universal controllers), and `train`
runs it:

    for each iteration:    learn from trainees
        every few:         evaluate the controller on held-out seeds, and keep the best
        every 30 seconds:  write a checkpoint, from which an interrupted training goes on to the same end

Read `training.py` first (`Training` is what an author writes, `train` the loop), then `settings.py` (what every
training can be told), `folder.py` (which files a training writes, and in which order) and `log.py` (the table and
TensorBoard's events). `validation.py` compares controllers for several tasks. `gradient_estimators.py` has evolution
strategies and their like, for trainings that use them.
"""
