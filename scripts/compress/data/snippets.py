"""The rated snippets of Hutto and Gilbert (VADER, ICWSM 2014): sentences of four domains inside a package."""

from compress.config.sources import Data
from compress.data.archives import fetch, read_nested_texts
from compress.data.sentences import Rows, normalized
from compress.errors import UserError

DOMAIN_FILES = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
}


def rated_snippets(data: Data) -> dict[str, Rows]:
    """The sentences of every domain, each sentence once."""
    archive = fetch(data.package)
    files = read_nested_texts(archive, data.member, "_GroundTruth.txt")
    seen: set[str] = set()
    domains: dict[str, Rows] = {}
    for domain, file in DOMAIN_FILES.items():
        if file not in files:
            raise UserError(f"{archive}: {data.member} has no file {file!r}")
        rows = [row for row in parse_snippets(files[file], file) if normalized(row[0]) not in seen]
        seen.update(normalized(text) for text, _ in rows)
        domains[domain] = rows
    return domains


def parse_snippets(text: str, source: str) -> Rows:
    """(sentence, 1 if the mean rating is positive) per line 'id, rating, text'; drops zero ratings and duplicates."""
    rows: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            _, rating, sentence = line.rstrip("\r").split("\t")
            rating = float(rating)
        except ValueError:
            raise UserError(f"{source}:{number}: expected id, rating and text, separated by tabs") from None
        if rating and (sentence := sentence.strip()):
            rows.setdefault(normalized(sentence), (sentence, int(rating > 0)))
    return list(rows.values())
