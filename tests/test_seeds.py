"""The ledger of seeds, and that everything draws from where the ledger and the streams say."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import learned_settings
from torch import Tensor

from lrenv.agents.learned_optimizer import training as learned_optimizer_training
from lrenv.agents.learned_optimizer.training import LearnedOptimizerTraining
from lrenv.agents.schedules.agent import constant
from lrenv.benchmark.evaluation import evaluate
from lrenv.benchmark.tuning import TUNING_SEEDS
from lrenv.envs.episode import Episode
from lrenv.randomness import draws
from lrenv.randomness.draws import AUGMENT, BATCH, DROPOUT, EPISODE, INITIAL_LR, fold, uniform
from lrenv.randomness.seeds import OVERFLOW, RANGES, TRAINING, seeds_for
from lrenv.training.tasks import LogUniform, Task
from lrenv.training.trainee import Trainee

SEEDS = [5, 7, 2_000_003]


def test_the_ranges_are_what_results_were_made_with() -> None:
    assert seeds_for("report", 3) == [0, 1, 2]
    assert seeds_for("tuning", 3) == list(TUNING_SEEDS) == [10_000, 10_001, 10_002]
    assert seeds_for("validation", 2) == [20_000, 20_001]
    assert seeds_for("schedules", 2, first=1) == [30_001, 30_002]
    assert [seeds_for("training", 2, training=s) for s in (0, 4)] == [[1_000_000, 1_000_001], [5_000_000, 5_000_001]]


def test_purposes_and_trainings_share_no_seed() -> None:
    everything = [set(seeds_for(purpose, len(own))) for purpose, own in RANGES.items()]
    for training in (0, 1, 2, 10**6):
        places = (0, TRAINING - 1, TRAINING, 2 * TRAINING - 1, 10 * TRAINING)
        everything.append({seeds_for("training", 1, place, training)[0] for place in places})
    assert sum(map(len, everything)) == len(set().union(*everything))
    across = seeds_for("training", 2, TRAINING - 1, training=1)
    assert across == [3 * TRAINING - 1, OVERFLOW + 2 * TRAINING], "beyond its million, but not into the next training's"
    assert max(seeds_for("training", 1, 10**9, 10**6)) < 2**62


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("reporting", 1), "unknown purpose of seeds 'reporting': did you mean 'report'"),
        (("tuning", 10_001), "there are 10000 seeds for tuning, not 10001; ask for fewer"),
        (("tuning", 1, 10_000), "there are 10000 seeds"),
        (("report", 1, -1), "counted from 0"),
        (("training", 1, 0, -1), "counted from 0"),
        (("training", 1, 0, 2**41), "seed of a training must be below"),
    ],
)
def test_what_the_ledger_does_not_have(wrong: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seeds_for(*wrong)


def test_streams_are_apart() -> None:
    streams = (BATCH, DROPOUT, AUGMENT, INITIAL_LR, EPISODE)
    assert len(set(streams)) == len(streams)


def test_initial_rates_come_from_their_own_stream(toy: Callable[..., Task]) -> None:
    chance = uniform(fold(torch.tensor(SEEDS), INITIAL_LR))
    spread = Episode(toy(initial_lr=LogUniform(1e-3, 1e-1))).reset(SEEDS)[0]
    torch.testing.assert_close(spread.lr[:, 0], 1e-3 * 100**chance)
    rates = (0.1, 0.2, 0.3, 0.4)
    listed = Episode(toy(initial_lr=rates)).reset(SEEDS)[0]
    assert listed.lr[:, 0].tolist() == pytest.approx([rates[int(4 * x)] for x in chance])


def test_batches_come_from_their_own_stream() -> None:
    seed, step = torch.tensor(SEEDS), torch.tensor([[0, 1, 7]] * 3)
    key = fold(seed, BATCH)[:, None]
    drawn = draws.epoch_indices(seed, step, 4, 24)
    places = (step % 6 * 4).unsqueeze(-1) + torch.arange(4)
    assert torch.equal(drawn, draws.permuted(fold(key, step // 6).unsqueeze(-1), places, 24))
    again = draws.epoch_indices(seed, step, 4, 24, replacement=True)
    assert torch.equal(again, (uniform(fold(key, step), (4,), torch.float64) * 24).long())


def test_noise_and_augmentation_come_from_their_own_streams(
    toy: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Tensor] = {}
    trainee = Trainee(toy())
    state = trainee.init(SEEDS)._replace(step=torch.tensor([0, 3, 9]))
    run = trainee._run

    def noted(params: Tensor, buffers: Any, inputs: Tensor, training: bool, key: Tensor | None = None, *_: Any) -> Any:
        assert key is not None
        seen["dropout"] = key
        return run(params, buffers, inputs, training, None)

    def augmented(key: Tensor, inputs: Tensor) -> Tensor:
        seen["augment"] = key
        return inputs

    monkeypatch.setattr(trainee, "_run", noted)
    monkeypatch.setattr(trainee, "_augment", augmented)
    monkeypatch.setattr(trainee.network, "stochastic", True)
    trainee.loss(state.params, state, trainee.batch_indices(state, 1)[:, 0])
    for name, stream in (("dropout", DROPOUT), ("augment", AUGMENT)):
        assert torch.equal(seen[name], fold(fold(state.seed, stream), state.step)), name


def test_further_episodes_come_from_their_own_stream() -> None:
    seeds, episodes = np.array(SEEDS), np.array([0, 1, 2])
    found = draws.episode_seeds(seeds, episodes)
    key = fold(fold(torch.from_numpy(seeds), EPISODE), torch.from_numpy(episodes)) & (2**62 - 1)
    assert found.tolist() == [5, *key[1:].tolist()]


@pytest.mark.parametrize(("budget", "interval", "measure"), [(10, 2, 4), (10, 4, 8), (7, 3, 6), (12, 3, 6)])
def test_the_end_of_the_budget_is_measured(toy: Callable[..., Task], budget: int, interval: int, measure: int) -> None:
    task = toy(budget=budget, interval=interval, measure_interval=measure)
    result = evaluate(constant(peak=0.3), task, SEEDS, device="cpu")
    episode = Episode(task, "set-raw")
    state, trainee = episode.reset(SEEDS)[0], episode.trainee
    with torch.no_grad():
        for _ in range(episode.decisions):
            due = np.zeros(len(SEEDS), dtype=bool)
            state, _ = episode.step(state, torch.full((len(SEEDS), 1), 0.3), due)
        end = trainee.evaluate(state.trainee.params, state.trainee.buffers, trainee.val).loss
    assert state.trainee.step.tolist() == [budget] * len(SEEDS)
    np.testing.assert_allclose(result.curves["val_loss"][-1], end, rtol=1e-5)
    steps = np.minimum(np.arange(1, episode.decisions + 1) * interval, budget)
    for step, row in zip(steps, np.diff(result.curves["val_loss"], axis=0), strict=True):
        assert (row != 0).all() == (step % measure == 0 or step == budget)


def test_a_learned_optimizer_is_trained_on_all_of_its_problems(tmp_path: Path) -> None:
    training = LearnedOptimizerTraining(learned_settings(tmp_path, classes=4, problems=3))
    workers = [training._new_worker() for _ in range(150)]
    counts = Counter(worker.problem for worker in workers)
    assert sorted(counts) == [0, 1, 2]
    assert min(counts.values()) > 30
    firsts = [int(worker.trainees.seed[0]) for worker in workers]
    assert len(set(firsts)) == len(firsts)
    for problem in range(3):
        assert training._trainee(problem).task.name == training.problems[problem].name
    assert len({task.name for task in training.problems}) == 3


def test_every_truncation_has_perturbations_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    draw = learned_optimizer_training.perturbations

    def noted(*arguments: Any) -> Tensor:
        drawn.append(draw(*arguments))
        return drawn[-1]

    monkeypatch.setattr(learned_optimizer_training, "perturbations", noted)
    for seed in (0, 1):
        training = LearnedOptimizerTraining(learned_settings(tmp_path, workers=3, seed=seed))
        for _ in range(3):
            training.iterate()
            training.iteration += 1
    everything = torch.cat(drawn)
    assert len(everything) == 2 * 3 * 3 * 2
    gaps = [(a - b).abs().max() for a, b in itertools.combinations(everything, 2)]
    assert min(gaps) > 1e-3


def test_it_is_validated_on_held_out_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Sequence[int]]] = []
    measure = learned_optimizer_training.evaluate

    def noted(agent: Any, task: Task, seeds: Sequence[int], **settings: Any) -> Any:
        asked.append((task.name, seeds))
        return measure(agent, task, seeds, **settings)

    monkeypatch.setattr(learned_optimizer_training, "evaluate", noted)
    training = LearnedOptimizerTraining(learned_settings(tmp_path, classes=4, problems=3, held_out=2))
    training.held_out_loss(training.controller())
    assert asked == [(task.name, [20_000, 20_001]) for task in training.held_out]
    assert not {name for name, _ in asked} & {task.name for task in training.problems}
