"""The reference: every public name of every wing, in the order in which a wing says that its files are to be read."""

from __future__ import annotations

import re

from generator import docstrings
from generator.links import linked, origin, placed
from generator.source import Module, Public, exported, modules

FRONT = "lrenv"
AGENTS = "lrenv.agents"


def pages() -> dict[str, str]:
    """Returns the pages of the reference."""
    wings = [name for name, module in modules().items() if module.path.name == "__init__.py" and name != FRONT]
    made = {f"api/{wing.removeprefix(f'{FRONT}.')}": _wing(wing) for wing in wings}
    made["api/lrenv"] = _page(FRONT, [name for name in modules() if name.count(".") == 1 and name not in wings])
    places = {FRONT: "lrenv"} | {wing: wing.removeprefix(f"{FRONT}.") for wing in sorted(wings, key=_place)}
    toc = "\n".join(places.values())
    folders = "\n".join(
        f"- [{wing}]({place}.md): {linked(docstrings.parse(modules()[wing].docstring).summary, wing)}"
        for wing, place in places.items()
    )
    names = "\n".join(f"- {linked(f'`lrenv.{name}`')}: {_summary(FRONT, name)}" for name in exported(FRONT))
    agents = "\n".join(f"- {linked(f'`{AGENTS}.{name}`')}: {_summary(AGENTS, name)}" for name in exported(AGENTS))
    made["api/index"] = (
        f"# API\n\nWhat `import lrenv` gives:\n\n{names}\n\nand `lrenv.agents` besides:\n\n{agents}\n\n"
        "Everything else, by folder; each page begins with the idea and the order in which to read the files.\n\n"
        f"{folders}\n\n```{{toctree}}\n:hidden:\n:maxdepth: 1\n\n{toc}\n```\n"
    )
    return made


def _place(wing: str) -> tuple[bool, str]:
    return wing.startswith(AGENTS), wing


def _summary(module: str, name: str) -> str:
    full = origin(module, name)
    found = next(each for place in modules().values() for each in place.public if each.full == full)
    return linked(docstrings.parse(found.docstring).summary, found.module)


def _wing(wing: str) -> str:
    package = modules()[wing]
    below = [name for name in modules() if name.rpartition(".")[0] == wing and modules()[name].path.stem != "__init__"]
    return _page(wing, sorted(below, key=lambda name: _mentioned(package, name)))


def _mentioned(package: Module, name: str) -> int:
    """Where a package's docstring mentions one of its files."""
    place = package.docstring.find(name.rpartition(".")[2])
    return place if place >= 0 else len(package.docstring)


def _page(name: str, files: list[str]) -> str:
    parts = [_module(modules()[name], "#"), *(_module(modules()[each], "##") for each in files)]
    return "\n\n".join(parts) + "\n"


def _module(module: Module, level: str) -> str:
    docstring = docstrings.parse(module.docstring)
    text = docstring.text + (f"\n\n**Limits.** {docstring.limits}" if docstring.limits else "")
    place = f"```{{py:module}} {module.name}\n```\n\n`{module.path}`"
    head = f"{level} {module.name}\n\n{place}\n\n{_told(text, module.name)}"
    return "\n\n".join([head, *(_object(each) for each in module.public if "." not in each.name)])


def _object(public: Public, depth: int = 7) -> str:
    docstring = docstrings.parse(public.docstring)
    within = public.name if public.kind == "class" else public.name.rpartition(".")[0]
    parts = [_told(docstring.text, public.module, within)]
    if public.fields:
        parts.append(f"```python\n{public.fields}\n```")
    fields = []
    for section, kind in (("Args", "param"), ("Attributes", "ivar"), ("Raises", "raises")):
        for name, text in docstring.sections.get(section, {}).items():
            given = kind == "ivar" and re.search(rf"\b{re.escape(name)}:", public.signature)
            role = "param" if given else kind  # the attributes of a record are what it is made with
            fields.append(f":{role} {name.lstrip('*')}: {linked(text, public.module, within)}" if name else text)
    if "Returns" in docstring.sections:
        told = " ".join(docstring.sections["Returns"][""].split())
        fields.append(f":returns: {linked(told, public.module, within)}")
    if fields:
        parts.append("\n".join(fields))
    members = [
        each
        for each in modules()[public.module].public
        if each.name.rpartition(".")[0] == public.name and each.docstring
    ]
    parts += [_object(each, depth - 1) for each in members]
    options = "\n".join((f":module: {public.module}", *(placed(option) for option in public.options)))
    fence = "`" * depth
    directive = f"{fence}{{py:{public.kind}}} {public.name}{placed(public.signature)}\n{options}\n\n"
    return directive + "\n\n".join(part for part in parts if part) + f"\n{fence}"


def _told(text: str, module: str, within: str = "") -> str:
    return docstrings.with_papers(linked(text, module, within))
