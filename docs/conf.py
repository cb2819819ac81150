"""Sphinx: the site of ``make site``. It needs no network, neither to build nor to read."""

import itertools
import re
import sys
from pathlib import Path

from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).parent))  # tools/build_site.py puts this file at the root

project, author = "diffrl", "the diffrl authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme, html_title = "furo", "diffrl"
html_static_path, html_css_files, html_show_copyright = ["_static"], ["site.css"], False
html_show_sourcelink = html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
html_math_renderer = "mathml"

nb_execution_mode = "off"  # they are executed by reproduce
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_mock_imports = ["ray", "lerobot"]
napoleon_google_docstring = True


def _mathml(self, node, display):
    known = re.sub(r"(\\big[lr]?)?\\\|", "‖", node.astext())  # the converter knows no \|
    formula = convert(known, display=display)
    wide = f'<div class="formula">{formula}</div>'  # a phone scrolls it, not the page
    self.body.append(wide if display == "block" else formula)
    from docutils.nodes import SkipNode

    raise SkipNode


def _plain(app, what, name, subject, options, lines):
    """Let |x| and *x in our docstrings be what they are: they use no other markup than code."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``.*?``|`.*?`)", line)
        plain = [re.sub(r"(?<!\\)\|", r"\\|", part) for part in parts[::2]]
        plain = [re.sub(r"\*(?=\S)", r"\\*", part) for part in plain]
        lines[number] = "".join(
            itertools.chain(*itertools.zip_longest(plain, parts[1::2], fillvalue=""))
        )


def setup(app):
    """Write formulas as MathML, which browsers draw themselves; MathJax would be fetched."""
    app.connect("autodoc-process-docstring", _plain, priority=900)  # after napoleon
    inline = (lambda self, node: _mathml(self, node, "inline"), None)
    block = (lambda self, node: _mathml(self, node, "block"), None)
    app.add_html_math_renderer("mathml", inline_renderers=inline, block_renderers=block)
