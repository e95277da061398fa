"""What mkdocs adds to the pages: the API section, one page a module of the package; and a page of
every file outside docs/ that a page links to, so that the site is whole by itself.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src/flagtrl"
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)(?=[)#])")  # of a relative link, without its anchor
Nav = list[dict[str, "str | Nav"]]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages; put the API at the end of the navigation."""
    linked = {
        target
        for file in files.documentation_pages()
        for link in LINK.findall(file.content_string)
        if (target := outside(file.src_uri, link)) is not None
    }
    for target in sorted(linked):
        if (uri := source_page(target)).startswith("source/"):
            files.append(File.generated(config, uri, content=source(ROOT / target)))
    for module in modules():
        text = f"# {module}\n\n::: {module}\n"
        files.append(File.generated(config, api_page(module), content=text))
    config.nav = [*(config.nav or []), {"API": api_navigation(PACKAGE)}]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave docs/ to the pages of what they link to."""
    uri = page.file.src_uri

    def inside(link: re.Match[str]) -> str:
        target = outside(uri, link[0])
        if target is None:
            return link[0]
        return posixpath.relpath(source_page(target), posixpath.dirname(uri) or ".")

    return LINK.sub(inside, markdown)


def outside(uri: str, link: str) -> str | None:
    """The file or folder of the repository, from its root, that a link of the page `uri` leaves
    docs/ for; None where it stays.
    """
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(uri), link))
    leaves = not target.startswith("docs/")
    return target if leaves and (ROOT / target).exists() else None


def source_page(target: str) -> str:
    """Where the page of a file or folder is; of a module of the package, its API page."""
    path = ROOT / target
    if path.suffix == ".py" and path.is_relative_to(PACKAGE):
        return api_page(module_name(path))
    return f"source/{target}.md"


def source(path: Path) -> str:
    """The page of a file, or of the files of a folder."""
    files = [path] if path.is_file() else sorted(each for each in path.iterdir() if each.is_file())
    parts = [f"# {path.relative_to(ROOT)}"]
    for each in files:
        language = {".py": "python", ".yaml": "yaml"}.get(each.suffix, "text")
        heading = [] if each == path else [f"## {each.name}"]
        parts += [*heading, f"````{language}\n{each.read_text(encoding='utf-8').rstrip()}\n````"]
    return "\n\n".join(parts) + "\n"


def modules() -> list[str]:
    """The public modules of the package, packages before what is in them."""
    return [module_name(path) for path in python_files(PACKAGE)]


def python_files(folder: Path) -> Iterator[Path]:
    """A package's own file, its modules, its subpackages."""
    yield folder / "__init__.py"
    for path in sorted(folder.iterdir(), key=lambda each: (each.is_dir(), each.name)):
        if path.is_dir() and (path / "__init__.py").is_file():
            yield from python_files(path)
        elif path.suffix == ".py" and not path.name.startswith("_"):
            yield path


def module_name(path: Path) -> str:
    """A file of the package as it is imported."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def api_page(module: str) -> str:
    """Where a module's page is; a package's is the index of its folder."""
    folder = PACKAGE.parent.joinpath(*module.split("."))
    inner = "/".join(module.split(".")[1:])
    return posixpath.join("api", inner, "index.md") if folder.is_dir() else f"api/{inner}.md"


def api_navigation(folder: Path) -> Nav:
    """The navigation of a package: its own page, its modules, its subpackages."""
    entries: Nav = []
    for path in python_files(folder):
        inner = path.parent if path.name == "__init__.py" else path
        if inner == folder:
            entries.append({folder.name: api_page(module_name(path))})
        elif inner.is_dir() and inner.parent == folder:
            entries.append({inner.name: api_navigation(inner)})
        elif path.parent == folder:
            entries.append({path.stem: api_page(module_name(path))})
    return entries
