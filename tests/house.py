"""The map of the package, made from the modules' docstrings: `python -m tests.house` writes it into
embedcli/README.md.
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "embedcli"
README = PACKAGE / "README.md"
BEGIN, END = "<!-- map: python -m tests.house -->", "<!-- /map -->"
_WIDTH = 24


def first_sentence(path: Path) -> str:
    """What a module says of itself, in a line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".")


def lines(folder: Path, indent: str = "") -> list[str]:
    found = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_file(), path.name)):
        if path.is_dir() and (path / "__init__.py").is_file():
            found.append(_line(f"{indent}{path.name}/", first_sentence(path / "__init__.py")))
            found += lines(path, indent + "    ")
        elif path.suffix == ".py" and not path.name.startswith("__"):
            found.append(_line(f"{indent}{path.name}", first_sentence(path)))
    return found


def _line(name: str, what: str) -> str:
    return f"{name:<{_WIDTH}} {what}".rstrip()


def with_map(readme: str) -> str:
    """The README with the block between the marks made anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    tree = "\n".join(lines(PACKAGE))
    return f"{before}{BEGIN}\n\n```text\n{tree}\n```\n\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_map(README.read_text(encoding="utf-8")), encoding="utf-8")
