"""Controllers for tasks that they were not trained on: one rate for the network, or one per layer, from the first step.

The policy corrects a schedule. With the inner steps t, the budget T, the middle p of the interval to come as a part of
the budget, the fan-in f_k of layer k, and what is seen at a decision, x_k, the rate of layer k is

    log r_k = log peak - e log(f_k / 64) + log s(p) + c_k,    s(p) = min(1, p / w) (1 - p)^q
    c_k <- c_k / 2 + log(100) / 2 tanh(perceptron(x_k, c_k))

peak (one for optimizers that scale gradients, one for SGD), e, w and q are learned like the perceptron's weights; an
untrained policy is a warm-up and linear decay. Policies that don't know T have s(p) = min(1, t / w) alone, t in steps,
w of them for the warm-up, at the middle of the interval. What is seen are losses relative to the first one and their
scatter, how far the first and the last layer move relative to their weights and in which direction, and the time;
nothing of it changes where the loss is multiplied by a constant, and nothing of it needs validation data. Policies that
see gradients also have, per layer, the cosine of a gradient and the direction of the step before it, and the layer's
share of the gradient. The first rate is the policy's own: it doesn't matter where the task would start.

All parameters are one vector theta of a few hundred numbers. They are trained by evolution strategies: over whole runs
of tasks that are drawn as training goes (`lrenv.training.drawn`), theta descends the mean of

    L = log(last validation loss / that of the untrained network),

by differences of antithetic pairs that share initial weights and batches
(`lrenv.agents.outer.gradient_estimators`). So no reward has to be assigned to decisions, nor to layers.

To read in this order: `policy.py` (the equations above), `agent.py`, `training.py`, `settings.py`.
"""
