"""The documentation agrees with the project: links, paths, commands, and the configuration reference."""

from __future__ import annotations

import functools
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from fedem_flwr import runtime
from fedem_flwr.cli import app
from fedem_flwr.cli.options import experiment_tree, options_tree
from fedem_flwr.config import merge_trees, resolve
from fedem_flwr.config.reference import BEGIN, END, reference, with_reference
from fedem_flwr.config.resolved import method_names
from fedem_flwr.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
SOURCE = re.compile(r"`((?:fedem_flwr|strategies|clients|configs|tests|docs|benchmarks)/[\w./-]+\.\w+)`")


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def outside_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", outside_fences(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {slug(heading) for heading in headings}


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for target in LINK.findall(outside_fences(page.read_text(encoding="utf-8"))):
            if not re.match(r"[a-z]+:", target):
                yield page, target


def commands() -> Iterator[tuple[str, str]]:
    """Page and line of every `fedem` command, in fenced or indented blocks and in running text."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        blocks = re.findall(r"^```(?:sh|bash|console|text)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        indented = re.findall(r"^ {4,}\$? ?(fedem .+)$", text, re.MULTILINE)
        inline = re.findall(r"`(fedem [^`\s]+ [^`\n]+)`", outside_fences(text))  # `fedem resume` alone is but a name
        fenced = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
        for line in (*fenced, *indented, *inline):
            if line.startswith("fedem "):
                yield page.name, line


@functools.cache
def whole() -> click.Command:
    """The command line; one for these tests, since contexts leave traces in it."""
    return typer.main.get_command(app)


def parsed(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The command's name and parameters; a click error where they do not fit. Nothing is executed."""
    command = whole()
    context = click.Context(command, info_name="fedem")
    name = "fedem"
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        found, below, arguments = command.resolve_command(context, arguments)
        assert found is not None and below is not None
        command, name = below, f"{name} {found}"
        context = click.Context(command, info_name=found, parent=context)
    try:
        return name, command.make_context(name, arguments).params
    except click.exceptions.Exit:  # --help and --version
        return name, {}


@pytest.mark.parametrize(("page", "target"), list(links()), ids=lambda value: getattr(value, "name", value))
def test_link_leads_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    there = (page.parent / path).resolve() if path else page
    assert there.exists()
    assert there.is_relative_to(ROOT)
    if anchor and there.suffix == ".md":
        assert anchor in anchors(there)


def test_named_files_exist() -> None:
    named = {(page.name, name) for page in PAGES for name in SOURCE.findall(page.read_text(encoding="utf-8"))}
    real = {entry for entry in named if not re.search(r"NAME|KIND|METHOD|DATASET", entry[1])}
    assert real
    assert {entry for entry in real if not (ROOT / entry[1]).exists()} == set()


@pytest.mark.parametrize(("page", "line"), list(commands()))
def test_command_parses(page: str, line: str) -> None:
    name, params = parsed(shlex.split(line, comments=True)[1:])
    if name != "fedem run":
        return
    options = options_tree(
        {
            "data": {"dataset": params["dataset"], "protocol": params["protocol"]},
            "method": {"name": params["method"]},
            "run": {key: params[key] for key in ("runtime", "users_per_node", "rounds", "seed", "device")},
        },
        params["settings"] or [],
    )
    try:
        tree, _ = experiment_tree(params["experiment"])
    except InputError:  # a file of the reader's own
        tree = {"method": {"strategy": "theirs"}}
    tree = {section: keys for section, keys in tree.items() if section not in ("methods", "variants")}
    resolve(tree, merge_trees(options, {"method": of_the_reader(params["method"])}))
    for method in params["against"] or []:
        resolve({}, {"method": {"name": method, **of_the_reader(method)}})


def of_the_reader(method: str | None) -> dict[str, str]:
    """The `[method]` keys of one that the page's reader has written."""
    return {} if method is None or method in method_names() else {"name": "mine", "strategy": "theirs"}


def test_wrong_commands_are_noticed() -> None:
    for line in ("run --no-such-option", "recommend", "run --rounds many", "audit --rounds 0", "nothing"):
        with pytest.raises(click.ClickException):
            parsed(line.split())
    assert {line.split()[1] for _, line in commands()} >= {"run", "audit", "resume"}


def test_the_audit_has_the_same_figures_on_both_pages() -> None:
    """One run, told twice; what is quoted must be what was measured."""
    audits = []
    for name in ("results.md", "protocols.md"):
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        (table,) = re.findall(r"^\| method \| paper HR@10 .*\n((?:\|.*\n)+)", text, re.MULTILINE)
        audits.append(table)
    assert audits[0] == audits[1] and "| local-only |" in audits[0]


def test_the_runtime_lists_its_modules() -> None:
    listed = re.findall(r"^(\w+)  +\S", runtime.__doc__ or "", re.MULTILINE)
    assert sorted(listed) == sorted(module.name for module in pkgutil.iter_modules(runtime.__path__))


def test_configuration_reference_is_current() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert with_reference(page) == page, "run: python -m fedem_flwr.config.reference"


def test_reference_replaces_what_is_between_its_markers() -> None:
    assert with_reference(f"a {BEGIN} old {END} z") == f"a {BEGIN}\n\n{reference()}\n{END} z"
    with pytest.raises(InputError, match="markers"):
        with_reference("a page without")
