"""Settings of the pages; `docs/build.py` (`make site`) calls Sphinx with them."""

import re

project = "specnb"
author = "the specnb authors"
project_copyright = "the specnb authors; texts and pictures CC BY 4.0, code Apache-2.0"
html_title = "specnb"
html_last_updated_fmt = ""

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "build.py"]
nb_execution_mode = "off"  # the lessons come executed
nb_merge_streams = True
nb_code_prompt_show = nb_code_prompt_hide = "Parameters of this lesson"
nb_render_markdown_format = "myst"
myst_enable_extensions = ["colon_fence", "html_image", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]

# Docstrings use single backticks for code.
default_role = "literal"
autodoc_preserve_defaults = True  # and not the folders of the machine that builds
autodoc_typehints = "signature"
autodoc_member_order = "bysource"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
# Nothing may be fetched from elsewhere.
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"font-stack": "system-ui, 'DejaVu Sans', sans-serif"},
    "dark_css_variables": {"font-stack": "system-ui, 'DejaVu Sans', sans-serif"},
}
copybutton_exclude = ".linenos, .gp, .go"


def as_plain(app, what, name, thing, options, lines):
    """Docstrings are prose with code in backticks: what else RST reads into them is escaped."""
    for number, line in enumerate(lines):
        parts = re.split(r"(`+[^`]*`+)", line)
        parts[::2] = [re.sub(r"[*|]|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
        lines[number] = "".join(parts)


def setup(app):
    app.connect("autodoc-process-docstring", as_plain)
