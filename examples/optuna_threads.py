"""Optuna tunes a schedule in two threads, which don't disturb each other: `python examples/optuna_threads.py`.

A trial trains eight networks at once; its numbers are those that it would have alone.
"""

from __future__ import annotations

import optuna

import lrenv
from lrenv.randomness.seeds import seeds_for

SEEDS = seeds_for("tuning", 8)


def validation_loss(peak: float, warmup: float) -> float:
    """The mean loss at the end of eight trainings by a cosine."""
    agent = lrenv.make_agent("cosine", peak=peak, warmup=warmup)
    return float(lrenv.evaluate(agent, "digits-logreg", seeds=SEEDS).final_val_loss.mean())


def main(trials: int = 12) -> tuple[dict[str, float], float]:
    """Gives the best settings, and the loss that they reached."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        return validation_loss(trial.suggest_float("peak", 1e-4, 1.0, log=True), trial.suggest_float("warmup", 0, 0.5))

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=trials, n_jobs=2)
    print(f"{study.best_params} reach {study.best_value:.3f}")
    return study.best_params, study.best_value


if __name__ == "__main__":
    main()
