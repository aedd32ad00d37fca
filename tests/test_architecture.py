"""The laws of the house: imports point one way, each heavy library has one door, nothing heavy is
loaded early.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "embedcli"

# From the top down; a room imports from rooms below its own row only.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"commands", "api"},
    {"analysis"},
    {"run", "console"},
    {"launch"},
    {"sources", "encoder"},
    {"models"},
    {"store", "templates"},
    {"records"},
    {"files"},
    {"config", "escaping", "signals"},
    {"errors"},
]
# The console prints a run's summary: it may know its type, nothing more.
TYPES_ONLY = {("console", "run"), ("console", "analysis")}
DOORS = {
    "typer": {"cli", "commands"},
    "rich": {"console"},
    "accelerate": {"launch"},
    "transformers": {"encoder"},
    "torch": {"encoder", "launch"},
    "pyarrow": {"files", "sources", "store", "api"},
    "pyspark": {"api"},
    "ray": {"run"},
    "duckdb": {"store"},
    "ir_measures": {"analysis"},
    "scipy": {"analysis"},
    "matplotlib": {"analysis"},
    "huggingface_hub": {"models"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> set[str]:
    """Names imported at run time; those under `if TYPE_CHECKING` are for the type checker."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(
                {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
            )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def rooms_imported(path: Path) -> set[str]:
    names = [name.split(".") for name in imports(path) if name.startswith("embedcli.")]
    known = set().union(*LAYERS)
    return {parts[1] for parts in names if parts[1] in known}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    if path.name == "__init__.py" and path.parent == PACKAGE:
        return
    level = {name: row for row, names in enumerate(LAYERS) for name in names}
    own = room(path)
    upwards = {other for other in rooms_imported(path) - {own} if level[other] <= level[own]}
    assert not upwards, f"{path.name} reaches up or sideways to {upwards}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_heavy_library_has_one_door(path):
    libraries = {name.partition(".")[0] for name in imports(path)}
    assert not {library for library in libraries & set(DOORS) if room(path) not in DOORS[library]}


def test_the_law_can_fail(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("def f():\n    import torch\n    from embedcli.store import parts\n")
    assert {"torch", "embedcli.store"} <= imports(path)
    assert rooms_imported(path) == {"store"}


def loaded_after(code: str) -> set[str]:
    heavy = "{'torch', 'transformers', 'tokenizers', 'pyarrow', 'numpy', 'huggingface_hub'}"
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nprint(*sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stderr.splitlines()[-1].split())


def test_help_loads_nothing_heavy():
    assert loaded_after("import embedcli.cli; embedcli.cli.app(['encode', '--help'])") == set()


def test_the_pseudo_model_needs_no_torch(tmp_path):
    corpus = tmp_path / "a.jsonl"
    corpus.write_text('{"text": "x"}\n')
    call = f"import embedcli.cli; embedcli.cli.app(['encode', {str(corpus)!r}, '--role', 'query', '--model', 'hash:8'])"
    assert loaded_after(call) == {"numpy", "pyarrow"}


def test_the_models_room_loads_no_torch():
    call = "import embedcli.models.resolve as r; r.resolve(r.ModelRequest('hash:8', template='e5'), 'query')"
    assert "torch" not in loaded_after(call)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_provenance_is_looked_up_by_its_types(path):
    """Facts about vectors have types: their JSON is read and written in one place."""
    if path.relative_to(PACKAGE).as_posix() in ("store/provenance.py", "store/manifest.py"):
        return
    for key in (
        "recipe",
        "space",
        "template_source",
        "vector_type",
        "made",
        "recipe_id",
        "space_id",
    ):
        assert f'["{key}"]' not in path.read_text(), f"{key} is an attribute"


def test_files_are_renamed_into_place_by_few():
    """One durable atomic writer; staging and publishing rename whole folders and parts besides."""
    renaming = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if any(word in path.read_text() for word in ("os.rename(", "os.replace(", ".rename("))
    }
    assert renaming <= {
        "files.py",
        "store/staging.py",
        "store/publish.py",
        "run/steps.py",
    }
