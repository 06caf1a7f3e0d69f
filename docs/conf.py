"""The site: sphinx-build -W --keep-going -n -j2 -b html docs build/site.

Most of its pages are those of this folder; _ext/pagemaker makes the others.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import schuss  # noqa: E402

project = "Schuss"
author = "the authors of Schuss"
copyright = author  # noqa: A001
version = release = schuss.__version__

extensions = ["myst_parser", "sphinx_design", "sphinx_copybutton", "site_build"]
exclude_patterns = ["_*"]
myst_enable_extensions = ["amsmath", "attrs_block", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # of a docstring's page, whose headings begin lower
nitpick_ignore_regex = [("py:.*", r"(?!schuss\b).*")]  # types of others in signatures
python_maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"
highlight_language = "text"

html_theme = "pydata_sphinx_theme"
html_title = "Schuss"
html_static_path = ["_static"]
html_css_files = ["schuss.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_sidebars: dict[str, list[str]] = {"index": []}
html_theme_options = {
    "header_links_before_dropdown": 8,
    "logo": {"text": f"Schuss {version}"},
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "pygments_light_style": "friendly",
    "pygments_dark_style": "github-dark",
}
copybutton_exclude = ".linenos, .gp"
