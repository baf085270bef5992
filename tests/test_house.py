"""The house: which room may import which, no circles, and nothing that grows too large."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mlx_parallm

PACKAGE = Path(mlx_parallm.__file__).parent
FLOORS = {
    "tools": 5,
    "mili": 4,
    "training": 4,
    "server": 4,
    "engine": 3,
    "memory": 3,
    "cache": 2,
    "models": 1,
    "cpu": 0,
}
WITHOUT_MLX = (
    "engine.guessing.decision",
    "engine.guessing.step_costs",
    "engine.scheduler",
    "cache.prefixes.page_pool",
    "cache.prefixes.prefix_cache",
    "cache.prefixes.prefix_contract",
    "cache.prefixes.radix_node",
    "cache.prefixes.radix_tree",
)


MOST_LINES, MOST_FILES = 500, 20


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, names: dict[str, Path], *, lazy: bool = True) -> Iterator[str]:
    """Modules of the package that a file imports; lazy: inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    nodes = ast.walk(tree) if lazy else _at_import(tree)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlx_parallm"):
            base = (node.module or "").removeprefix("mlx_parallm").removeprefix(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".removeprefix(".")
                yield full if full in names else base
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("mlx_parallm."):
                    yield alias.name.removeprefix("mlx_parallm.")


def _at_import(tree: ast.Module) -> Iterator[ast.AST]:
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        types_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        inner = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        if not (types_only or isinstance(node, inner)):
            waiting.extend(ast.iter_child_nodes(node))


def test_imports_go_down_only() -> None:
    names, wrong = modules(), []
    for name, path in names.items():
        room = name.split(".")[0]
        for other in imports(path, names):
            above = FLOORS.get(other.split(".")[0], -1)
            if room in FLOORS and above > FLOORS[room]:
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_there_is_no_circle_of_imports() -> None:
    names = modules()
    arrows = {n: {o for o in imports(p, names) if o in names and o != n} for n, p in names.items()}
    for packages in [n for n, p in names.items() if p.name == "__init__.py"]:
        arrows.pop(packages)  # a package's front door names what is behind it
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name in done or name not in arrows:
            return
        for other in sorted(arrows[name]):
            visit(other, (*path, name))
        done.add(name)

    for name in arrows:
        visit(name, ())


def test_no_file_and_no_folder_is_too_large() -> None:
    long = {n: len(p.read_text(encoding="utf8").splitlines()) for n, p in modules().items()}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}
    folders = Counter(path.parent for path in PACKAGE.rglob("*.py"))
    assert {str(f): files for f, files in folders.items() if files > MOST_FILES} == {}


def test_planning_needs_no_mlx() -> None:
    """The scheduler, the radix tree and the grammars are tested without a model."""
    names = modules()
    light = [*WITHOUT_MLX, *(n for n in names if n.startswith("engine.grammar."))]
    assert set(WITHOUT_MLX) <= set(names)
    for name in light:
        seen, waiting = set(), [name]
        while waiting:
            module = waiting.pop()
            if module in seen or module not in names:
                continue
            seen.add(module)
            for node in _at_import(ast.parse(names[module].read_text(encoding="utf8"))):
                roots = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    roots = [node.module or ""]
                assert not any(r.split(".")[0] in ("mlx", "mlx_lm") for r in roots), (name, module)
            waiting.extend(imports(names[module], names, lazy=False))
