"""The data of a variant: the splits of its seed, or those of a classifier of the service.

The five classifiers are sentiment at home and in three other domains, and which domain a text is from. The test
sentences of each domain are the out-of-domain tests of the report (for movies, the test split), so that nothing scored
in a table is trained on.
"""

from dataclasses import dataclass

from compress.config.profile import Profile
from compress.config.variants import Variant
from compress.data.card import load_card, load_splits
from compress.data.partition import dataset_dict, hold_out, hold_out_tests
from compress.data.sentences import Rows, check_disjoint, fingerprint
from compress.data.snippets import rated_snippets
from compress.data.tabular import SPLITS
from datasets import DatasetDict


@dataclass(frozen=True)
class Task:
    labels: list[str]
    rows: dict[str, Rows]  # train, validation, test

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.rows)


def splits_for(profile: Profile, variant: Variant, seed: int) -> tuple[DatasetDict, list[str], str]:
    """(splits with the columns text and label, names of the classes, fingerprint) of a variant or service."""
    if variant.method == "service":
        task = load_tasks(profile, seed)[variant.task]
        return dataset_dict(task.rows), task.labels, task.fingerprint
    card = load_card(profile, seed)
    return load_splits(profile, seed), card["labels"], card["fingerprint"]


def load_tasks(profile: Profile, seed: int) -> dict[str, Task]:
    """All tasks by name, if the profile has services; raises UserError when a sentence is in two splits."""
    if not profile.services:
        return {}
    data = profile.data
    domains = {}
    for domain, (rest, test) in hold_out_tests(data, rated_snippets(data), seed).items():
        train, validation = hold_out(rest, min(data.validation, len(rest) // 4), seed)
        domains[domain] = {"train": train[: data.max_train], "validation": validation, "test": test}
    tasks = {domain: Task(["negative", "positive"], splits) for domain, splits in domains.items()}
    tasks["domain"] = Task(list(domains), {split: label_domains(domains, split) for split in SPLITS})
    for task in tasks.values():
        check_disjoint(task.rows)
    return tasks


def label_domains(domains: dict[str, dict[str, Rows]], split: str) -> Rows:
    """Sentences of a split labelled with their domain, equally many of every domain."""
    size = min(len(splits[split]) for splits in domains.values())
    return [(text, i) for i, splits in enumerate(domains.values()) for text, _ in splits[split][:size]]
