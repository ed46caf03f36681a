"""Results to report: report.md, report.html and report.tex, a page per chapter, the decision page, README's table.

Reads results/<profile>/, figures/<profile>/, report/*.j2, report/chapters/*.j2, report/*.csv and
report/references.bib; writes report/ (report/<profile>/ for other profiles than the default).
Example: .venv/bin/python scripts/render.py --profile minilm
"""

import argparse

from compress.cli import main_guard, profile_parser


def main(args: argparse.Namespace) -> None:
    from compress.config.profile import load_profile
    from compress.files import write_text
    from compress.paths import DEFAULT_PROFILE, ROOT
    from compress.report.formats import to_html
    from compress.report.pages import documents, front_page
    from compress.results.reading import read_results

    profile = load_profile(args.profile)
    results = read_results(profile)
    files = documents(profile, results)
    files[profile.report / "report.html"] = to_html(profile, files[profile.report / "report.md"])
    for path, text in files.items():
        write_text(path, text)
    if profile.name == DEFAULT_PROFILE:
        print(f"{front_page(profile, results)}\n")
    print(", ".join(str(path.relative_to(ROOT)) for path in files))


if __name__ == "__main__":
    main_guard(main, profile_parser(__doc__))
