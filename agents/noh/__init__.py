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

What a rate per layer and evolution strategies give, on `mnist-mlp20` with batches of 32 and a budget of 200: after 130
updates of 32 runs each (training seed 0, three minutes of one core of an AMD EPYC; kept is the policy with the lowest
loss on validation seeds, of update 120) the LSTM tells layers apart: their last rates lie a factor of 4 around their
geometric mean. Its test loss at the end of runs on seeds 0 to 9 is 0.468 (standard deviation 0.041). That of linear
decay with tuned peak and warm-up is 0.619 (0.041), of the best constant rate 0.652, and of an LSTM with one rate for
the network, trained likewise for 86 updates, 0.647. So rates per layer help here, as far as
unequal numbers of updates tell.

    TASK=mnist-mlp20:batch_size=32:val_examples=500
    LSTM="--interval 10 --layers 1 --hidden 8 --memory 20 --scale 1e-2 --meta-lr 0.03 --eval-every 10 --eval-seeds 8"
    lrenv train noh --task $TASK --budget 200 $LSTM --estimator es --per layer --meta-iterations 130 --out runs/layer
    lrenv train noh --task $TASK --budget 200 $LSTM --estimator es --per trainee --meta-iterations 86 --out runs/one
    AGENTS=constant,linear,linear:fan_in=1:peak=0.05:warmup=0.05
    AGENTS=$AGENTS,runs/layer/controller.safetensors,runs/one/controller.safetensors
    lrenv compare --task $TASK --budget 200 --baseline linear --agents $AGENTS

To read in this order: `lstm.py` (the preprocessing and the LSTM), `agent.py` (the policy: from output to rate),
`training.py` (the gradient of theta), `evolution.py` (its estimates from whole runs), `settings.py`.
`tests/reference/noh.py` has the policy in NumPy.

Limits: its hypergradients look one step ahead, so that training it for long pushes rates too low; what it has learned
by them is a schedule, the same for nearly all parameters (`docs/results.md`). It keeps a state for each parameter. The
figures for layers are of one training, on the one task and budget that it was trained for, and a rule of fan-in may do
as well: linear decay with `fan_in=1:peak=0.05:warmup=0.05`, which was the best of 15 on three seeds for tuning, ends at
0.654 with a standard deviation of 0.304, and so is not shown to be worse (0.19 ± 0.20). Rates per parameter have not
been trained by evolution strategies there: that many LSTMs cost many times what the network does.
"""
