"""The pages' Markdown: citations written out by pandoc, sections numbered and linked; and one HTML file, and LaTeX."""

import os
import re

import nbformat
import pypandoc
from compress.config.profile import Profile
from compress.errors import UserError
from compress.paths import ROOT
from nbconvert import LatexExporter

BIBLIOGRAPHY = ROOT / "report" / "references.bib"
CITATION = re.compile(r"\[[^\[\]]*@[^\[\]]+\]|(?<![\w`@.])@[a-z][\w-]*")  # [@key], [@key, eq. 1; @other] or @key
FIGURE = re.compile(r"^!\[.*\]\((.*)\.png\)\n\n\*(.*)\*$", re.M)
IMAGE = re.compile(r"\]\(([^()\s]*)\.png\)")
MATH = re.compile(r"\$\$.+?\$\$|\$(?=\S)[^$\n]*?(?<=\S)\$(?!\d)")  # as pandoc and GitHub tell formulas from money
HEADING = re.compile(r"^(##|###) (.+)$", re.M)
UNNUMBERED = ("Abstract", "References")
REFERENCE = re.compile(r"\[\]\(#([\w-]+)\)")  # [](#serving): the section with that title
CONTENTS = re.compile(r"^\*\*Contents\*\*\n\n(?:- .*\n)+\n", re.M)
PAGE = "gfm+tex_math_dollars"  # the Markdown of the pages
CITED = "gfm-raw_html-tex_math_gfm+tex_math_dollars"  # the Markdown in which pandoc writes citations

PREAMBLE = r"""\newcounter{none}  % pandoc's tables count in it
\usepackage{etoolbox}
\geometry{margin=0.8in}
\AtBeginEnvironment{longtable}{\fontsize{6.5}{8}\selectfont\setlength{\tabcolsep}{1.5pt}}  % wide tables
\captionsetup{format=plain, font=small, aboveskip=4pt, belowskip=4pt}  % the exporter hides captions
\adjustboxset{max size={0.85\linewidth}{0.33\paperheight}}  % figures stay in place: small ones leave small gaps
\raggedright  % names of variants are long and can't be hyphenated
\setcounter{secnumdepth}{-2}  % the titles have their numbers already
"""


def slug(title: str) -> str:
    """The anchor of a heading, as GitHub and pandoc make it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def number_sections(text: str) -> str:
    """The text with numbered headings of two levels, letters for appendices, and its contents after the abstract."""
    section, appendix, part = 0, 0, 0

    def numbered(found: re.Match) -> str:
        nonlocal section, appendix, part
        marks, title = found.groups()
        if marks == "###":
            part += 1
            return f"### {chr(64 + appendix) if appendix else section}.{part} {title}"
        if title in UNNUMBERED:
            return found[0]
        part = 0
        if title.startswith("Appendix: "):
            appendix += 1
            return f"## Appendix {chr(64 + appendix)}: {title.removeprefix('Appendix: ')}"
        section += 1
        return f"## {section} {title}"

    done = HEADING.sub(numbered, text)
    titles = [title for marks, title in HEADING.findall(done) if marks == "##" and title not in UNNUMBERED]
    contents = "".join(f"- [{title}](#{slug(title)})\n" for title in titles)
    return re.sub(r"^## (?!Abstract)", f"**Contents**\n\n{contents}\n## ", done, count=1, flags=re.M)


def link_sections(text: str) -> str:
    """The text with its references to sections by number, if they have one, or else by title.

    A reference is a link without a text to the title without its number: [](#serving), [](#appendix-tables).
    """
    labels = {}
    for _, title in HEADING.findall(text):
        number, _, plain = title.partition(" ")
        if title.startswith("Appendix "):
            letter, _, plain = title.removeprefix("Appendix ").partition(": ")
            labels.setdefault(f"appendix-{slug(plain)}", (f"appendix {letter}", slug(title)))
        elif number[0].isdigit():
            labels.setdefault(slug(plain), (f"section {number}", slug(title)))
        labels.setdefault(slug(title), (title.removeprefix("Appendix: "), slug(title)))

    def link(found: re.Match) -> str:
        label, anchor = labels.get(found[1], (None, None))
        return f"[{label}](#{anchor})" if label else found[1].replace("-", " ")

    return REFERENCE.sub(link, text)


def write_citations(text: str) -> str:
    """The text with its citations written out and the cited works listed at its end.

    A citation is pandoc's: [@key], [@key; @other], or @key within a sentence. Raises UserError naming an unknown key.
    """
    citations = sorted(set(CITATION.findall(text)))
    if not citations:
        return text
    options = ["--citeproc", f"--bibliography={BIBLIOGRAPHY}", "--wrap=none", "--fail-if-warnings"]
    try:
        done = pypandoc.convert_text("\n\n".join(citations), CITED, format="markdown", extra_args=options)
    except RuntimeError as error:
        raise UserError(f"{BIBLIOGRAPHY}: a citation can't be resolved: {error}") from None
    paragraphs = done.strip().split("\n\n")
    resolved = dict(zip(citations, paragraphs, strict=False))
    works = "\n".join(f"- {work}" for work in paragraphs[len(citations) :])
    return f"{CITATION.sub(lambda found: resolved[found[0]], text).rstrip()}\n\n## References\n\n{works}\n"


def to_html(profile: Profile, text: str) -> str:
    """The report as one HTML file: contents at the side, vector figures inside, formulas as MathML."""
    title, body = text.removeprefix("# ").split("\n", 1)
    folder = ROOT / "report"
    options = ["--standalone", "--embed-resources", "--toc", "--toc-depth=3", "--mathml", "--wrap=none"]
    options += [f"--metadata=title:{title}", "--metadata=lang:en"]
    options += [f"--css={folder / 'style.css'}", f"--include-after-body={folder / 'tables.html'}"]
    # Absolute links to the figures: the page's folder may not exist yet.
    drawn = IMAGE.sub(lambda found: f"](<{(profile.report / found[1]).resolve()}.svg>)", CONTENTS.sub("", body))
    return pypandoc.convert_text(drawn, "html5", format=PAGE, extra_args=options) + "\n"


def to_latex(profile: Profile, text: str) -> str:
    """The report in LaTeX by nbconvert, as a notebook of one cell, with vector figures."""
    title, body = text.removeprefix("# ").split("\n", 1)  # the title is LaTeX's, and so are sections and captions
    body = re.sub(r"^##", "#", FIGURE.sub(r"![\2](\1.pdf)", CONTENTS.sub("", body)), flags=re.M)
    body = re.sub(r"\]\(#\d+-", "](#", body)  # pandoc's own Markdown leaves numbers out of anchors
    os.environ["PATH"] = os.path.dirname(pypandoc.get_pandoc_path()) + os.pathsep + os.environ["PATH"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(body, id="report")])
    notebook.metadata.title = title
    resources = {"metadata": {"path": str(profile.report), "name": "report"}}
    done, _ = LatexExporter().from_notebook_node(notebook, resources=resources)
    # The exporter makes paths absolute; the committed file must not say where the clone lies.
    done = done.replace(f"{{{profile.figures}/", f"{{{os.path.relpath(profile.figures, profile.report)}/")
    done = done.replace("\\begin{document}", f"{PREAMBLE}\\begin{{document}}", 1)
    done = done.replace("\\maketitle", "\\maketitle\n\\setcounter{tocdepth}{1}\n\\tableofcontents", 1)
    return "\n".join(line.rstrip() for line in done.splitlines()) + "\n"
