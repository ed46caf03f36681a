"""Summarizes the runs of the service benchmark, every column from the raw numbers in build/<profile>/serving/.

Writes results/<profile>/serving.csv (a row per server, layout and rate), services.csv (the five classifiers) and
serving.json (the runs' machines and versions). A run is void if its load generator was late; such runs are left out,
and `reason` counts them. Peers are included if make serve-peers has run. Without any runs the files stay unchanged.
Example: .venv/bin/python scripts/collate_serving.py --profile minilm
"""

import argparse

from compress.cli import main_guard, profile_parser


def main(args: argparse.Namespace) -> int:
    from compress.config.profile import load_profile
    from compress.files import write_json
    from compress.loadtest.summary import finished_runs, origins, serving_rows
    from compress.results.classifiers import service_rows
    from compress.results.rows import ServingRow, write_rows

    profile = load_profile(args.profile)
    if profile.serving is None:
        return 0
    runs = finished_runs(profile)
    if not runs:
        print(f"{profile.build}/serving: no runs, so serving.csv and services.csv stay unchanged")
        return 0
    services = service_rows(profile)
    rows = [ServingRow(**row) for row in serving_rows(profile, runs)]
    write_rows(profile.results / "serving.csv", rows)
    write_rows(profile.results / "services.csv", services)
    write_json(profile.results / "serving.json", origins(runs))
    print(f"{profile.results}: {len(rows)} rows of serving.csv, {len(services)} services")
    return 0


if __name__ == "__main__":
    main_guard(main, profile_parser(__doc__))
