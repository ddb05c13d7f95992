"""How Sphinx builds the site: `sphinx-build -c docs . site`, from the repository's root.

The sources are the repository's Markdown files where they lie, so that their links lead to the same
places in the repository and on the site; and the docstrings, which are read as reStructuredText.
"""

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.domains.python._object import PyObject
from sphinx.roles import code_role

project = "coop_jax"
copyright = "2026, the coop_jax authors"
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/RESULTS.md",
    "coop_jax/assets/tiny_clip/README.md",
    "docs/**.md",
]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_heading_anchors = 4

default_role = "backticks"
nitpick_ignore_regex = [
    ("py:.*", r"(?!coop_jax\b).*"),
    ("py:class", r".*\.(Carry|Input|Output|Tree)"),
]
"""Names of other packages, and type variables, are on none of the pages."""

add_module_names = False
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "exclude-members": ",".join(
        f"set_{name}_request" for name in ("fit", "predict", "predict_proba", "score")
    ),
}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_custom_sections = [
    (section, "params_style") for section in ("Settings", "Metadata", "Beside the class")
]
napoleon_attr_annotations = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True

html_copy_source = False
html_css_files = ["site.css"]
html_extra_path = ["root"]
html_show_sphinx = False
html_static_path = ["static"]
html_theme = "furo"
html_title = project


def backticks(name: str, rawtext: str, text: str, *place: Any, **options: Any) -> Any:
    """Show what docstrings have in backticks as code, and link the names among it."""
    is_name = re.fullmatch(r"[A-Za-z_][\w.]*(\(\))?", text)
    role = PyXRefRole() if is_name else code_role
    return role("py:obj", rawtext, text, *place, **options)


def setup(app: Sphinx) -> None:
    """Add the role of what is in backticks, and read `a, b: ...` as two names.

    Types are in the signatures, where Sphinx would take "a," for the type of b.
    """
    app.add_role("backticks", backticks)
    for field in PyObject.doc_field_types:
        field.is_typed = False
