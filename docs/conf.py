"""Settings of the documentation: `make docs` writes the site to build/docs."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from docutils import nodes  # noqa: E402
from generate import aggregator_table, grouping_table, multitask_table  # noqa: E402  (needs the path)
from latex2mathml.converter import convert  # noqa: E402
from page_contents import without_contents  # noqa: E402

import metamtl  # noqa: E402

project, author = "metamtl", "The metamtl authors"
version = release = metamtl.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns: list[str] = []

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

html_theme = "furo"
html_math_renderer = "mathml"  # browsers show it by themselves; MathJax would be loaded from the web
html_title = "metamtl"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_extra_path = ["llms.txt"]
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autosummary_generate = False  # the pages of docs/reference/ list the names
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True

nitpicky = True
# Names of torch, numpy and Python: their inventories are not available offline.
nitpick_ignore_regex = [("py:.*", r"(?!metamtl\.).*")]

FOLDERS = ["metamtl", *(f"metamtl.{path.stem}" for path in sorted((HERE / "reference").glob("*.md")))]
FOLDERS.remove("metamtl.core")

# Files outside of this folder -> the pages that include them.
PAGES = {
    "../data/README.md": "datasets.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
}
TABLES = {"aggregators": aggregator_table, "grouping": grouping_table, "multitask": multitask_table}
LINK = re.compile(r"\[([^\]]+)\]\((https?://[^)\s]+)\)")
CODE = re.compile(r"(?<![`:])`(?![^`\n]* <http)([^`\n]+)`(?![`_])")


def markdown_to_rst(lines: list[str]) -> list[str]:
    """Convert the Markdown of a docstring (code, fences, links, tables) to reStructuredText."""
    result: list[str] = []
    fenced = in_table = False
    for line in _joined(lines):
        text, indent = line.strip(), line[: len(line) - len(line.lstrip())]
        if text.startswith("```"):
            fenced = not fenced
            result += ["", f"{indent}.. code-block:: {text[3:] or 'text'}", ""] if fenced else [""]
        elif fenced:
            result.append(f"   {line}")
        elif text.startswith((">>>", "...")):
            result.append(line)
        elif text.startswith("|") and text.endswith("|"):
            if not in_table:
                result += ["", f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
            if not set(text) <= set("|-: "):
                cells = [_inline(cell.strip()) for cell in text[1:-1].split("|")]
                result += [f"{indent}   {' ' if i else '*'} - {cell}" for i, cell in enumerate(cells)]
            in_table = True
            continue
        else:
            if in_table:
                result.append("")
            result.append(_inline(line))
        in_table = False
    return result


def _joined(lines: list[str]) -> list[str]:
    """Join lines that code in backticks spans."""
    result: list[str] = []
    for line in lines:
        if result and result[-1].replace("```", "").count("`") % 2:
            result[-1] += " " + line.strip()
        else:
            result.append(line)
    return result


def _inline(text: str) -> str:
    """Code, links and bars, which are substitutions in reStructuredText."""
    text = CODE.sub(r"``\1``", LINK.sub(r"`\1 <\2>`__", text)) if "`" in text or "](" in text else text
    text = re.sub(r"(``[^`]+``)(?=\w)", r"\1\\ ", text)
    parts = re.split(r"(``[^`]*``)", text)
    return "".join(part if part.startswith("``") else part.replace("|", r"\|") for part in parts)


def process_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if not getattr(obj, "__module__", "metamtl").startswith("metamtl"):
        del lines[1:]  # a function of torch, as an attribute
    if isinstance(obj, type) and (obj.__doc__ or "").startswith("TorchJD's `"):
        # The rest is TorchJD's docstring, with roles of its own site.
        first, second, *_ = "\n".join([*lines, "", ""]).split("\n\n")
        lines[:] = f"{first}\n\n{second}".split("\n") if second.startswith("Formula") else [first]
    lines[:] = markdown_to_rst(lines)


def public_names() -> dict[str, str]:
    """The documented name of every public object, by the name of its definition."""
    names = {}
    for folder in FOLDERS:
        module = importlib.import_module(folder)
        for name in getattr(module, "__all__", ()):
            obj = getattr(module, name)
            if hasattr(obj, "__qualname__"):
                names[f"{obj.__module__}.{obj.__qualname__}"] = f"{folder}.{name}"
    return names


def link_to_public_name(app: Any, env: Any, node: Any, contents: Any) -> Any:
    if node.get("refdomain") != "py":
        return None
    target = public_names().get(node["reftarget"])
    if target is None:
        module, _, name = node["reftarget"].rpartition(".")
        is_private = module in sys.modules and hasattr(sys.modules[module], name)
        return contents if is_private and module.startswith("metamtl.") else None
    return env.get_domain("py").resolve_xref(
        env, node["refdoc"], app.builder, "obj", target, node, contents
    )


def prepare_source(app: Any, docname: str, source: list[str]) -> None:
    """Insert generated tables, and turn links to files of the repository into pages or downloads."""
    source[0] = without_contents(source[0])
    for name, table in TABLES.items():
        if (marker := f"<!-- generated: {name} -->") in source[0]:
            source[0] = source[0].replace(marker, table())
    for path, page in PAGES.items():
        source[0] = source[0].replace(f"]({path}", f"](/{page}")
    source[0] = re.sub(r"\[([^\]]+)\]\((\.\./experiments/[^)]+\.md)\)", r"{download}`\1 <\2>`", source[0])


def write_inline(writer: Any, node: Any) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def write_display(writer: Any, node: Any) -> None:
    writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (write_inline, None), (write_display, None))
    # Before napoleon, so that its sections are converted, too.
    app.connect("autodoc-process-docstring", process_docstring, priority=400)
    app.connect("missing-reference", link_to_public_name)
    app.connect("source-read", prepare_source)
