"""The five classifiers of the service: sentiment at home and in three other domains, and which domain a text is from.

All come from the profile's archive. The test sentences of every domain are those that the report calls out-of-domain
(for movies, the test split): nothing that a table scores is trained on.
"""

from dataclasses import dataclass

from compress.config.profile import Profile, Service
from compress.data.prepare import OUT_OF_DOMAIN, Rows, check_disjoint, fingerprint, hold_out, snippets


@dataclass(frozen=True)
class Task:
    labels: list[str]
    rows: dict[str, Rows]  # train, validation, test

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.rows)

    @property
    def splits(self):
        """The same as a DatasetDict with the columns text and label."""
        from datasets import Dataset, DatasetDict

        return DatasetDict(
            {
                name: Dataset.from_dict({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
                for name, rows in self.rows.items()
            }
        )


def load_tasks(profile: Profile) -> dict[str, Task]:
    """Every task by its name in the profile; raises UserError when a sentence is in two splits."""
    if not profile.services:
        return {}
    data = profile.data
    domains = snippets(profile)
    parts = {}
    for domain, rows in domains.items():
        held = data.domain_test if domain in OUT_OF_DOMAIN else data.test
        rest, test = hold_out(rows, held, data.split_seed)
        train, validation = hold_out(rest, min(data.validation, held), data.split_seed)
        parts[domain] = {"train": train[: data.max_train], "validation": validation, "test": test}
    tasks = {domain: Task(["negative", "positive"], rows) for domain, rows in parts.items()}
    # As many sentences of every domain, so that no class is more frequent than another.
    domain_rows = {}
    for split in ("train", "validation", "test"):
        size = min(len(part[split]) for part in parts.values())
        domain_rows[split] = [(text, i) for i, part in enumerate(parts.values()) for text, _ in part[split][:size]]
    tasks["domain"] = Task(list(parts), domain_rows)
    for task in tasks.values():
        check_disjoint(task.rows)
    return tasks


def service_variants(profile: Profile) -> list[Service]:
    """The services as entries of a profile. The parent has learnt the movies already and is taken as it is."""
    serving = profile.serving
    return [
        Service(
            name=f"service-{task}",
            method="service",
            parent=serving.parent,
            timed=False,
            task=task,
            training=None if task == "movies" else serving.training,
        )
        for task in serving.tasks
    ]
