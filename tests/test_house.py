"""The rooms of the house: each uses only what stands below it, and says what it is."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the ground up. A room is a folder of the package or a module beside them.
ROOMS = (
    "base",
    "sim",
    "presets",
    "policy",
    "data",
    "quality",
    "demonstrator",
    "rl",
    "generation",
    "vla",
    "evaluation",
    "figures",
    "explore",
    "experiments",
    "gallery",
    "findings",
    "evidence",
    "status",
    "plan",
    "dryrun",
    "doctor",
    "benchmark",
    "reproduce",
    "__main__",
)


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / "diffrl").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str, known: set[str]) -> set[str]:
    """The modules of `known` that a source text imports, in functions and strings of paths too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute, so that they can be read here"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
            if any(name in known for name in names[:-1]):
                names = [name for name in names[:-1] if name in known]
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name and name != "diffrl":
                found.add(name)
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floor(module: str) -> int:
    return ROOMS.index(room(module))


def upward(imports: dict[str, set[str]]) -> list[str]:
    """Imports from a room into one that stands above it."""
    return [
        f"{module} imports {other}, which stands above it"
        for module, others in sorted(imports.items())
        for other in sorted(others)
        if module != "diffrl" and floor(other) > floor(module)
    ]


def circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import each other, directly or through others."""
    reached = {module: set(others) for module, others in imports.items()}
    changed = True
    while changed:
        changed = False
        for others in reached.values():
            more = set().union(*(reached.get(other, set()) for other in others)) - others
            others |= more
            changed |= bool(more)
    return [
        {module} | {other for other in others if module in reached.get(other, ())}
        for module, others in reached.items()
        if module in others
    ]


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    known = modules()
    return {
        module: imported(path.read_text("utf-8"), set(known)) - {module}
        for module, path in known.items()
    }


def test_every_module_stands_in_a_room(imports):
    rooms = {room(module) for module in imports if module != "diffrl"}
    assert rooms == set(ROOMS)


def test_no_import_runs_up(imports):
    assert upward(imports) == []


def test_no_modules_import_each_other_in_a_circle(imports):
    own_doors = {  # a package's door names what lies in its own room
        module: {other for other in others if room(other) != room(module) or module.count(".") > 1}
        for module, others in imports.items()
    }
    assert circles(own_doors) == []


def test_an_import_that_runs_up_or_in_a_circle_is_found_in_a_function_too():
    known = {"diffrl.base.errors", "diffrl.sim.scene", "diffrl.rl.train"}
    source = "def work():\n    from diffrl.rl import train\n"
    assert imported(source, known) == {"diffrl.rl.train"}
    assert upward({"diffrl.sim.scene": {"diffrl.rl.train"}}) != []
    assert upward({"diffrl.rl.train": {"diffrl.sim.scene"}}) == []
    there_and_back = {"a.b": {"a.c"}, "a.c": {"a.d"}, "a.d": {"a.b"}, "a.e": {"a.b"}}
    assert circles(there_and_back) == [{"a.b", "a.c", "a.d"}] * 3


def test_only_the_compiler_and_the_doctor_ask_for_robosuite_and_libero(imports):
    foreign = {
        module
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *[alias.name for alias in node.names]]
        if name.split(".")[0] in ("robosuite", "libero")
    }
    assert foreign <= {"diffrl.sim.compiler", "diffrl.sim.libero", "diffrl.doctor"}


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_says_in_a_sentence_what_it_is(name):
    folder = ROOT / "diffrl" / name
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    sentence = ast.get_docstring(ast.parse(path.read_text("utf-8"))).split("\n\n")[0]
    assert sentence.endswith("."), sentence
    assert len(sentence) <= 200


def test_tests_are_named_after_rooms():
    # the package as a whole
    whole = {"test_house", "test_claims", "test_main", "test_series", "test_repository"}
    whole |= {"test_notebook_filter", "test_tools", "test_second_path", "test_cluster_files"}
    whole |= {"test_shells", "test_faults", "test_hostile_hdf5", "test_hostile_inputs"}
    whole |= {"test_claims_log", "test_claims_numbers", "test_claims_physics"}  # what is written
    whole |= {"test_prose"}
    whole |= {"test_examples", "test_habits", "test_stale"}  # what holds for every room
    named = [path.stem for path in (ROOT / "tests").glob("test_*.py")]
    strange = [n for n in named if n.split("_")[1] not in ROOMS and n not in whole]
    assert strange == []


def test_no_file_of_tests_is_longer_than_500_lines():
    sizes = {path.name: len(path.read_text().splitlines()) for path in ROOT.glob("tests/*.py")}
    assert {name: size for name, size in sizes.items() if size > 500} == {}
