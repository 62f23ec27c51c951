"""Controllers for tasks that they were not trained on: one rate for the network, or one per layer, from the first step.

The policy corrects a schedule whose peak is a power law. With the inner steps t, the budget T, the middle p of the
interval to come as a part of the budget, the batch size B, the momentum m, the fan-in f_k of layer k, the geometric
mean f of all, and what is seen at a decision, x_k, the rate of layer k is

    log r_k = log peak - e log(f_k / f) + log s(p) + c_k,    s(p) = min(1, p / w) (1 - p)^q
    log peak = a_0 + a_1 log(B / 32) + a_2 log(f / 64) + a_3 log((1 - m) / 0.1) + a_4 log(T / 400)
    c_k <- c_k / 2 + log(10) / 2 tanh(w . (x_k, c_k) + b + perceptron(x_k, c_k))

The a_i (of optimizers that scale gradients, which have no a_3, and of SGD), e, w and q are learned like the weights of
the correction; an untrained policy is a warm-up and a linear decay from a peak that is about the best one on drawn
tasks (`PEAK` in `policy.py`). By default there is no perceptron. Policies that don't know T have
s(p) = min(1, t / w) alone, t in steps, w of them for the warm-up, at the middle of the interval. What is seen are
losses relative to the first one and their scatter, how far the first and the last layer move relative to their weights
and in which direction, and the time; nothing of it changes where the loss is multiplied by a constant, and nothing of
it needs validation data. Policies that see gradients also have, per layer, the cosine of a gradient and the direction
of the step before it, and the layer's share of the gradient. The first rate is the policy's own: it doesn't matter
where the task would start.

All parameters are one vector theta, of 27 numbers by default. They are trained by evolution strategies: over whole runs
of tasks that are drawn as training goes (`lrenv.training.drawn`), theta descends the mean of

    L = log(last validation loss / that of the untrained network),

by differences of antithetic pairs that share initial weights and batches (`lrenv.agents.outer.gradient_estimators`),
which are divided by their root mean square on each task, so that no task outweighs others. The controller has the
average of theta over updates. So no reward has to be assigned to decisions, nor to layers.

Limits: `universal` ends 7 % above tuned linear decay on drawn tasks that it has not seen, and has been tried on little
else (docs/carries-over.md). Most of what it is worth is the power law: training has added about 1 %, and a rate per
layer was not better than one. A policy can't act between two decisions: where one interval ruins a network, it comes
too late. Runs that are longer, larger or of another optimizer than drawn tasks are outside of what it has seen.

To read in this order: `policy.py` (the equations above), `agent.py`, `training.py`, `settings.py`.
"""
