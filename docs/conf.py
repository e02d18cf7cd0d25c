"""How `make site` turns these pages into a site (Sphinx, MyST Markdown, Furo) that fetches nothing when it is read."""

from tutelage import __version__

project = "Tutelage"
author = "The founders of Tutelage"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4  # as a repository's pages have them: our links to headings are written for both

html_theme = "furo"
html_title = f"Tutelage {release}"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_static_path: list[str] = []

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_mock_imports: list[str] = []  # what a page says is read from the code itself
