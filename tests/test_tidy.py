"""The house rules that no other tool checks, and a bad sample for each of them.

A rule is a function from sources to a list of complaints; an empty list means tidy. Each complaint
starts with where, so that a reader can go there, and ends with what to do.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "shorthorn"
GENERATED = PACKAGE / "csi" / "proto"
VENDOR = PACKAGE / "web" / "static" / "vendor"  # from PyPI
TEXT_PLACES = ["src", "tests", "scripts", "proto", "docs", "deploy", "examples", "bench"]
TEXT_FILES = ["Makefile", "README.md", "CONTRIBUTING.md", "pyproject.toml", "hatch_build.py"]

FUNCTION_LINES_MAX = 70  # one screen; aim for 40
MODULE_LINES_MAX = 500  # aim for 300
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
MAY_PRINT = {"cli", "commands", "demo"}
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
# The CSI project's own files, kept byte for byte.
OTHERS_TEXT = [
    "deploy/helm/shorthorn/charts/snapshot-controller/crds",
    "deploy/manifests/snapshot-crds.yaml",
]


# ---- The tree -----------------------------------------------------------------------------------


def test_functions_fit_on_a_screen() -> None:
    assert [c for path in source_modules() for c in long_functions(path, parse(path))] == []


def test_modules_are_short() -> None:
    assert [c for path in source_modules() for c in long_module(path, path.read_text())] == []


def test_names_of_modules_say_what_they_hold() -> None:
    assert [c for path in source_modules() for c in vague_name(path)] == []


def test_every_module_says_what_it_is_for() -> None:
    modules = [*source_modules(), *modules_of_tests()]
    assert [c for path in modules for c in missing_docstring(path, parse(path))] == []


def test_only_commands_print() -> None:
    assert [c for path in source_modules() for c in prints(path, parse(path))] == []


def test_tests_wait_for_events_and_not_for_time() -> None:
    assert [c for path in modules_of_tests() for c in sleeps(path, parse(path))] == []


def test_nothing_is_left_for_later() -> None:
    assert [c for path in text_files() for c in unfinished(path, path.read_text())] == []


def test_every_dependency_has_its_reason_in_the_docs() -> None:
    documented = (ROOT / "docs" / "dependencies.md").read_text()
    wanted = {*python_dependencies(pyproject()), *debian_packages(setup_script())}
    assert undocumented(wanted, documented) == []


def test_the_locks_hold_what_pyproject_asks_for() -> None:
    project = pyproject()
    runtime = [*project["project"]["dependencies"], *project["dependency-groups"]["build"]]
    every = [*runtime, *plain_requirements(project["dependency-groups"]["dev"])]
    locked = (ROOT / "requirements.lock").read_text()
    locked_dev = (ROOT / "requirements-dev.lock").read_text()
    assert unlocked(runtime, locked) == [], "run make lock"
    assert unlocked(every, locked_dev) == [], "run make lock"
    assert set(lock_versions(locked).items()) <= set(lock_versions(locked_dev).items())


def test_the_layout_is_the_documented_one() -> None:
    architecture = (ROOT / "docs" / "architecture.md").read_text()
    children = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or list(p.glob("*.py"))}
    assert layout_differences(children - {"__init__", "__main__"}, architecture) == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    pages = {str(p.relative_to(ROOT)): p.read_text() for p in [*ROOT.glob("*.md"), *docs_pages()]}
    assert unreachable_pages(pages) == []
    assert [c for page, text in pages.items() for c in broken_links(page, text)] == []


# ---- A bad sample for each rule -----------------------------------------------------------------


@pytest.mark.parametrize("extra_lines", [pytest.param(0, id="limit"), pytest.param(1, id="over")])
def test_the_limit_of_a_function_counts_from_def_to_the_last_line(extra_lines: int) -> None:
    body = "    x = 1\n" * (FUNCTION_LINES_MAX - 1 + extra_lines)
    complaints = long_functions(Path("a.py"), ast.parse(f"async def f():\n{body}"))
    assert len(complaints) == extra_lines


@pytest.mark.parametrize("extra_lines", [pytest.param(0, id="limit"), pytest.param(1, id="over")])
def test_the_limit_of_a_module_counts_all_its_lines(extra_lines: int) -> None:
    text = "x = 1\n" * (MODULE_LINES_MAX + extra_lines)
    assert len(long_module(Path("a.py"), text)) == extra_lines


def test_a_vague_name_is_found_in_files_and_folders() -> None:
    assert vague_name(PurePath("src/shorthorn/kit/utils.py"))
    assert vague_name(PurePath("src/shorthorn/common/x.py"))
    assert vague_name(PurePath("src/shorthorn/engines/volume_manager.py"))
    assert not vague_name(PurePath("src/shorthorn/kit/process.py"))


def test_a_module_without_docstring_is_found() -> None:
    assert missing_docstring(PurePath("a.py"), ast.parse("# a comment\nx = 1"))
    assert not missing_docstring(PurePath("a.py"), ast.parse('"""Says."""\nx = 1'))
    assert not missing_docstring(PurePath("tests/__init__.py"), ast.parse(""))


def test_a_print_is_found_outside_the_commands() -> None:
    tree = ast.parse("print('x')")
    assert prints(PACKAGE / "kit" / "x.py", tree)
    assert not prints(PACKAGE / "commands" / "x.py", tree)
    assert not prints(PACKAGE / "cli.py", tree)


@pytest.mark.parametrize("code", ["import time\ntime.sleep(1)", "from time import sleep"])
def test_a_sleep_is_found_in_either_spelling(code: str) -> None:
    assert sleeps(PurePath("test_x.py"), ast.parse(code))


def test_waiting_for_an_event_is_no_sleep() -> None:
    assert not sleeps(PurePath("test_x.py"), ast.parse("time.monotonic()\nevent.wait(1)"))


def test_unfinished_work_is_found_by_its_line() -> None:
    mark = "TO" + "DO"
    assert unfinished(PurePath("a.md"), f"fine\n{mark}: later") == [f"a.md:2: {mark}: do it now"]
    assert not unfinished(PurePath("a.md"), f"{mark}LIST is a word of its own")


def test_a_dependency_without_reason_is_found() -> None:
    documented = "- `grpcio`: the CSI edge.\n"
    assert not undocumented({"grpcio"}, documented)
    assert undocumented({"grpcio", "grpc"}, documented) == ["docs/dependencies.md: add `grpc`"]
    assert undocumented(set(), documented) == ["docs/dependencies.md: `grpcio` is used no more"]


def test_a_package_missing_from_the_lock_is_found() -> None:
    lock = "qemu-qmp==0.0.6 \\\n    --hash=sha256:00\n"
    assert not unlocked(["qemu.qmp>=0.0.6"], lock)
    assert unlocked(["qemu.qmp>=0.0.7", "rich"], lock) == ["qemu.qmp>=0.0.7", "rich"]


def test_an_undocumented_or_missing_package_is_found() -> None:
    text = "## Layers\n`cli` → `daemon` → `domain`. Upper ones may `not`.\n"
    assert not layout_differences({"cli", "daemon", "domain"}, text)
    assert layout_differences({"cli", "daemon", "domain", "stray"}, text)
    assert layout_differences({"cli", "domain"}, text)


def test_a_page_that_nothing_links_to_is_found() -> None:
    pages = {"README.md": "[docs](docs/a.md#top)", "docs/a.md": "[b](b.md)", "docs/b.md": ""}
    assert not unreachable_pages(pages)
    assert unreachable_pages(pages | {"docs/c.md": "[a](a.md)"}) == ["docs/c.md: link to it"]


def test_a_link_to_nothing_is_found() -> None:
    assert broken_links("docs/x.md", "[gone](gone.md)") == ["docs/x.md: gone.md does not exist"]
    assert not broken_links("docs/x.md", "[up](../README.md) [web](https://example.org) [t](#top)")


def test_every_import_contract_can_break(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    for module, line in [
        ("domain", "import shorthorn.kit, asyncio, yaml"),
        ("services", "import shorthorn.host, grpc, lightkube"),
    ]:
        with (tmp_path / "src" / "shorthorn" / module / "__init__.py").open("a") as file:
            file.write(f"\n{line}\n")
    answer = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    contracts = (ROOT / ".importlinter").read_text().count("[importlinter:contract:")
    assert f"Contracts: 0 kept, {contracts} broken." in answer.stdout, answer.stdout


# ---- The rules ----------------------------------------------------------------------------------


def long_functions(path: PurePath, tree: ast.Module) -> list[str]:
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    lengths = ((f, (f.end_lineno or f.lineno) - f.lineno + 1) for f in functions)
    return [
        f"{where(path)}:{f.lineno}: {f.name} has {lines} lines, over {FUNCTION_LINES_MAX}: split it"
        for f, lines in lengths
        if lines > FUNCTION_LINES_MAX
    ]


def long_module(path: PurePath, text: str) -> list[str]:
    lines = len(text.splitlines())
    if lines <= MODULE_LINES_MAX:
        return []
    return [f"{where(path)}: {lines} lines, over {MODULE_LINES_MAX}: split it"]


def vague_name(path: PurePath) -> list[str]:
    names = [part.removesuffix(".py") for part in where(path).split("/")]
    found = [name for name in names if VAGUE_NAMES & set(name.split("_"))]
    return [f"{where(path)}: {name} says nothing: name what it holds" for name in found]


def missing_docstring(path: PurePath, tree: ast.Module) -> list[str]:
    if ast.get_docstring(tree) or not tree.body:  # an empty __init__.py has nothing to say
        return []
    return [f"{where(path)}: no docstring: say what it owns and must never do, and who calls it"]


def prints(path: PurePath, tree: ast.Module) -> list[str]:
    if MAY_PRINT & {part.removesuffix(".py") for part in where(path).split("/")}:
        return []
    return [
        f"{where(path)}:{node.lineno}: print: log it, or return it to a command"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]


def sleeps(path: PurePath, tree: ast.Module) -> list[str]:
    found = [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and ast.unparse(node) == "time.sleep")
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "time"
            and any(name.name == "sleep" for name in node.names)
        )
    ]
    return [f"{where(path)}:{line}: time.sleep: wait for the event, or poll" for line in found]


def unfinished(path: PurePath, text: str) -> list[str]:
    return [
        f"{where(path)}:{number}: {match[1]}: do it now"
        for number, line in enumerate(text.splitlines(), start=1)
        if (match := UNFINISHED.search(line))
    ]


def undocumented(wanted: set[str], documented: str) -> list[str]:
    listed = set(re.findall(r"^- `([^`]+)`", documented, flags=re.MULTILINE))
    missing = [f"docs/dependencies.md: add `{name}`" for name in sorted(wanted - listed)]
    stale = [f"docs/dependencies.md: `{n}` is used no more" for n in sorted(listed - wanted)]
    return missing + stale


def unlocked(requirements: list[str], lock: str) -> list[str]:
    versions = lock_versions(lock)
    return [text for text in requirements if not is_locked(Requirement(text), versions)]


def is_locked(wanted: Requirement, versions: dict[str, str]) -> bool:
    version = versions.get(canonicalize_name(wanted.name))
    return version is not None and wanted.specifier.contains(version, prereleases=True)


def layout_differences(existing: set[str], architecture: str) -> list[str]:
    section = architecture.split("## Layers\n", 1)[1].split("Upper ones", 1)[0]
    documented = {name for span in re.findall(r"`([^`]+)`", section) for name in span.split()}
    missing = documented - existing
    return [
        *[f"docs/architecture.md: {name} has no layer" for name in sorted(existing - documented)],
        *[f"docs/architecture.md: {name} does not exist" for name in sorted(missing)],
    ]


def unreachable_pages(pages: dict[str, str]) -> list[str]:
    reached: set[str] = set()
    waiting = ["README.md"]
    while waiting:
        page = waiting.pop()
        if page in pages and page not in reached:
            reached.add(page)
            waiting += [target for _, target in local_links(page, pages[page])]
    docs = {page for page in pages if page.startswith("docs/")}
    return [f"{page}: link to it" for page in sorted(docs - reached)]


def broken_links(page: str, text: str) -> list[str]:
    return [
        f"{page}: {link} does not exist"
        for link, target in local_links(page, text)
        if not (ROOT / target).exists()
    ]


# ---- What the rules read ------------------------------------------------------------------------


def where(path: PurePath) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def source_modules() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if not p.is_relative_to(GENERATED)]


def modules_of_tests() -> list[Path]:
    return sorted((ROOT / "tests").rglob("*.py"))


def docs_pages() -> list[Path]:
    return sorted((ROOT / "docs").rglob("*.md"))


def text_files() -> Iterator[Path]:
    yield from (ROOT / name for name in TEXT_FILES)
    for place in TEXT_PLACES:
        for path in sorted((ROOT / place).rglob("*")):
            generated = path.is_relative_to(GENERATED) or path.is_relative_to(VENDOR)
            generated = generated or "__pycache__" in path.parts
            others = any(path.is_relative_to(ROOT / name) for name in OTHERS_TEXT)
            if (
                path.is_file()
                and not generated
                and not others
                and b"\0" not in path.read_bytes()[:4096]
            ):
                yield path


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def setup_script() -> str:
    return (ROOT / "scripts" / "setup").read_text()


def plain_requirements(group: list[Any]) -> list[str]:
    return [entry for entry in group if isinstance(entry, str)]


def python_dependencies(project: dict[str, Any]) -> set[str]:
    groups = project["dependency-groups"].values()
    entries = [*project["project"]["dependencies"], *(e for g in groups for e in g)]
    return {Requirement(text).name for text in plain_requirements(entries)}


def debian_packages(script: str) -> set[str]:
    tables = re.findall(r'^tools_[a-z_]+="\n(.*?)\n"$', script, flags=re.MULTILINE | re.DOTALL)
    lines = [line for table in tables for line in table.splitlines()]
    return {line.split()[1] for line in lines} | {"python3-venv"}


def lock_versions(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", lock, flags=re.MULTILINE))


def local_links(page: str, text: str) -> list[tuple[str, str]]:
    """Return each link to a file of this repository, as written and as a path from its root."""
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [link for link in links if not re.match(r"[a-z]+:|#", link)]
    folder = PurePath(page).parent
    return [(link, os.path.normpath(folder / link.split("#")[0])) for link in local]
