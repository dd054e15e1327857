"""The rooms and their order: no circle of imports, and no arrow upwards."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("fedem_flwr", "strategies", "clients")
# From the lowest to the highest; a room imports from itself and from those before it. docs/architecture.md draws it.
ROOMS = [
    *(
        "rooms",
        "version",
        "text",
        "terminal",
        "errors",
        "randomness",
        "files",
        "locking",
        "pulse",
        "data",
        "protocol",
        "config",
        "models",
        "aggregation",
        "engine",
        "evaluation",
        "privacy",
    ),
    *("contract", "methods", "report", "messages", "nodes", "clients", "strategies", "runtime", "serving", "network"),
    *("experiment", "leaderboard", "bench", "cli", "apps"),
]
Graph = Mapping[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Name to file of all modules below a folder's packages."""
    found = {}
    for top in TOPS:
        for file in sorted((root / top).rglob("*.py")):
            name = ".".join(file.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = file
    return found


def imported(file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules that a file imports anywhere, also inside functions; those for type checkers alone are left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = f"{file.parent.name}.{node.module}" if node.level else node.module  # only siblings do so
            for alias in node.names:
                inside = f"{module}.{alias.name}"
                if (name := inside if inside in known else module) in known:
                    yield name


def graph(root: Path) -> dict[str, set[str]]:
    """Module to the modules that it imports."""
    known = modules(root)
    return {name: set(imported(file, known)) - {name} for name, file in known.items()}


def circles(arrows: Graph) -> list[str]:
    """The modules that reach themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(arrows[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += arrows[name]
        return seen

    return sorted(name for name in arrows if name in reached(name))


def room(module: str) -> str:
    """The room that a module is in."""
    first, _, rest = module.partition(".")
    if first != "fedem_flwr":
        return first
    inner = rest.partition(".")[0]
    return inner if inner in ROOMS else "apps"


def upwards(arrows: Graph) -> list[str]:
    """The arrows from a room to a higher one."""
    height = {name: number for number, name in enumerate(ROOMS)}
    pairs = ((a, b) for a, found in arrows.items() for b in sorted(found))
    return [f"{a} -> {b}" for a, b in pairs if height[room(b)] > height[room(a)]]


def test_no_module_reaches_itself() -> None:
    assert circles(graph(ROOT)) == []


def test_no_arrow_points_upwards() -> None:
    assert upwards(graph(ROOT)) == []


def test_every_folder_is_a_room() -> None:
    folders = {path.name for path in (ROOT / "fedem_flwr").iterdir() if (path / "__init__.py").exists()}
    assert folders <= set(ROOMS)


@pytest.mark.parametrize("planted", ["from fedem_flwr.engine.cohort import Cohort", "import fedem_flwr.cli.entry"])
def test_a_planted_arrow_is_found(tmp_path: Path, planted: str) -> None:
    """In a small house of two rooms, low in a function."""
    for top in TOPS:
        (tmp_path / top).mkdir()
    for name, text in {
        "fedem_flwr/models/low.py": f"def late() -> None:\n    {planted}\n",
        "fedem_flwr/engine/cohort.py": "from fedem_flwr.models import low\nclass Cohort: ...\n",
        "fedem_flwr/cli/entry.py": "from fedem_flwr.models.low import late\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    arrows = graph(tmp_path)
    assert len(upwards(arrows)) == 1
    assert "fedem_flwr.models.low" in circles(arrows)


PAST = re.compile(
    r"(?<![\w.])print\(|(?<!\w)Console\(|logging\.Formatter\(|\.write_text\(|\.write_bytes\(|\.open\(\"[wa]"
)


def those_that_go_past(root: Path) -> set[str]:
    """The modules that print or log past what makes text safe, or write where a link could lead elsewhere."""
    return {name for name, file in modules(root).items() if PAST.search(file.read_text(encoding="utf-8"))}


def test_what_is_shown_or_written_goes_one_way(tmp_path: Path) -> None:
    """But for what writes into a folder that it has just made, and the reference, which a developer writes."""
    into_new_folders = {"fedem_flwr.network.key_folder", "fedem_flwr.protocol.shards"}
    assert those_that_go_past(ROOT) == {*into_new_folders, "fedem_flwr.config.reference"}
    (tmp_path / "clients").mkdir()
    for number, line in enumerate(("print(1)", "x = Console()", 'p.write_text("")', 'with p.open("ab") as f: ...')):
        (tmp_path / "clients" / f"a{number}.py").write_text(line)
    assert len(those_that_go_past(tmp_path)) == 4


def lines_of_code(text: str) -> int:
    """Without blank lines, comments and docstrings."""
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(StringIO(text).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def test_the_methods_are_as_long_as_the_docs_say() -> None:
    assert lines_of_code('"""Doc."""\n\nx = """a\nb"""  # why\n\n# nothing\n') == 2
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([a-z-]+)`.* (\d+) \|$", page, re.MULTILINE))
    told |= dict(re.findall(r"`([a-z]+_[a-z]+|groups|similarities)` (\d+)", page))
    files = (ROOT / "fedem_flwr" / "methods").rglob("[!_]*.py")
    expected = {file.stem: lines_of_code(file.read_text(encoding="utf-8")) for file in files}
    assert {name.replace("-", "_"): int(lines) for name, lines in told.items()} == expected


def test_a_methods_own_file_has_under_a_hundred_lines_of_code() -> None:
    """CONTRIBUTING.md's rule; a task that it brings or shares lies in `methods/tasks`."""
    files = (ROOT / "fedem_flwr" / "methods").glob("[!_]*.py")
    found = {file.stem: lines_of_code(file.read_text(encoding="utf-8")) for file in files}
    assert len(found) > 15 and {name: lines for name, lines in found.items() if lines >= 100} == {}
