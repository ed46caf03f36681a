"""The rated snippets of Hutto and Gilbert (VADER, ICWSM 2014): sentences of four domains inside a package.

Amazon's sentences are whole product reviews, and the newspaper's whole opinion articles, cut into sentences.
"""

from typing import NamedTuple

from compress.config.sources import Data
from compress.data.archives import fetch, read_nested_texts
from compress.data.sentences import normalized
from compress.errors import UserError

DOMAIN_FILES = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
}


class Snippet(NamedTuple):
    text: str
    label: int  # 1 if the mean rating is positive
    document: str  # the review or the article; a movie sentence and a tweet are documents of their own


def rated_snippets(data: Data) -> dict[str, list[Snippet]]:
    """The sentences of every domain, each sentence once."""
    archive = fetch(data.package)
    files = read_nested_texts(archive, data.member, "_GroundTruth.txt")
    seen: set[str] = set()
    domains: dict[str, list[Snippet]] = {}
    for domain, file in DOMAIN_FILES.items():
        if file not in files:
            raise UserError(f"{archive}: {data.member} has no file {file!r}")
        domains[domain] = [row for row in parse_snippets(files[file], file) if normalized(row.text) not in seen]
        seen.update(normalized(row.text) for row in domains[domain])
    return domains


def parse_snippets(text: str, source: str) -> list[Snippet]:
    """A snippet per line 'id, rating, text'; drops zero ratings and duplicates.

    The id of a sentence of a document is 'document_sentence'.
    """
    rows: dict[str, Snippet] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            identifier, rating, sentence = line.rstrip("\r").split("\t")
            rating = float(rating)
        except ValueError:
            raise UserError(f"{source}:{number}: expected id, rating and text, separated by tabs") from None
        if rating and (sentence := sentence.strip()):
            snippet = Snippet(sentence, int(rating > 0), identifier.partition("_")[0])
            rows.setdefault(normalized(sentence), snippet)
    return list(rows.values())
