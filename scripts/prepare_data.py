"""Downloads, verifies and splits the data of a profile, and unpacks its backbone.

Writes build/<profile>/data/ (the backbone, and splits and data.json of every seed) and build/downloads/. Unchanged data
keep their files.
Example: .venv/bin/python scripts/prepare_data.py --profile minilm --seeds "0 1"
"""

import argparse

from compress.cli import main_guard, profile_parser, seed_list


def main(args: argparse.Namespace) -> None:
    from compress.config.profile import load_profile
    from compress.data.prepare import prepare

    for seed, card in prepare(load_profile(args.profile), args.seeds).items():
        print(f"seed {seed}:")
        report(card)


def report(card: dict) -> None:
    """Prints what became of the rows, the size of every split, and facts about the tokenizer."""
    if rows := card.get("rows"):
        print(f"        rows: {sum(rows['read'].values())} read, {rows['used']} used")
        for title in ("dropped", "texts", "classes"):
            counts = [f"{name} ({count})" for name, count in rows[title].items() if count]
            print(f"{title:>12}: {', '.join(counts) or 'none'}")
    for name, split in card["splits"].items():
        print(f"{name:>12}: {split['sentences']:6} sentences, {split['length_mean']:5.1f} word pieces on average")
    print(f" fingerprint: {card['fingerprint']}")
    about, unknown = card["tokenizer"], card["splits"]["train"]["unknown_share"]
    case = "lowercases texts" if about["lowercases"] else "keeps capitals"
    print(f"   tokenizer: {about['pieces']} pieces, {case}, {unknown:.2%} of the pieces in train are unknown")


if __name__ == "__main__":
    parser = profile_parser(__doc__)
    parser.add_argument("--seeds", type=seed_list, default=[0], help="separated by spaces (default: 0)")
    main_guard(main, parser)
