"""Specs: whatever is written comes back, paths of every spelling, and sentences for what can't be read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrenv.specs import NAME, parse, split

NAMES = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}\Z").filter(lambda name: not name.endswith(".safetensors"))
KEYS = st.from_regex(r"\A[a-z_][a-z0-9_]{0,8}\Z")
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner) | st.lists(inner).map(tuple),
    max_leaves=6,
)


def written(name: str, settings: dict[str, Any]) -> str:
    return ":".join([name, *(f"{key}={value!r}" for key, value in settings.items())])


@given(NAMES, st.dictionaries(KEYS, VALUES, max_size=3))
def test_every_literal_comes_back(name: str, settings: dict[str, Any]) -> None:
    assert parse(written(name, settings)) == (name, settings)


@given(st.lists(st.tuples(NAMES, st.dictionaries(KEYS, VALUES, max_size=2)), min_size=1, max_size=4))
def test_lists_come_back(pairs: list[tuple[str, dict[str, Any]]]) -> None:
    """Whatever commas, colons, brackets, quotes and backslashes the values hold."""
    texts = [written(*pair) for pair in pairs]
    assert split(",".join(texts)) == texts
    assert [parse(text) for text in split(" , ".join(texts))] == pairs


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (parse, split):
        with suppress(ValueError):
            read(text)


@given(st.text(st.characters(codec="utf-8", exclude_characters="'\""), max_size=30))
def test_a_path_is_taken_whole(folder: str) -> None:
    path = f"x{folder}/controller.safetensors"
    assert parse(path) == (path, {})
    assert parse(path).is_path
    assert split(f"'{path}',cosine") == [f"'{path}'", "cosine"]
    assert parse(f"'{path}'") == (path, {})


@pytest.mark.parametrize(
    ("spec", "name", "settings"),
    [
        ("cosine", "cosine", {}),
        ("cosine:peak=0.01:warmup=10", "cosine", {"peak": 0.01, "warmup": 10}),
        ("constant:peak=1e-3", "constant", {"peak": 1e-3}),
        ("constant:peak=[0.1, 0.2]", "constant", {"peak": [0.1, 0.2]}),
        ("fds:lr=(0.1,)", "fds", {"lr": (0.1,)}),
        ("fds:lr=(0.1,):optimizer=adam", "fds", {"lr": (0.1,), "optimizer": "adam"}),
        ("mine:time=12:30:path=C:\\x y", "mine", {"time": "12:30", "path": "C:\\x y"}),
        ("mine:text='a:b=c,d'", "mine", {"text": "a:b=c,d"}),
        ("mine:a='\\\\':b='\\\\,\\'':c=1", "mine", {"a": "\\", "b": "\\,'", "c": 1}),
        ("mine:text=it's", "mine", {"text": "it's"}),
        ("mine:table={'a': [1, 2]}:n=3", "mine", {"table": {"a": [1, 2]}, "n": 3}),
        ("mine:file='x.safetensors'", "mine", {"file": "x.safetensors"}),
        ("my_tasks.py:mine", "my_tasks.py:mine", {}),
        (r"C:\x y\my_agents.py:Mine:rate=0.1:n=2", r"C:\x y\my_agents.py:Mine", {"rate": 0.1, "n": 2}),
        ("'a:b=c/x.py':Mine:k=1", "'a:b=c/x.py':Mine", {"k": 1}),
        ("mine:file=x.py:foo", "mine", {"file": "x.py:foo"}),
        (r"C:\runs\x\controller.safetensors", r"C:\runs\x\controller.safetensors", {}),
        ("runs/2026-11-26T12:21:20/c.safetensors", "runs/2026-11-26T12:21:20/c.safetensors", {}),
        ("runs/lr=0.1,seed=0/c.safetensors", "runs/lr=0.1,seed=0/c.safetensors", {}),
    ],
)
def test_specs(spec: str, name: str, settings: dict[str, Any]) -> None:
    found = parse(spec)
    assert found == (name, settings)
    assert all(type(x) is type(settings[key]) for key, x in found.settings.items())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cosine:0.1", "neither name:key=value"),
        ("a b:x=1", "neither name:key=value"),
        ("", "neither name:key=value"),
        ("runs/x", "neither name:key=value:key=value, nor my_file.py:name:key=value, nor the path of a .saf"),
        ("my_tasks.py", "names a file, but nothing in it: write my_tasks.py:NAME"),
        ("my_tasks.py:1x", "neither name:key=value"),
        ("cosine:peak=", "gives peak no value"),
        ("cosine:peak=1:peak=2", "gives peak twice"),
        ("fds:lr=(0.1,", r"lacks a closing \)"),
        ("mine:text='a", "lacks a closing '"),
        ("mine:x=" + "[" * 100_000 + "]" * 100_000, "200000 characters"),
    ],
)
def test_what_cannot_be_read(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(spec)


@pytest.mark.parametrize(
    ("spec", "own", "short_name"),
    [
        ("a/my_tasks.py:mine:budget=3", ("a/my_tasks.py", "mine"), "mine"),
        (r"C:\x\my.py:Mine", (r"C:\x\my.py", "Mine"), "Mine"),
        ("'a:b=c/x.py':Mine:k=1", ("a:b=c/x.py", "Mine"), "Mine"),
        ('"it\'s/x.py":Mine', ("it's/x.py", "Mine"), "Mine"),
        ("digits-mlp:budget=3", None, "digits-mlp"),
        ("x.safetensors", None, "x.safetensors"),
    ],
)
def test_ones_own(spec: str, own: tuple[str, str] | None, short_name: str) -> None:
    found = parse(spec)
    assert (found.own, found.short_name) == (own, short_name)


def test_deep_nesting_is_text_or_a_value() -> None:
    deep = "[" * 2000 + "]" * 2000
    assert parse(f"mine:x={deep}").settings["x"] == deep


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("", []),
        (" , ,", []),
        ("constant, step ,cosine", ["constant", "step", "cosine"]),
        ("fds:lr=(0.1, 0.01),cosine", ["fds:lr=(0.1, 0.01)", "cosine"]),
        ("a.safetensors,b.safetensors", ["a.safetensors", "b.safetensors"]),
        ("'a,b.safetensors',step", ["'a,b.safetensors'", "step"]),
        (r"C:\runs\x\c.safetensors,step", [r"C:\runs\x\c.safetensors", "step"]),
    ],
)
def test_lists(text: str, specs: list[str]) -> None:
    assert split(text) == specs


@pytest.mark.parametrize("folder", ["lr=0.1,seed=0", "it's", "a (b", "x,y,z", "[a", "a:b=1", "a\\b", "\u00e9 \u4e16"])
def test_a_file_that_exists_is_taken_whole(folder: str, tmp_path: Path) -> None:
    path = tmp_path / folder / "controller.safetensors"
    path.parent.mkdir()
    path.touch()
    assert split(f"constant,{path}, step") == ["constant", str(path), "step"]
    assert split(f"{path},{path}") == [str(path), str(path)]
    (tmp_path / "controller.safetensors").touch()
    assert split(str(path)) == [str(path)]
    assert parse(str(path)) == (str(path), {})


def test_the_longest_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "a.safetensors,b.safetensors"):
        Path(name).touch()
    assert split("a.safetensors,b.safetensors,a.safetensors") == ["a.safetensors,b.safetensors", "a.safetensors"]


@given(st.text(max_size=8))
def test_names_hold_no_separator(text: str) -> None:
    assert not NAME.fullmatch(text) or not set(text) & set(":,=/\\ \t\n'\"()[]{}")


def test_a_long_list_may_hold_a_file(tmp_path: Path) -> None:
    file = tmp_path / "controller.safetensors"
    file.touch()
    listed = [*(f"cosine:peak=0.01:warmup={i}" for i in range(30)), str(file)]
    assert split(",".join(listed)) == listed
