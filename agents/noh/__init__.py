"""NOH: an LSTM that sets a learning rate per parameter, trained by hypergradients.

Fu, Ng, Chen, Ilievski, Pal and Chua 2017, "Neural optimizers with hypergradients for tuning parameter-wise learning
rates" (AutoML workshop at ICML 2017).

Every S inner steps, the LSTM g with weights theta sees for each parameter k the mean gradient of the last S steps, and
gives the rate of the next S steps (sections 2.2 and 2.3):

    h^k = (log|grad^k| / c, sgn grad^k)    if |grad^k| >= e^-c, else (-1, e^c grad^k)
    alpha^k = g(h^k; theta) = scale * exp(output of the LSTM of parameter k)
    w^k <- w^k - alpha^k d^k               d: the direction of the trainee's optimizer, Adam's in the paper

All parameters share theta, and each has its own hidden state. The derivative of the trainee's loss l by the rate of
parameter k is the sum of -(gradient of the next step)^k d^k over the S steps, and theta descends along
sum_k dl/dalpha^k dalpha^k/dtheta (figure 2). The exponential and the scale are lrenv's: the paper doesn't say how an
output becomes a positive rate.

Not in the paper: `--per layer` takes larger pieces than parameters, each with an LSTM, which sees the norm of the
piece's gradient and the cosine between it and the steps before; and `--estimator es` (or `pes`, `merged`) trains theta
by the last validation loss of whole runs instead of one-step hypergradients (`evolution.py`).

DMopt, the paper's baseline, has the same LSTM give the update itself, w <- w - scale * output (Andrychowicz et al.
2016, "Learning to learn by gradient descent by gradient descent", arXiv:1606.04474, equation 1).

To read in this order: `lstm.py` (the preprocessing and the LSTM), `agent.py` (the policy: from output to rate),
`training.py` (the gradient of theta), `evolution.py` (its estimates from whole runs), `settings.py`.
`tests/reference/noh.py` has the policy in NumPy.

Limits: its hypergradients look one step ahead, so that training it for long pushes rates too low; what it has learned
here is a schedule, the same for nearly all parameters (`docs/results.md`). It keeps a state for each parameter.
"""
