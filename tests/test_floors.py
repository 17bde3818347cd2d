"""Who imports whom: a package imports only from floors below its own (docs/architecture.md has the picture).

The checker reads the source (every import, also inside functions and under TYPE_CHECKING), so it needs no
installation of what is imported. Each rule is held against planted violations further down.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "windlass"

FLOORS = {
    **dict.fromkeys(("core", "kernels"), 0),
    **dict.fromkeys(("lake", "vectors", "graphs", "patterns", "models", "comms", "sim"), 1),
    **dict.fromkeys(("serving", "training"), 2),
    **dict.fromkeys(("retrieval", "fleet", "codegen"), 3),
    **dict.fromkeys(("app", "bench"), 4),
}

# The few doors between neighbours: (importer, imported) -> the modules that may pass; None: all of them.
DOORS: dict[tuple[str, str], set[str] | None] = {
    ("kernels", "core"): {"windlass.core.errors", "windlass.core.randomness"},
    ("app", "bench"): None,  # the command `windlass bench` opens the bench; the bench never opens the app
}

# The public face (`windlass.open`) is for people and for what stands on the top floor.
USES_THE_FACE = {"app", "bench"}

HEAVY = frozenset(
    "torch triton ray transformers sentence_transformers numba scipy sklearn pandas polars pyarrow duckdb "
    "nicegui fastapi starlette uvicorn httpx pydantic typer rich lxml openpyxl pypdfium2 selectolax gguf "
    "tokenizers safetensors".split()
)
MAX_LINES = 600


def python_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.py") if "__pycache__" not in path.parts)


def imported_modules(node: ast.AST, root: Path) -> list[str]:
    """The absolute modules an import statement brings in; `from a import b` is a.b where b is a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
        found = []
        for alias in node.names:
            inner = root.parent.joinpath(*node.module.split("."), alias.name)
            is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
            found.append(f"{node.module}.{alias.name}" if is_module else node.module)
        return found
    return []


def statements_at_import(tree: ast.Module) -> list[ast.stmt]:
    """The statements that run at import: not those in functions nor under `if TYPE_CHECKING`."""
    run: list[ast.stmt] = []
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
            continue
        run.append(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                waiting.append(child)
            elif isinstance(child, ast.ExceptHandler | ast.match_case):
                waiting += child.body
    return run


def package_of(path: Path, root: Path) -> str:
    """The package a file belongs to, or '' for the face of the whole (`windlass/__init__.py`)."""
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else ""


def arrow_fault(package: str, module: str) -> str | None:
    """What is wrong with `package` importing `module`, or None."""
    parts = module.split(".")
    if parts[0] != "windlass" or package == "":
        return None
    if len(parts) == 1:
        return None if package in USES_THE_FACE else "the public face is for the top floor and for people"
    other = parts[1]
    if other == package:
        return None
    if other not in FLOORS:
        return f"windlass.{other} stands on no floor"
    if (package, other) in DOORS:
        allowed = DOORS[package, other]
        if allowed is None or ".".join(parts[:3]) in allowed:
            return None
    if FLOORS[other] > FLOORS[package]:
        return f"upward, from floor {FLOORS[package]} to floor {FLOORS[other]}"
    if FLOORS[other] == FLOORS[package]:
        return f"sideways, both stand on floor {FLOORS[package]}"
    return None


def import_faults(path: Path, tree: ast.Module, root: Path) -> list[str]:
    package = package_of(path, root)
    if package and package not in FLOORS:
        return [f"{package} stands on no floor"]
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            faults.append(f"line {node.lineno}: relative import")
        version_only = isinstance(node, ast.ImportFrom) and [a.name for a in node.names] == ["__version__"]
        for module in imported_modules(node, root):
            fault = None if version_only else arrow_fault(package, module)
            if fault:
                faults.append(f"line {node.lineno}: imports {module}: {fault}")
    return faults


def heavy_faults(path: Path, tree: ast.Module, root: Path) -> list[str]:
    """Heavy modules at the top of core, and anything of ours at the top of the face."""
    package = package_of(path, root)
    if package not in ("", "core"):
        return []
    heavy = HEAVY | ({"numpy"} if path.name == "__init__.py" else set())
    faults = []
    for node in statements_at_import(tree):
        for module in imported_modules(node, root):
            first = module.split(".")[0]
            if first in heavy or (package == "" and first == "windlass" and path.name == "__init__.py"):
                faults.append(f"line {node.lineno}: {module} is imported when this module is")
    return faults


def is_door(node: ast.stmt) -> bool:
    """A function that only imports and passes arguments on, or the lazy `__getattr__`/`__dir__`."""
    if not isinstance(node, ast.FunctionDef):
        return False
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if node.name in ("__getattr__", "__dir__"):
        return len(body) <= 6
    return bool(body) and all(isinstance(step, ast.Import | ast.ImportFrom | ast.Return) for step in body)


def is_plain_name(node: ast.stmt) -> bool:
    """`__all__ = [...]`, `__version__ = "1.0"`, a table of lazy names: constants only."""
    if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
        return False
    constant = (ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.expr_context)
    return all(isinstance(part, constant) for part in ast.walk(node.value))


def is_typing_block(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.If)
        and ast.unparse(node.test).endswith("TYPE_CHECKING")
        and all(isinstance(step, ast.Import | ast.ImportFrom) for step in node.body)
        and not node.orelse
    )


