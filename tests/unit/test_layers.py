"""A lower layer never imports a higher one; what must stay small imports nothing big; topics stand in one file."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "hfl_mqtt"

#: What each layer may import of this package beside itself; a name with a dot is that one module.
ALLOWED = {
    "__init__": "",
    "errors": "",
    "registry": "errors",
    "files": "errors",
    "state": "errors files",
    "protocol": "errors registry",
    "transport": "errors registry protocol",
    "trust": "errors protocol",
    "rounds": "errors protocol",
    "learning": "errors registry files protocol rounds.arithmetic",
    # `transport.link` is the contract alone: what an account is, no client; `transport.tls` judges papers on disk.
    "config": "errors registry files protocol learning transport.link transport.tls",
    "roles": "errors registry files state protocol transport trust rounds learning config",
    "sim": "errors registry files state protocol transport trust rounds learning config roles",
    "ops": "errors registry files state protocol transport trust rounds learning config roles sim",
    # The one layer that issues certificates, with a library five times as big as all that a board needs for its own.
    "fleet": "errors registry files state protocol transport trust rounds learning config roles sim ops",
    "cli": "errors registry files state protocol transport trust rounds learning config roles sim ops fleet",
    "device_agents": "errors registry files state protocol transport trust rounds learning config roles sim ops fleet "
    "cli",
}
#: The machines decide without I/O, clocks, chance or tensors.
NOT_IN_ROUNDS = {
    "asyncio",
    "datetime",
    "io",
    "numpy",
    "os",
    "paho",
    "pathlib",
    "queue",
    "random",
    "secrets",
    "selectors",
    "socket",
    "subprocess",
    "threading",
    "time",
    "torch",
}
#: The files that hold training; everything else stays light.
TORCH = ["learning/worker.py", "learning/sgd.py", "learning/torchvision_ops.py", "learning/tasks/"]


@dataclass(frozen=True)
class Import:
    """`name` as dotted from the top; whether it runs when its file is imported, or never (for type checkers only)."""

    name: str
    line: int
    is_at_once: bool
    is_for_types: bool


def files_of(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


FILES = files_of(PACKAGE, "device_agents")


def module_of(path: Path) -> str:
    """
    >>> module_of(ROOT / "hfl_mqtt" / "rounds" / "node.py")
    'rounds.node'
    """
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == PACKAGE else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def layer_of(module: str) -> str:
    return module.partition(".")[0]


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports_of(path: Path) -> Iterator[Import]:
    """Every import of a file, those inside functions too."""
    package = [PACKAGE, *module_of(path).split(".")] if PACKAGE in path.parts else module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]

    def walk(node: ast.AST, is_at_once: bool, is_for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, is_at_once, is_for_types)
            elif isinstance(child, ast.ImportFrom):
                above = package[: len(package) - child.level + 1] if child.level else []
                head = ".".join([*above, *([child.module] if child.module else [])])
                for alias in child.names:
                    yield Import(f"{head}.{alias.name}", child.lineno, is_at_once, is_for_types)
            else:
                is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                is_typing = isinstance(child, ast.stmt) and is_type_checking(child)
                yield from walk(child, is_at_once and not is_function, is_for_types or is_typing)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True, False)


def own_module(name: str) -> str | None:
    """Return what an import means within this package: `hfl_mqtt.errors.Refused` is `errors`; None of a stranger."""
    head, _, rest = name.partition(".")
    if head == "device_agents":
        return "device_agents"
    if head != PACKAGE:
        return None
    known = {module_of(path) for path in FILES}
    while rest and rest not in known:
        rest = rest.rpartition(".")[0]
    return rest or "__init__"


def test_there_is_something_to_look_at() -> None:
    assert {layer_of(module_of(path)) for path in FILES} - ALLOWED.keys() == set()
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_lower_layer_never_imports_a_higher_one(path: Path) -> None:
    layer = layer_of(module_of(path))
    allowed = {*ALLOWED[layer].split(), layer, "__init__"}
    wrong = []
    for found in imports_of(path):
        module = own_module(found.name)
        if module is not None and not {module, layer_of(module)} & allowed:
            wrong.append(f"line {found.line}: {layer} must not import {module}")
    assert wrong == []


@pytest.mark.parametrize("path", files_of(f"{PACKAGE}/rounds"), ids=module_of)
def test_the_machines_know_no_clock_no_thread_no_file_no_chance_and_no_tensor(path: Path) -> None:
    assert {found.name.partition(".")[0] for found in imports_of(path)} & NOT_IN_ROUNDS == set()


@pytest.mark.parametrize("path", files_of(f"{PACKAGE}/protocol"), ids=module_of)
def test_the_protocol_knows_no_network_and_no_tensor(path: Path) -> None:
    known = {found.name.partition(".")[0] for found in imports_of(path)}
    assert known - set(sys.stdlib_module_names) <= {PACKAGE, "msgpack", "pydantic"}
    assert known & {"socket", "threading", "time"} == set()


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_only_training_imports_torch(path: Path) -> None:
    inside = path.relative_to(ROOT).as_posix().removeprefix(f"{PACKAGE}/")
    found = [item for item in imports_of(path) if item.name.partition(".")[0] in ("torch", "torchvision")]
    if not any(inside.startswith(allowed) for allowed in TORCH):
        assert [item.line for item in found if not item.is_for_types] == []
    if inside == "learning/worker.py":
        assert [item.line for item in found if item.is_at_once and not item.is_for_types] == []


def topic_texts(path: Path) -> list[str]:
    """Literals that name a topic. A docstring and a sentence, which has spaces, may speak of one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    prose = set()
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            first = node.body[0]
            assert isinstance(first, ast.Expr)
            prose.add(id(first.value))
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    ]
    return [text for text in texts if any(part in text for part in ("hfl/", "hflb/", "/@")) and " " not in text]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_topic_strings_stand_in_one_file(path: Path) -> None:
    found = topic_texts(path)
    if module_of(path) != "protocol.topics":
        assert found == []


def test_this_test_sees_imports_inside_functions_and_for_types_only() -> None:
    cli = {found.name: found for found in imports_of(ROOT / PACKAGE / "cli.py")}
    assert not cli["hfl_mqtt.ops.cloud.run_cloud"].is_at_once
    assert cli["hfl_mqtt.errors.HflError"].is_at_once
    contracts = {found.name: found for found in imports_of(ROOT / PACKAGE / "learning" / "contracts.py")}
    assert contracts["torch"].is_for_types
    assert own_module("hfl_mqtt.ops.cloud.run_cloud") == "ops.cloud"
    assert own_module("hfl_mqtt.__version__") == "__init__"
    assert own_module("numpy.typing") is None


def test_this_test_sees_topics_in_literals_and_lets_people_speak_of_them(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text('"""Speaks of hfl/x/@/."""\nHELP = "may read hfl/#."\nname = f"hfl/{1}/@/stat"\n', encoding="utf-8")
    assert topic_texts(file) == ["hfl/", "/@/stat"]
