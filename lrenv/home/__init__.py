"""At home: agents drive the learning rate of anyone's PyTorch loop, where there is no environment.

`lrenv.LRController` (`controller.py`) is a learning-rate scheduler whose rates are chosen by an agent. Read it first.

| file | what it does |
|---|---|
| `controller.py` | counts steps, and decides when it is time; what users call |
| `assembly.py` | makes and checks a controller's parts |
| `deciding.py` | one decision after another: sees, asks the agent, sets, remembers |
| `driver.py` | one agent for one loop: its needs, its carry, and what its actions do to the rates |
| `observing.py` | measures a loop with the functions that environments use |
| `validation.py` | of these, what is measured on validation data |
| `gradients.py` | gradients before each step, and the directions of steps |
| `layers.py` | what has a rate of its own, and the split of parameter groups |
| `needs.py` | what an agent needs of a loop, and whether one can give it |
| `sharding.py` | refuses weights that are held in parts, and optimizers that step by themselves |
| `groups.py` | reads and sets rates, momentum and weight decay of an optimizer's parameter groups |
| `stepping.py` | notices which steps an optimizer took, and keeps their losses |
| `rates.py` | the rates and hyperparameters that the optimizer is driven with, within what the user allows |
| `saving.py` | what is kept in a checkpoint, and how it is read back |
| `telling.py` | says each kind of thing once |
| `processes.py` | lets several processes that train one model decide the same |
| `fallback.py` | what takes over where an agent has not been trained |
| `history.py` | what was decided when, and why: a table and a plot |
"""