def init_faults(path: Path, tree: ast.Module) -> list[str]:
    """An `__init__` holds a docstring, public names, and doors to them; no logic."""
    if path.name != "__init__.py":
        return []
    faults = []
    for node in tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        imports = isinstance(node, ast.Import | ast.ImportFrom)
        if not (docstring or imports or is_typing_block(node) or is_plain_name(node) or is_door(node)):
            faults.append(f"line {node.lineno}: logic in an __init__ ({type(node).__name__})")
    return faults


def faults_of(path: Path, root: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = text.count("\n")
    faults = import_faults(path, tree, root) + heavy_faults(path, tree, root) + init_faults(path, tree)
    if lines > MAX_LINES:
        faults.append(f"{lines} lines, more than {MAX_LINES}: two nouns?")
    return [f"{path.relative_to(root.parent)}: {fault}" for fault in faults]


def test_no_arrow_runs_upward_or_sideways():
    files = python_files(SOURCE)
    assert len(files) > 10
    faults = [fault for path in files for fault in faults_of(path, SOURCE)]
    assert not faults, "\n" + "\n".join(faults)


PLANTED = [
    ("core/a.py", "from windlass.lake import b", "upward"),
    ("core/a.py", "import windlass.kernels.hashing", "sideways"),
    ("kernels/a.py", "from windlass.core.settings import Settings", "sideways"),
    (
        "lake/a.py",
        "def f():\n    from windlass.models.encoder import Encoder\n    return Encoder",
        "sideways",
    ),
    (
        "lake/a.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import windlass.app.cli",
        "upward",
    ),
    ("lake/a.py", "try:\n    import windlass.serving\nexcept ImportError:\n    pass", "upward"),
    ("lake/a.py", "from windlass import retrieval", "upward"),
    ("models/a.py", "class A:\n    def f(self):\n        import windlass.comms.group as g\n", "sideways"),
    ("retrieval/a.py", "import windlass\nwindlass.open('x')", "public face"),
    ("retrieval/a.py", "from windlass import open, __version__", "public face"),
    ("bench/a.py", "from windlass.app.cli import main", "sideways"),
    ("serving/distributed/a.py", "import windlass.training", "sideways"),
    ("serving/a.py", "from . import b", "relative import"),
    ("gadgets/a.py", "x = 1", "gadgets stands on no floor"),
    ("app/a.py", "import windlass.gadgets", "windlass.gadgets stands on no floor"),
    ("core/a.py", "import duckdb", "imported when this module is"),
    ("core/a.py", "try:\n    import torch\nexcept ImportError:\n    torch = None", "imported when"),
    ("core/a.py", "try:\n    x = 1\nexcept ImportError:\n    import torch", "imported when"),
    ("core/a.py", "if 1 > 0:\n    from pyarrow import parquet", "imported when"),
    ("core/__init__.py", "import numpy", "imported when"),
    ("__init__.py", "import numpy", "imported when"),
    ("__init__.py", "from windlass.core import errors", "imported when"),
    ("__init__.py", "import sys\nsys.setrecursionlimit(9)", "logic in an __init__ (Expr)"),
    ("lake/__init__.py", "def scan(x):\n    y = x + 1\n    return y", "logic in an __init__ (FunctionDef)"),
    ("lake/__init__.py", "for i in range(3):\n    pass", "logic in an __init__ (For)"),
    ("lake/__init__.py", "names = [open(x) for x in 'ab']", "logic in an __init__ (Assign)"),
    ("lake/long.py", "x = 1\n" * 601, "more than 600"),
]


@pytest.mark.parametrize(("name", "text", "expected"), PLANTED)
def test_the_checker_sees_a_planted_fault(tmp_path, name, text, expected):
    root = tmp_path / "windlass"
    path = root / name
    path.parent.mkdir(parents=True)
    (root / "retrieval").mkdir(exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    faults = faults_of(path, root)
    assert any(expected in fault for fault in faults), faults


ALLOWED = [
    (
        "lake/a.py",
        "import duckdb\nfrom windlass.core.errors import ReadError\nimport windlass.kernels.hashing",
    ),
    ("retrieval/a.py", "from windlass import __version__\nfrom windlass.models.encoder import Encoder"),
    (
        "kernels/a.py",
        "from windlass.core.errors import UsageError\nfrom windlass.core.randomness import bits",
    ),
    ("core/a.py", "import numpy as np\ndef f():\n    import duckdb\n    return duckdb"),
    ("core/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pyarrow"),
    ("bench/a.py", "import windlass\nfrom windlass.retrieval.search import Search"),
    ("app/a.py", "from windlass.bench.harness import run_bench"),
    (
        "__init__.py",
        "'''Doc.'''\n__version__ = '1'\ndef open(f):\n    from windlass.app.x import y\n    return y(f)",
    ),
    ("lake/__init__.py", "'''Doc.'''\nfrom windlass.lake.scan import scan\n__all__ = ['scan']"),
]


@pytest.mark.parametrize(("name", "text"), ALLOWED)
def test_the_checker_leaves_the_rest_alone(tmp_path, name, text):
    path = tmp_path / "windlass" / name
    path.parent.mkdir(parents=True)
    path.write_text(text + "\n", encoding="utf-8")
    assert faults_of(path, tmp_path / "windlass") == []


def test_importing_windlass_imports_next_to_nothing():
    script = (
        "import json, sys; before = set(sys.modules); import windlass; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    command = [sys.executable, "-c", script]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    modules = json.loads(output)
    assert "windlass" in modules
    heavy = {name for name in modules if name.split(".")[0] in HEAVY | {"numpy"}}
    assert not heavy
    assert len(modules) <= 30, modules
