"""Who may import whom, read from the syntax tree of every module."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted([*(ROOT / "workbench").rglob("*.py"), *(ROOT / "widgets").rglob("*.py")])

# Parts of workbench, and the parts each may import besides itself.
BELOW: dict[str, set[str]] = {"registry": set()}
BELOW["schema"] = BELOW["progress"] = BELOW["parameters"] = {"registry"}
BELOW["disk"] = set()
CORE = {"registry", "schema", "progress", "parameters", "disk"}
BELOW["models"] = CORE
BELOW["tasks"] = CORE | {"models"}
BELOW["zoo"] = CORE | {"models", "tasks", "analyses", "tuning"}  # a model's card reports what the analyses find in it
BELOW["analyses"] = CORE | {"models", "tasks"}
BELOW["methods"] = CORE | {"models", "tasks"}
BELOW["spec"] = CORE | {"models", "tasks", "methods", "analyses"}
BELOW["aggregators"] = set()
BELOW["training"] = CORE | {"models", "tasks", "methods", "spec", "aggregators"}
BELOW["runs"] = CORE | {"models", "spec", "store"}
BELOW["telemetry"] = CORE | {"models", "tasks", "methods", "analyses", "spec", "training", "runs", "store"}
BELOW["launch"] = CORE | {"spec", "runs"}
BELOW["tuning"] = BELOW["telemetry"] | {"telemetry", "launch"}
BELOW["experiments"] = BELOW["tuning"] | {"tuning"}
BELOW["mixtures"] = BELOW["experiments"] | {"experiments"}
BELOW["store"] = {"registry", "schema", "disk"}
BELOW["jobs"] = CORE | {"spec", "runs"}
BELOW["results"] = CORE | {"jobs", "models", "tasks", "analyses", "store"}
BELOW["engine"] = BELOW["results"] | {"results", "methods", "spec", "runs", "tuning"}
BELOW["theme"] = set()
BELOW["session"] = {"registry", "models"}  # of models only the file that reads references
BELOW["views"] = {"registry", "schema", "theme", "session", "models"}  # of models only the names of heads and edges
BELOW["live"] = {"registry", "schema", "tasks", "runs", "jobs", "views"}
BELOW["__init__"] = set(BELOW)  # the public surface
BELOW["app"] = set(BELOW)
BELOW["cli"] = set(BELOW)
FOLDERS_OF_SIBLINGS = ("tasks", "analyses", "methods", "views")
SCREEN = {"plotly", "panel", "panel_material_ui", "param", "anywidget", "ipywidgets"}
MODEL = {"torch", "transformers", "transformer_lens", "peft"}
HEAVY = ("torch", "transformers", "transformer_lens", "peft", "panel", "umap", "sklearn", "distributed")


def label(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def part_of(module: str) -> str:
    """The part of workbench a dotted name belongs to: `workbench.tasks.ioi` -> tasks."""
    return module.split(".")[1] if "." in module else "__init__"


def is_for_typing_only(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def imported_by(tree: ast.AST) -> set[str]:
    """Every module named in an import that runs, wherever it stands; both `a` and `a.b` for `from a import b`."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and is_for_typing_only(node.test):
            for other in node.orelse:
                found |= imported_by(ast.Module([other], []))
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        found |= imported_by(node)
    return found


@cache
def imports(path: Path) -> frozenset[str]:
    return frozenset(imported_by(ast.parse(path.read_text(encoding="utf-8"))))


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def inside(*folders: str) -> list[Path]:
    return [path for path in MODULES if label(path).startswith(folders)]


def is_module(name: str) -> bool:
    target = ROOT.joinpath(*name.split("."))
    return target.with_suffix(".py").is_file() or target.is_dir()


@pytest.mark.parametrize("path", inside("workbench."), ids=label)
def test_imports_point_downwards(path):
    own, named = part_of(label(path)), {name for name in imports(path) if name.startswith("workbench.")}
    used = {part_of(name) for name in named if is_module(name)}
    assert own in BELOW, f"say in this test what workbench.{own} may import"
    assert used - {own} <= BELOW[own]
    from_root = {name for name in named if name.count(".") == 1 and not is_module(name)}
    assert not from_root or own in ("__init__", "app", "cli"), (
        "only the app and the command line use the public surface"
    )


@pytest.mark.parametrize("path", inside(*(f"workbench.{name}." for name in FOLDERS_OF_SIBLINGS)), ids=label)
def test_siblings_share_through_underscored_files_only(path):
    if path.stem == "__init__":
        return
    folder = label(path).rpartition(".")[0]
    named = {name for name in imports(path) if name.startswith(f"{folder}.")}
    assert all(name.removeprefix(f"{folder}.").startswith("_") for name in named)


@pytest.mark.parametrize("path", inside("workbench.analyses", "workbench.methods", "workbench.training"), ids=label)
def test_analyses_know_no_screen(path):
    assert not packages(path) & SCREEN


@pytest.mark.parametrize(
    "path", inside("workbench.views", "workbench.theme", "workbench.session", "widgets"), ids=label
)
def test_what_is_on_screen_knows_no_model(path):
    assert not packages(path) & MODEL


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_transformer_lens_is_known_to_models_only(path):
    assert "transformer_lens" not in packages(path) or label(path).startswith("workbench.models.")


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_nothing_imports_the_app(path):
    if not label(path).startswith(("workbench.app", "workbench.cli")):
        assert not any(name.startswith(("workbench.app", "workbench.cli")) for name in imports(path))


@pytest.mark.parametrize("path", inside("widgets"), ids=label)
def test_widgets_stand_alone(path):
    assert not packages(path) & {"workbench", "panel", "panel_material_ui", "param", "xarray"}


def test_importing_loads_nothing_heavy():
    tree = "workbench, workbench.analyses, workbench.engine, workbench.views, workbench.session"
    code = f"import {tree}, sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


def test_importing_has_no_side_effects():
    code = (
        "import plotly.io as pio, threading, os, warnings\n"
        "before = pio.templates.default, threading.active_count(), dict(os.environ), list(warnings.filters)\n"
        "import workbench, workbench.analyses, workbench.engine, workbench.views\n"
        "after = pio.templates.default, threading.active_count(), dict(os.environ), list(warnings.filters)\n"
        "print(before[:3] == after[:3])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["True"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b", {"a.b"}),
        ("from a import b", {"a", "a.b"}),
        ("def f():\n    from c import d", {"c", "c.d"}),
        ("if TYPE_CHECKING:\n    import torch", set()),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import json", {"json"}),
    ],
)
def test_the_reader_of_imports_sees_what_python_would_run(source, expected):
    assert imported_by(ast.parse(source)) == expected
