"""The reproduction of the title paper: going on, tables of made-up results, statistics, data that are missing."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import t as student

import xu2019
import xu2019_training
from flow import Lines
from lrenv.agents.ppo.settings import PPOSettings
from lrenv.agents.ppo.training import PPOTraining
from lrenv.agents.schedules.agent import linear
from lrenv.benchmark.evaluation import evaluate
from lrenv.controllers.controller_file import read_metadata
from lrenv.data import load
from xu2019 import Piece, Settings, Xu2019, agent_of, pieces, tuned
from xu2019_cells import Cell, Chosen, best, cells
from xu2019_report import TABLE1, baselines, claims, contest, courses, draw, report, shape, speeds
from xu2019_tasks import GRIDS, NETWORKS, SCALES, Version, available, base, combinations, resized, task_of
from xu2019_training import SETTINGS, Carried

KEY = list(Piece.__annotations__)
SMOKE = SCALES["smoke"]._replace(
    methods=("ours-mlp", "linear"), starts=(1e-3,), seeds=6, at_once={"tiny": 5}, envs={"ours": 2}, episodes={"tiny": 4}
)


def asked(out: Path, **others: Any) -> Settings:
    return Settings(**({"scale": "smoke", "out": out, "device": "cpu"} | others))


def results(out: Path) -> list[dict[str, Any]]:
    """The lines without what depends on time and place."""
    found = Lines(out / "runs.jsonl", KEY).where()
    return [{name: value for name, value in line.items() if name not in ("seconds", "sha256")} for line in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller smoke scale, run at once."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "smoke", SMOKE)
        Xu2019(asked(out)).run()
    return out


def test_it_goes_on_where_it_was_killed(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in every piece: a training in its second update, others before they end, the last while it writes."""
    monkeypatch.setitem(SCALES, "smoke", SMOKE)
    compute, iterate, killed = Xu2019.compute, PPOTraining.iterate, set[object]()

    def once(name: object) -> None:
        if name not in killed:
            killed.add(name)
            raise KeyboardInterrupt

    def computed_but_killed(self: Xu2019, batch: Any) -> Any:
        result = compute(self, batch)
        once(batch[0])
        return result

    def iterated_but_killed(self: PPOTraining) -> dict[str, float]:
        if self.iteration == 1:
            once(self.settings.task)
        return iterate(self)

    monkeypatch.setattr(Xu2019, "compute", computed_but_killed)
    monkeypatch.setattr(PPOTraining, "iterate", iterated_but_killed)
    for _ in range(100):
        try:
            Xu2019(asked(tmp_path)).run()
            break
        except KeyboardInterrupt:
            continue
    assert len(killed) == len(results(whole)) + 2
    text = (tmp_path / "runs.jsonl").read_text()
    (tmp_path / "runs.jsonl").write_text(text[: -len(text.splitlines()[-1]) // 2])
    Xu2019(asked(tmp_path)).run()
    assert results(tmp_path) == results(whole)
    for name in ("figure1.png", "figure2.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert not list(tmp_path.glob("trainings/*/checkpoint.safetensors"))


def test_runs_are_those_asked_for(whole: Path) -> None:
    """Every seed once, from the rate that controllers are said to start from, by what was trained in the setting."""
    found = cells(Lines(whole / "runs.jsonl", KEY))
    for one in found:
        assert one.seeds == list(range(6))
        assert one.curves["lr"].shape == (6, 5)
        if one.method == "ours-mlp":
            assert (one.curves["lr"][:, 0] == 1e-3).all()
    assert len(found) == 5
    assert len({tuple(one.numbers["test_loss"]) for one in found}) == 5
    trained = read_metadata(whole / "trainings" / "digits-tiny-ours-mlp" / "controller.safetensors")["settings"]
    expected = {"reward": "improvement", "gamma": 1.0, "observe": "dynamics", "lstm": False, "envs": 2}
    assert trained | expected == trained


def test_the_papers_setting_is_the_papers() -> None:
    setting = PPOSettings(**SETTINGS["paper"])
    assert (setting.actor_lr, setting.critic_lr, setting.hidden) == (1e-3, 5e-3, 32), "section 3.3"
    assert (setting.observe, setting.reward, setting.control) == ("paper", "val_loss", "scale"), "section 2.2"
    assert SCALES["paper"].envs["paper"] == 1
    assert SCALES["paper"].episodes == {"cnn": 1000, "resnet": 1000}


def test_no_piece_begins_when_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(SCALES, "smoke", SMOKE)
    monkeypatch.setattr(Xu2019, "compute", lambda *_: pytest.fail("time is up"))
    Xu2019(asked(tmp_path, seconds=0)).run()
    assert "0 of 18 runs are there" in capsys.readouterr().out


def test_rows_repeat_to_the_last_digit(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(SCALES, "smoke", SMOKE)
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    Xu2019(asked(out, again=True)).run()
    assert "10 of 10 lines of reported runs were made again" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0 pieces"):
        Xu2019(asked(tmp_path / "empty", again=True)).run()
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    changed = next(line for line in lines if line.get("stage") == "report")
    changed["test_loss"][1] = np.nextafter(changed["test_loss"][1], 2)
    (out / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit, match="1 pieces"):
        Xu2019(asked(out, again=True)).run()
    one, other = sorted(out.glob("trainings/*/controller.safetensors"))
    shutil.copy(one, other)
    with pytest.raises(ValueError, match="is not the controller that was trained here"):
        Xu2019(asked(out, again=True)).run()


def test_what_can_not_be_meant(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, message in (
        ({"methods": ("ppo",)}, "--methods ppo: this scale has ours-mlp, step"),
        ({"networks": ("lenet",)}, "--networks lenet: this scale has tiny"),
        ({"data": ("mnist",)}, "--data mnist: this scale has digits"),
        ({"sources": ("mnist",)}, "--sources mnist: this scale has digits"),
    ):
        with pytest.raises(ValueError, match=message):
            Xu2019(asked(tmp_path, **wrong)).run()
    with pytest.raises(ValueError, match="holds results of --scale smoke"):
        Xu2019(asked(whole, scale="cpu")).run()


def test_pieces_come_after_what_they_need() -> None:
    for scale in SCALES.values():
        found = list(pieces(scale, [names[0] for names in scale.data], scale.networks))
        assert len(set(found)) == len(found)
        assert {piece.network for piece in found} == set(scale.networks)
        carried = [piece for piece in found if piece.data != piece.source]
        assert {(piece.data, piece.source) for piece in carried} == {(scale.data[0][0], scale.data[1][0])}
        assert {piece.stage for piece in carried} == {"report"}
        assert {piece.method for piece in carried} == set(scale.methods) - {"linear", "cosine"}
        for number, piece in enumerate(found):
            if piece.stage == "report":
                needed = [
                    p for p in found if (p.data, p.network, p.method) == (piece.source, piece.network, piece.method)
                ]
                first = [p for p in needed if p.stage != "report"]
                assert first
                assert all(found.index(p) < number for p in first)
    first = next(pieces(SCALES["gpu"], ["fashion-mnist", "cifar10-jpeg"], ["cnn"]))
    assert first == Piece("train", "fashion-mnist", "cnn", "ours-mlp", "fashion-mnist")


def test_the_rows_of_table_2_alone(tmp_path: Path) -> None:
    wanted = Xu2019(asked(tmp_path, data=("digits",), sources=("digits-turned",)))
    found = [piece for (piece,) in wanted.runs()]
    assert {(piece.stage, piece.data, piece.source) for piece in found} == {("report", "digits", "digits-turned")}
    assert {piece.method for piece in found} == {"ours-mlp", "step", "paper-lstm"}


def test_a_missing_data_set_leaves_the_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("LRENV_DATA", str(tmp_path))
    assert available(["svhn", "digits"]) == "digits"
    assert available(["cifar10", "cifar10-jpeg"]) is None
    told = capsys.readouterr().out
    assert "skipping the rows of cifar10 or cifar10-jpeg: cifar10: 6 of 6 files are missing" in told
    assert "cifar10-jpeg: 2 of 2 files are missing" in told
    found = list(pieces(SCALES["cpu"], ["fashion-mnist", None], ["cnn"]))
    assert found
    assert {piece.data for piece in found} == {piece.source for piece in found} == {"fashion-mnist"}
    Xu2019(Settings(scale="gpu", out=tmp_path / "out")).run()
    assert not (tmp_path / "out" / "results.md").exists()


def test_the_grids_and_settings_are_the_papers() -> None:
    assert [len(SCALES["gpu"].grid("cnn", schedule)) for schedule in ("step", "linear", "cosine")] == [48, 14, 14]
    assert SCALES["cpu"].run_on("cnn-caffe") == ("step",)
    fewer = SCALES["cpu"].grid("cnn-caffe", "step")
    assert len(fewer) == 2
    assert "paper-mlp" not in SCALES["cpu"].run_on("resnet")
    assert all(combination in SCALES["cpu"].grid("cnn", "step") for combination in fewer)
    task = task_of("digits", "cnn", Version())
    assert (task.batch_size, task.budget, task.interval, task.optimizer) == (1000, 1000, 10, "adam")
    assert task.initial_lr == (1e-2, 1e-3, 1e-4)
    small = task_of("digits", "tiny", Version(batch_size=20, budget=21, interval=7, val_examples=5))
    assert (small.batch_size, small.budget, small.interval, small.val_examples) == (20, 21, 7, 5)
    for scale in SCALES.values():
        for network in scale.networks:
            reported, trained = scale.reported[network], scale.trained[network]
            if scale is not SCALES["smoke"]:
                assert reported.budget / reported.interval == trained.budget / trained.interval == 100


@pytest.mark.parametrize(
    ("network", "size"),
    [("cnn", 61_706), ("cnn-caffe", 431_080), ("cnn-tensorflow", 3_274_634), ("resnet", 11_172_810)],
)
def test_networks(network: str, size: int) -> None:
    net = NETWORKS[network](Version())((1, 28, 28), 10)
    assert sum(p.numel() for p in net.parameters()) == size
    narrow = NETWORKS["resnet"](Version(width=8))((1, 14, 14), 10)
    assert narrow(torch.zeros(2, 1, 14, 14)).shape == (2, 10)
    assert narrow[-1].in_features == 64


def test_images_are_resized_by_means_of_areas() -> None:
    data, small = load("digits"), resized("digits", 4)
    expected = data.val.inputs.double().unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5)).round()
    assert torch.equal(small.val.inputs.double(), expected)
    assert small.train.inputs.shape == (1200, 1, 4, 4)
    assert torch.equal(small.test.targets, data.test.targets)
    torch.testing.assert_close(small.std.squeeze(), small.train.inputs.double().std(correction=0).float())
    turned = base("digits-turned")
    assert torch.equal(turned.test.inputs[:, :, 0], data.test.inputs[:, :, :, -1])


def test_a_carried_agent_acts_as_often_as_the_task_says() -> None:
    agent = linear(1e-2)
    often = replace(agent, view=replace(agent.view, interval=2))
    task = task_of("digits", "tiny", SMOKE.reported["tiny"])
    ends = {
        name: evaluate(a, task, [0]).curves["lr"].shape for name, a in (("own", often), ("carried", Carried(often)))
    }
    assert ends == {"own": (21, 1), "carried": (5, 1)}


def test_a_run_that_died_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low, died = np.arange(14.0), np.arange(14) < 3
    outcome = SimpleNamespace(val_loss=low, diverged=died, seconds=1.0)
    seen: list[Any] = []
    monkeypatch.setattr(xu2019, "evaluate", lambda agent, task, seeds, **_: seen.append(seeds) or outcome)
    piece = Piece("tune", "digits", "tiny", "linear", "digits")
    lines = Lines(tmp_path / "runs.jsonl", KEY)
    lines.add(asdict(piece) | tuned(piece, SCALES["smoke"], "cpu"))
    found = best(lines, "digits", "tiny", "linear")
    assert found is not None
    assert (found.settings, found.val_loss, len(found.tried)) == (SCALES["smoke"].grid("tiny", "linear")[3], 3.0, 14)
    assert seen == [[10_000] * 14], "the paper's one tuning seed, none of the report"


def cell(method: str, losses: Any, *, rates: Any = ((1e-3, 1e-3),), **others: Any) -> Cell:
    values = np.array(losses, np.float64)
    curves = {"lr": np.array(rates, np.float64), "val_loss": np.ones((len(values), 2))}
    where = {
        "data": "fashion-mnist", "network": "cnn", "source": "fashion-mnist", "start": 1e-3, "version": Version(),
        "method": method, "seeds": list(range(len(values))), "curves": curves,
        "numbers": {"test_loss": values, "test_accuracy": 1 - values, "val_loss": values, "diverged": 0 * values},
    }  # fmt: skip
    return Cell(**(where | others))


def outcome_of(grid: list[dict[str, float]]) -> Chosen:
    return Chosen(grid[0], 0.3, grid, 2.5)


def test_contests_are_welchs_and_paired() -> None:
    """Against both statistics written out."""
    a, b = np.array([0.2, 0.25, 0.22, 0.3]), np.array([0.3, 0.31, 0.29, 0.42])
    verdict, numbers = contest(cell("paper-mlp", a), cell("step", b), "test_loss")
    va, vb = a.var(ddof=1) / 4, b.var(ddof=1) / 4
    freedom = (va + vb) ** 2 / (va**2 / 3 + vb**2 / 3)
    welch = 2 * student.sf((b - a).mean() / np.sqrt(va + vb), freedom)
    paired = 2 * student.sf((b - a).mean() / ((b - a).std(ddof=1) / 2), 3)
    half = student.ppf(0.975, 3) * (b - a).std(ddof=1) / 2
    assert numbers == (
        f"0.3300 (0.0606) → 0.2425 (0.0435), -0.0875 ± {half:.4f}; p = {welch:.2g}, paired {paired:.2g};"
        " better on 4 of 4 seeds"
    )
    assert verdict == ("yes" if welch < 0.05 else "level") == "level"
    assert contest(cell("paper-mlp", a - 0.1), cell("step", b), "test_loss")[0] == "yes"
    assert contest(cell("paper-mlp", a - 0.1), cell("step", b), "test_accuracy")[0] == "yes"
    assert contest(cell("paper-mlp", a + 0.4), cell("step", b), "test_loss")[0] == "no"
    assert contest(cell("paper-mlp", a + 0.4), cell("step", b), "test_accuracy")[0] == "no"
    assert contest(cell("paper-mlp", a[:1]), cell("step", b), "test_loss")[0] == "?"
    assert contest(cell("paper-mlp", a), cell("step", [*b, 9.0]), "test_loss")[1] == numbers, "pairs alone"


def test_settings_are_never_mixed() -> None:
    step, ours = cell("step", [0.28, 0.29, 0.3]), cell("ours-mlp", [0.27, 0.28, 0.3])
    paper, elsewhere = cell("paper-lstm", [0.6, 0.7, 0.83]), cell("step", [1.0, 1.1, 1.2], data="cifar10-jpeg")
    there = [step, ours, paper, cell("linear", [0.1, 0.12, 0.13]), elsewhere]
    rows = list(claims(there, there, "ours"))
    assert len(rows) == 3
    assert all("PPO (ours), perceptron, from 0.001" in row.claim for row in rows)
    published = TABLE1["Fa. MNIST", "cnn", "test_loss"]
    assert rows[0].published == f"{published.baseline} → {published.controller}" == "0.2497 (0.0042) → 0.2351* (0.0038)"
    assert [row.paper for row in rows] == ["table 1, fashion-mnist cnn"] * 2 + ["not in it, fashion-mnist cnn"]
    assert {row.holds for row in claims(there, there, "paper")} == {"no"}
    carried = [replace(c, source="cifar10-jpeg") for c in (step, ours)]
    loss, _ = claims(carried, carried, "ours")
    assert loss.published == "0.2730 (0.0031) → 0.2598* (0.0071)"
    unlike = [replace(step, source="cifar10-jpeg"), ours]
    assert not list(claims(unlike, unlike, "ours")), "own and carried are not rivals"


def test_published_numbers_stand_beside_nothing_that_is_reduced() -> None:
    """Neither runs, nor what the controller was trained on, nor the grid."""
    small = Version(size=14)
    step, ours = cell("step", [0.28, 0.29, 0.3]), cell("ours-mlp", [0.27, 0.28, 0.3])
    for baseline, controller, title in (
        (replace(step, version=small), replace(ours, version=small, trained=small), "PPO (ours), perceptron"),
        (step, replace(ours, trained=small), "from 0.001, trained on a cheaper version: "),
        (replace(step, chosen=outcome_of([{"peak": 0.01}])), ours, "step decay, best of 1"),
    ):
        both = [baseline, controller]
        found = [*claims(both, both, "ours"), *speeds(both, both, "ours")]
        assert len(found) == 3
        assert {row.published for row in found} == {""}
        assert all(row.paper.startswith("not in it, fashion-mnist cnn") for row in found)
        assert all(title in row.claim for row in found)
        (course,) = courses([controller], "ours")
        assert bool(course.published) == (baseline.chosen is not None), "a course has no baseline"
    whole = [replace(step, chosen=outcome_of(combinations(GRIDS["step"]))), replace(ours, trained=Version())]
    assert all(row.published for row in (*claims(whole, whole, "ours"), *speeds(whole, whole, "ours")))


def test_who_is_sooner_at_the_lowest_loss_of_step_decay() -> None:
    """By the geometric means of curves, which step decay's own lowest decision is compared with."""

    def course(method: str, *runs: list[float]) -> Cell:
        return cell(method, [0.1] * len(runs), curves={"val_loss": np.array(runs), "lr": np.ones((len(runs), 4))})

    step = course("step", [8.0, 2.0, 1.0, 2.0], [8.0, 8.0, 4.0, 8.0])
    sooner, later = course("ours-mlp", [8.0, 2.0, 3.0, 3.0]), course("ours-mlp", [8.0, 4.0, 4.0, 1.0])
    never = course("ours-mlp", [8.0, 3.0, 3.0, 3.0])
    (found,) = speeds([sooner], [step, sooner], "ours")
    assert (found.paper, found.published, found.holds) == ("figure 1, fashion-mnist cnn", "yes", "yes")
    assert found.ours == "2.0000 after 2 of 3 decisions → after 1"
    assert [row.holds for row in speeds([later, never], [step], "ours")] == ["no", "no"]
    (found,) = speeds([never], [step], "ours")
    assert found.ours == "2.0000 after 2 of 3 decisions → never, lowest 3.0000"
    assert not list(speeds([replace(sooner, source="cifar10")], [replace(step, source="cifar10")], "ours"))


def test_baselines_stand_beside_the_papers_where_they_are_whole() -> None:
    losses = [0.28, 0.3]
    where = {"network": "cnn-caffe", "data": "cifar10-jpeg", "source": "cifar10-jpeg"}
    other = cell("step", losses, chosen=outcome_of([{"peak": 0.1}, {"peak": 0.2}]), **where)
    carried = cell("step", losses, source="cifar10-jpeg")
    reduced, linear_decay = cell("step", losses, version=Version(size=14)), cell("linear", losses)
    rows = list(baselines([other, carried, reduced, linear_decay]))
    assert [(row.paper, row.claim, row.published) for row in rows] == [
        ("baseline, cifar10-jpeg cnn-caffe", "test loss of step decay, best of 2", "0.9539 (0.0140)"),
        ("baseline, cifar10-jpeg cnn-caffe", "test accuracy of step decay, best of 2", "0.6759 (0.0048)"),
        ("baseline, fashion-mnist cnn, from cifar10-jpeg", "test loss of step decay", "0.2730 (0.0031)"),
        ("baseline, fashion-mnist cnn, from cifar10-jpeg", "test accuracy of step decay", "0.9021 (0.0013)"),
    ]
    assert rows[0].ours == "0.2900 (0.0141); runs: 2"


def test_shapes_of_schedules() -> None:
    assert shape(np.array([1.0, 2.0, 0.5])) == "warms up, then decays"
    assert shape(np.array([1.0, 4.0, 1.5])) == "warms up, then decays"
    assert shape(np.array([1.0, 1.2, 0.5])) == "decays"
    assert shape(np.array([1.0, 2.0, 1.5])) == "rises"
    assert shape(np.array([1.0, 1.2, 0.9])) == "stays"
    runs = [[1.0, 2.0, 0.5], [1.0, 8.0, 0.5], [1.0, 1.0, 0.5], [1.0, np.nan, np.nan]]
    ((place, _, published, numbers, holds),) = courses([cell("ours-mlp", [0.1] * 4, rates=runs)], "ours")
    assert (place, published, holds) == ("figure 2, fashion-mnist cnn", "warms up, then decays", "yes")
    assert not next(courses([cell("ours-mlp", [0.1] * 4, rates=runs, start=1e-2)], "ours")).published
    assert numbers.startswith("warms up, then decays (so 2 of 3 runs): 1 first, 2.5 after 1 of 2 decisions, 0.5 last")


def test_tables_of_fixed_results(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "runs.jsonl", KEY)
    row = {"data": "fashion-mnist", "network": "cnn", "source": "fashion-mnist"}
    told = {"version": list(Version()), "seconds": 2.5}
    tried = [{"peak": x, "warmup": 0, "val_loss": loss} for x, loss in ((0.1, None), (0.01, 0.3), (0.001, 0.4))]
    lines.add(asdict(Piece("tune", method="linear", **row)) | told | {"combinations": tried})
    cheap = {"version": [20, 64, 100, 100, 1, 50], "seconds": 2.5, "episodes": 8, "runs_spent": 12}
    lines.add(asdict(Piece("train", method="ours-mlp", **row)) | cheap)
    # The second half of the runs was written first.
    for part, method, losses in (
        (1, "linear", [0.4, 0.5]),
        (0, "linear", [0.2, 0.3]),
        (0, "ours-mlp", [0.1, 0.11, 0.1, 0.11]),
    ):
        piece = Piece("report", method=method, start=0.0 if method == "linear" else 1e-3, part=part, **row)
        seeds = list(range(2 * part, 2 * part + len(losses)))
        numbers = dict.fromkeys(("val_loss", "test_loss", "test_accuracy"), losses)
        curves = {name: [[0.01, 0.02, 0.001]] * len(losses) for name in ("val_loss", "lr")}
        line = numbers | {"seeds": seeds, "diverged": [False] * len(losses), "curves": curves}
        lines.add(asdict(piece) | line | told)
    found = {c.method: c for c in cells(lines)}
    assert found["linear"].seeds == [0, 1, 2, 3]
    assert found["linear"].numbers["test_loss"].tolist() == [0.2, 0.3, 0.4, 0.5]
    told = report(lines)
    text = told.text
    level = " | ".join(["0.3500 (0.1291)"] * 3)
    assert f"| fashion-mnist cnn | linear decay, best of 3 | peak 0.01, warmup 0 | {level} | 4 | 0 | whole |" in text
    assert "| fashion-mnist cnn | linear decay, best of 3 |  | 3 | 2 | as reported |" in text
    on = "images of 20x20 pixels, batches of 100, 100 steps, an action every 1 steps, 50 validation images"
    assert f"| fashion-mnist cnn | PPO (ours-mlp) | 8 | 12 | 2 | {on} |" in text
    (loss,) = (row for row in told.claims if row.claim.endswith("test loss better than linear decay, best of 3"))
    assert loss.ours.startswith("0.3500 (0.1291) → 0.1050 (0.0058), -0.2450 ± 0.2")
    assert all("PPO (ours)" in row.claim for row in told.claims)


def test_a_panel_has_a_row_and_what_stands_beside_its_controllers() -> None:
    elsewhere = {"network": "cnn-caffe"}
    found = [cell("step", [0.1, 0.2]), cell("ours-mlp", [0.1]), cell("paper-mlp", [0.1]), cell("linear", [0.1]),
             cell("step", [0.3], **elsewhere), cell("step", [0.4], source="cifar10-jpeg")]  # fmt: skip
    shown = [ax for ax in draw(found, "val_loss", "loss").axes if ax.get_visible()]
    told = {ax.get_title(): [line.get_label() for line in ax.get_lines()] for ax in shown}
    ours, paper = (f"PPO ({setting}), perceptron, from 0.001" for setting in ("ours", "paper"))
    assert told == {
        "fashion-mnist cnn\nThe paper's setting": ["step decay", paper, "linear decay"],
        "fashion-mnist cnn\nOur setting": ["step decay", ours, "linear decay"],
        "fashion-mnist cnn-caffe": ["step decay"],
    }


def test_whole_runs_of_schedules_may_be_those_of_another_folder(tmp_path: Path) -> None:
    """Where this one has none, and where its own runs are whole."""
    row = {"data": "fashion-mnist", "network": "cnn", "source": "fashion-mnist"}
    numbers = {"val_loss": [0.3, 0.31], "test_accuracy": [0.9, 0.9], "diverged": [False] * 2, "seeds": [0, 1]}
    numbers |= {"curves": {name: [[0.01, 0.001]] * 2 for name in ("val_loss", "lr")}}
    reduced = list(Version(size=14))
    for folder, method, losses, version in (
        ("there", "step", [0.3, 0.31], list(Version())),
        ("there", "linear", [0.4, 0.41], reduced),
        ("there", "cosine", [0.4, 0.41], list(Version())),
        ("there", "ours-mlp", [0.1, 0.11], list(Version())),
        ("here", "cosine", [0.5, 0.51], list(Version())),
        ("here", "step", [0.01, 0.02], reduced),
        ("here", "paper-mlp", [0.2, 0.22], list(Version())),
        ("reduced", "paper-mlp", [0.2, 0.22], reduced),
    ):
        lines = Lines(tmp_path / folder / "runs.jsonl", KEY)
        lines.add(asdict(Piece("report", method=method, **row)) | numbers | {"test_loss": losses, "version": version})
    there, here, smaller = (Lines(tmp_path / name / "runs.jsonl", KEY) for name in ("there", "here", "reduced"))
    told = report(here, there)
    assert "are those of `--beside there`" in told.text
    assert "| fashion-mnist cnn | step decay |  | 0.3050 (0.0071) |" in told.text, "levels have them, too"
    losses = {claim.claim: claim.ours for claim in told.claims if "test loss" in claim.claim}
    assert [text.partition(" →")[0] for text in losses.values()] == ["0.5050 (0.0071)", "0.3050 (0.0071)"]
    assert not [claim for claim in report(smaller, there).claims if "better than" in claim.claim]
    with pytest.raises(ValueError, match="there is no runs.jsonl"):
        Xu2019(Settings(out=tmp_path / "out", beside=tmp_path / "nowhere"))
    asked = Xu2019(Settings(out=tmp_path / "out", beside=tmp_path / "there"))
    assert asked.arguments() == f"--scale cpu --beside {tmp_path / 'there'}", "the page tells what it is drawn with"


def test_runs_that_do_not_belong_together(tmp_path: Path) -> None:
    """Of other versions, or cut into other parts, as where a scale was changed meanwhile."""
    row = {"data": "fashion-mnist", "network": "cnn", "method": "step", "source": "fashion-mnist"}
    numbers = {name: [0.3] for name in ("val_loss", "test_loss", "test_accuracy", "diverged")}
    numbers["curves"] = {name: [[0.01, 0.001]] for name in ("val_loss", "lr")}
    for name, second in (
        ("version", {"seeds": [1], "version": list(Version(size=14))}),
        ("seeds", {"seeds": [0], "version": list(Version())}),
    ):
        lines = Lines(tmp_path / name / "runs.jsonl", KEY)
        lines.add(asdict(Piece("report", **row)) | numbers | {"seeds": [0], "version": list(Version())})
        assert len(cells(lines)) == 1
        lines.add(asdict(Piece("report", part=1, **row)) | numbers | second)
        with pytest.raises(ValueError, match="fashion-mnist cnn step do not belong together"):
            cells(lines)


def test_no_report_of_another_grid(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "runs.jsonl", KEY)
    piece = Piece("tune", "digits", "tiny", "linear", "digits")
    grid = SCALES["smoke"].grid("tiny", "linear")
    tried = [combination | {"val_loss": 0.1} for combination in [*grid[1:], {"peak": 0.5, "warmup": 0}]]
    lines.add(asdict(piece) | {"combinations": tried, "seconds": 1.0})
    wanted = replace(piece, stage="report")
    assert agent_of(wanted, SCALES["smoke"], lines, tmp_path) is None
    lines.add(asdict(replace(piece, part=1)) | {"combinations": [grid[0] | {"val_loss": 0.2}], "seconds": 1.0})
    assert agent_of(wanted, SCALES["smoke"], lines, tmp_path) is not None


def test_a_controller_of_another_training_is_not_taken(whole: Path, tmp_path: Path) -> None:
    name = "digits-tiny-ours-mlp"
    shutil.copytree(whole / "trainings" / "digits-turned-tiny-ours-mlp", tmp_path / "trainings" / name)
    with pytest.raises(ValueError, match="was trained on xu2019-digits-turned-tiny.*, not on xu2019-digits-tiny"):
        Xu2019(asked(tmp_path)).trained(Piece("train", "digits", "tiny", "ours-mlp", "digits"))


def test_every_network_trains(tmp_path: Path) -> None:
    for network in ("cnn-tensorflow", "resnet"):
        version = Version(width=2, batch_size=20, budget=4, interval=2, val_examples=20)
        task = task_of("digits", network, version)
        result = evaluate(linear(1e-3), task, [0, 1], device="cpu")
        assert np.isfinite(result.test_loss).all()
        assert not result.diverged.any()


def test_a_training_can_be_ended_sooner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of its updates were asked for at last, where three had been."""
    monkeypatch.setitem(SCALES, "smoke", SMOKE._replace(episodes={"tiny": 6}, evaluations=3))
    piece = Piece("train", "digits", "tiny", "ours-mlp", "digits")
    iterate = PPOTraining.iterate

    def interrupted(self: PPOTraining) -> dict[str, float]:
        if self.iteration == 1:
            raise KeyboardInterrupt
        return iterate(self)

    with monkeypatch.context() as patch:
        patch.setattr(PPOTraining, "iterate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Xu2019(asked(tmp_path)).trained(piece)
    made = Xu2019(asked(tmp_path, episodes=4)).trained(piece)
    assert (made["episodes"], made["runs_spent"]) == (4, 4 + 2 * 2)
    assert made["version"] == [None, 64, 20, 20, 5, 20]
    assert made["seconds"] > 0


def test_runs_are_those_of_the_controllers_file(tmp_path: Path) -> None:
    """A validation whose loss was infinite is an empty cell of the log; its runs were made all the same."""
    committed = Path(xu2019.__file__).parent / "results" / "xu2019" / "trainings" / "fashion-mnist-cnn-ours-mlp"
    shutil.copy(committed / "controller.safetensors", tmp_path)
    header, *rows = (committed / "progress.csv").read_text().splitlines()
    emptied = [row.rsplit(",", 2)[0] + ",," for row in rows]
    (tmp_path / "progress.csv").write_text("\n".join([header, *emptied]))
    assert header.endswith("eval/val_loss,eval/best_val_loss")
    assert xu2019_training.runs_spent(tmp_path) == {"episodes": 480, "runs_spent": 504, "seconds": 109.8}
