"""FDS: schedules of learning rate, momentum and weight decay found by forward-mode differentiation.

Micaelli and Storkey 2021, "Gradient-based hyperparameter optimization over long horizons" (NeurIPS, arXiv:2007.07869;
its first version is called "Non-greedy gradient-based hyperparameter optimization over long horizons").

Of each hyperparameter the schedule lambda has a value for each of S equal segments of the T inner steps: value
floor(t S / T) holds at step t. Weights and optimizer state s_t = (w_t, v_t) are trained under it, and beside them their
tangents Z_t = ds_t / dlambda:

    Z_(t+1) = A_t Z_t + B_t,    A_t = ds_(t+1) / ds_t,    B_t = ds_(t+1) / dlambda at fixed s_t,    Z_0 = 0.

At the end the hypergradient of the validation loss is g = Z_T^T dL_val/ds_T, and an outer step moves the schedule
against its sign alone, by step sizes gamma that are halved where the sign flips:

    gamma <- gamma / 2 where sign(g) has flipped,    lambda <- lambda - gamma sign(g).

To read in this order: `training.py` (the update of the schedule), `lrenv/training/hypergradients.py` (the recursion, in
`forward`), `agent.py` (the schedule as an agent), `settings.py`, and `random_search.py`, which it is compared with.
`tests/reference/fds.py` has recursion and update in NumPy.

Limits: a schedule belongs to the task, the optimizer and the budget that it was searched on. The recursion keeps a
tangent of all weights for each value of the schedule, in memory and in time. The running statistics of batch
normalisation are taken for constants, so that on networks with it the hypergradient is not that of the whole training,
and may have another sign.
"""
