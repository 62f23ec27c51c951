"""The inner training: tasks, the networks that learn them, and derivatives of training.

Read in this order:

1. `optimizers`: directions, and `descend`, params - lr * direction, the only place where a learning rate acts.
2. `tasks`: data, network, loss and settings under a name; `losses`. `built_in_tasks` lists those of lrenv; `analytic`
   and `power_law` have tasks whose expected losses are known in closed form, `power_law_optimum` their best schedules;
   `drawn` draws tasks by number.
3. `objective`: the loss of n networks, and its gradient. `trainee`: the inner loop of gradient steps.
4. `dynamics`: what is measured about training (Xu et al. 2019, section 2.2).
5. `gradient_observer`: the one-step hypergradient h = -<g_(t+1), d_t> (Baydin et al. 2018, equation 5).
6. `hypergradients`: derivatives through whole trainings, in forward mode by Z_(t+1) = A_t Z_t + B_t (Micaelli &
   Storkey 2021) and in reverse mode. `scheduled`: trainings under a schedule. `rollout`: the loop that trains agents.
"""
