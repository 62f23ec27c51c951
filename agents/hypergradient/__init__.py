"""Hypergradient methods: the learning rate follows the gradient of the loss with respect to it, at every inner step.

With g_t the gradient at w_t and d_t the direction of the trainee's optimizer (d = g for SGD), a step
w_(t+1) = w_t - alpha_t d_t gives the next loss the derivative h_(t+1) = -<g_(t+1), d_t> by alpha_t. Nothing is trained
beforehand. One agent here per method:

- `descent.py`: SGD-HD, Nesterov-HD, Adam-HD, alpha_t = alpha_(t-1) - beta h_t (Baydin, Cornish, Martinez Rubio, Schmidt
  and Wood 2018, "Online learning rate adaptation with hypergradient descent", arXiv:1703.04782);
- `gala.py`: GALA, alpha = sum of -h over sum of L |d|^2 (Jiang, Kavis and Mokhtari 2025, arXiv:2506.08419);
- `osgm.py`: OSGM, AdaGrad on h / |g|^2 (Gao, Chu, Ye and Udell 2024, arXiv:2411.01803).

Read `descent.py` first, then `recurrence.py` (what all three share: from observations to rates within bounds), then the
others. The observations themselves, h and squares of gradients, are measured by `lrenv.training.gradient_observer`.

Limits: one-step hypergradients are short-sighted, for they tell what a rate does to the next loss alone. A beta that is
too large ruins a training (`docs/results.md`). Gradients must be observed at every inner step.
"""
