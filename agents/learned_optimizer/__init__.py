"""A learned optimizer: a perceptron that turns what is known of a weight into its update.

Metz, Maheswaranathan, Nixon, Freeman and Sohl-Dickstein 2019, "Learned optimizers that outperform SGD on wall-clock and
test loss" (arXiv:1810.10180, whose last version is "Understanding and correcting pathologies in the training of learned
optimizers", ICML 2019).

The perceptron has 32 ReLU units, weights theta, and runs for each weight of the trainee by itself (section 4.1 and
appendix C.1). Of each weight it sees 31 features x, and its two outputs make the update:

    x = (gradient, weight, m_beta, rms_beta, r_beta, r_beta m_beta, tanh(t / eta - 1)),  five decays beta, nine eta
    o_1, o_2 = perceptron(x; theta)
    w <- w - exp(lambda_exp o_1) lambda_lin o_2,    lambda_exp = lambda_lin = 1e-3

theta is trained for the variational loss, the mean of the trainees' losses L under perturbed theta (section 3), whose
gradient has two unbiased estimators, merged by their empirical variances v (equation 1):

    L_sigma(theta) = E[L(theta + e)],    e ~ N(0, sigma^2 I)
    g_rp = mean of dL/dtheta(theta + e),    g_es = mean of L(theta + e) e / sigma^2
    g = (g_rp / v_rp + g_es / v_es) / (1 / v_rp + 1 / v_es)

To read in this order: `features.py`, `agent.py` (perceptron and update), `../outer/gradient_estimators.py` (g_rp, g_es
and their merge), `training.py` (algorithm 1), `problems.py`, `settings.py`, and `baselines.py`, which it is compared
with. `tests/reference/learned_optimizer.py` and `tests/reference/gradient_estimators.py` have both in NumPy.
"""
