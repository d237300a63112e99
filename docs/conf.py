"""The documentation site: ``make docs`` builds it, and every warning is an error."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

project = "rayvisor"
author = "the rayvisor developers"
project_copyright = author
release = version = version_of("rayvisor")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "statecharts.sphinx",
    "tools.docs_site",
]
exclude_patterns = ["_build"]
nitpicky = True  # a reference without a target is a warning, and so an error
default_role = "code"
smartquotes = False  # keeps the two dashes of command-line options
suppress_warnings = ["myst.strikethrough"]

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True,
    "inherited-members": "object,BaseException,Exception,Enum,StrEnum,ValueError,TimeoutError,str",
}
autodoc_class_signature = "mixed"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "rayvisor"
html_favicon = "../supervisor/rayvisor/_edges/web/icon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
