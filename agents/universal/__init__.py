"""Controllers for tasks that they were not trained on: one rate for the network, or one per layer, from the first step.

The policy is a schedule, a guard that holds it down, and a correction. With the inner steps t, the budget T, the middle
p of the interval to come as a part of the budget, the fan-in f_k of layer k, the geometric mean f of all, and what is
seen at a decision, x_k, the rate of layer k is

    log r_k = min(log peak + log min(1, p / w), h) + q log(1 - p) - e log(f_k / f) + c_k
    c_k <- c_k / 2 + log(10) / 2 tanh(v . (x_k, c_k) + d + perceptron(x_k, c_k))

The peak is a power law in what is known before the first step. Of optimizers that scale gradients, with the batch size
B, the number K of layers, and the size W of the untrained weights, which is the geometric mean over layers of the root
mean square of a layer's n_k weights, each counting with the root of n_k (`lrenv.training.dynamics.Untrained`),

    log peak = a_0 + a_1 log(min(B, 256) / 32) + a_2 log(W / 0.1) + a_3 log(K / 4),    peak <= 0.1;

of the others, with the momentum m, the loss L_0 of the untrained network on the first batch, and its gradients g_k
there,

    log peak = b_0 + b_1 log(min(B, 256) / 32) + b_2 log(T / 400) + b_3 log((1 - m) / 0.1) + b_4 log(L_0 / G) - log L_0,
    G = max_k norm(g_k) / norm(w_k).

Layers whose root mean square is below a 10,000th of the largest one are left out of W. Where all weights are 0, W
counts as 0.1, and L_0 / G as 1. A loss that is multiplied by a constant has its rates of SGD divided by it, as they
have to be. And as a_2 is 1 in an untrained policy, weights that are divided by a constant, in a network that multiplies
them by it again, have their rates of Adam divided by it, up to the bound. This holds within limits: each of the
logarithms above but log L_0 counts as 6 at most and as -6 at least, a factor of 400, rates are those that actions can
set, from 1e-7 to 10, and first losses those that are observed, up to 1e9. A loss of a million, as of targets that are
not scaled, asks SGD for less.

The ceiling h of the guard is infinite at first. In the first 30 % of the budget it falls where the last interval, of N
steps and with the rate r (without decay and correction), has shown that r was too high. Either both the first and the
last layer have moved by more than 0.2 sqrt(N) times the length of their weights before it. The movement of the one that
moved less is u, where the way from its weights z to z' is taken to be at right angles to z:

    u = a / sqrt(max(1 - a^2, 0.01)),    a = norm(z' - z) / norm(z');

or the training loss l relative to that of the first batch has risen, which is told by

    s <- s + (1 - exp(-N / max(10, min(320 / B, t)))) (log((l + 0.3) / 1.3) - s):

exp(s) is 1.6 times its lowest value, so far or since the last fall. Then

    h <- log r - log(u / (0.2 sqrt(N))),    h <- min(h, log r) - log 3.

The exponents of an untrained policy (`PEAK` in `policy.py`) are near those with the least regret on 600 drawn tasks
(`benchmarks/drawn_peaks.py`). That of W is 1, so that weights may be scaled, and W itself was chosen with a view to
tasks whose layers are scaled (`benchmarks/drawn_layers.py`). w = 0.15 and q = 1 are a warm-up and a linear decay; the
correction is 0. **That is the agent `universal`.** Its warm-up and its guard were chosen on 200 drawn tasks, with peaks
that are right, and 4 and 16 times as high (`benchmarks/drawn_guards.py`).

A policy that doesn't know T has the peak for T = 400, min(1, t / 10) in the place of the warm-up and (1 + t / 30)^-q
in that of the decay, with t in the middle of the interval and q = 1/2, and its guard watches throughout. Untrained,
**that is the agent `universal-anytime`** (`benchmarks/drawn_anytime.py`).

Trainings begin there, and learn exponents, e, w, q, v and d, 26 numbers theta by default; there can be a perceptron.
What is seen are losses relative to the first one and their scatter, how far the first and the last layer move relative
to their weights and in which direction, and the time; nothing of it needs validation data. Policies that see gradients
also have, per layer, the cosine of a gradient and the direction of the step before it, and the layer's share of the
gradient. The first rate is the policy's own: it doesn't matter where the task would start.

Theta is trained by evolution strategies: over whole runs of tasks that are drawn as training goes
(`lrenv.training.drawn`), it descends the mean of

    L = log(last validation loss / that of the untrained network),

by differences of antithetic pairs that share initial weights and batches (`lrenv.agents.outer.gradient_estimators`),
which are divided by their root mean square on each task, so that no task outweighs others. The controller has the
average of theta over updates. So no reward has to be assigned to decisions, nor to layers.

Limits: what `universal` is worth is told in docs/carries-over.md, and that three trainings have added nothing to it in
docs/universal.md. The guard sees a rate that is too high after it was taken, so what an interval has ruined stays
ruined; and nothing raises a peak that is too low, nor a ceiling. Networks of one layer are guarded by their losses
alone, for linear models often begin at zero, and then move far whatever the rate. The guard takes a rate for too high
that isn't, where both the first and the last layer begin far smaller than usual and move far at any rate. With batches
of one or two examples the first loss says little, so that the peak of SGD is a matter of chance. Runs that are longer,
larger or of another optimizer than drawn tasks are outside of what its exponents were fitted to.

To read in this order: `policy.py` (the equations above), `agent.py`, `training.py`, `settings.py`.
"""
