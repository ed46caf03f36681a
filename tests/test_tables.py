"""Data files of one's own: what is read, what is refused with its place, and what data.json says about the rows."""

import csv
import json
import re

import pytest
from compress.config.sources import Data
from compress.data.partition import assign_texts, split_tables
from compress.data.prepare import prepare
from compress.data.tabular import read_tables
from compress.errors import UserError
from conftest import ROOT, copy_repository, run
from datasets import Value
from test_sources import BAD, GOOD, OFFLINE, WORDS, documented_profile, own_data, parquet, save_encoder, sentences

ROWS = [(f"text {i}", "ab"[i % 2]) for i in range(40)]
HEAD = "text,label\n"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


def table(form="{},{}", head="text,label", rows=ROWS) -> str:
    """The rows under a header, each in a format."""
    return "".join(f"{line}\n" for line in (head, *(form.format(*row) for row in rows)))


def lines(*objects) -> str:
    return "".join(json.dumps(value) + "\n" for value in objects)


PLAIN = table()
FEW = table(rows=ROWS[:2])
OPENED = [('"I liked it', "a"), *ROWS, ('he said no"', "b")]


def read(folder, files, path=".", **about):
    """Splits, classes and the account of the rows, of a path in a folder with some files."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    splits, labels, facts = split_tables(Data(path=str(folder / path), validation=6, test=6, **about), seed=0)
    return splits, labels, facts["rows"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "no header and no rows"),
        ("a.csv", HEAD, "no rows"),
        ("a.txt", PLAIN, "a.txt: unknown format"),
        ("a.csv", "text,sentiment\nx,a\n", "no column 'label'; it has text, sentiment"),
        ("a.csv", "review,label\nx,a\n", "no column 'text'"),
        ("a.csv", table("{},{},z", "text,label,text"), "2 columns are called 'text'"),
        ("a.csv", b"text,label\nx,a\n\xff\xfe,b\n", "line 3 is not UTF-8"),
        ("a.csv", PLAIN.encode("utf-16"), "UTF-16.*iconv -f UTF-16"),
        ("a.csv", PLAIN.encode("utf-16-le"), "UTF-16"),
        ("a.csv", LFS_POINTER, "a.csv: a Git LFS pointer.*git lfs pull"),
        # fields
        ("a.csv", table("{}, yes,{}"), r"row 1 \(line 2\) has 3 fields, the header has 2"),
        ("a.csv", table("{1},{0}, yes", "label,text"), r"row 1 \(line 2\) has 3 fields, the header has 2"),
        ("a.csv", table("{},{},"), r"has 3 fields, the header has 2; it ends in a comma"),
        ("a.csv", f"{FEW}one\n", r"row 3 \(line 4\) has 1 fields"),
        ("a.tsv", "text\tlabel\nx\ty\ta\n", r"row 1 \(line 2\) has 3 fields.*can't contain a tab"),
        # quotes
        ("a.csv", table(rows=OPENED), r"row 1 \(line 2\): a quote opens .* such as 'text 1,b'"),
        ("a.csv", table("{1},{0}", "label,text", OPENED), r"row 1 \(line 2\): a quote opens"),
        ("a.csv", table(rows=OPENED).replace("\n", "\r"), r"row 1 \(line 2\): a quote opens .* such as 'text 1,b'"),
        ("a.csv", f'{FEW}"never closed,a\nx,b\n', "line 4: the quotes of this row are not in pairs"),
        ("a.csv", f'{FEW}"I liked" it,a\n', "line 4: the quotes of this row are not in pairs"),
        # values
        ("a.csv", f"{FEW} ,b\n", r"row 3 \(line 4\) has an empty text"),
        ("a.csv", f"{FEW}y,\n", r"row 3 \(line 4\) has an empty label"),
        ("a.csv", '"text",label\n"x\ny",a\nNA,b\n', r"row 2 \(line 4\) has the text 'NA'"),
        ("a.csv", f"{FEW}y,nan\n", "has the label 'nan', which stands for a missing value"),
        ("a.csv", table(rows=[(str(i), label) for i, (_, label) in enumerate(ROWS)]), "every text is a number"),
        ("a.csv", "id,text,label\n1,x,a\n2,y,b\n1,z,a\n", r"row 3 \(line 4\) repeats the id '1' of row 1"),
        # JSON Lines
        ("a.jsonl", lines({"text": "x", "label": ["a"]}), r"row 1 \(line 1\): its label is of type list"),
        ("a.jsonl", lines({"text": "x", "label": {"a": 1}}), "its label is of type dict"),
        ("a.jsonl", lines({"text": ["x"], "label": "a"}), "its text is of type list, not a text"),
        ("a.jsonl", "\n" + lines({"text": 5, "label": "a"}), r"row 1 \(line 2\): its text is of type int"),
        ("a.jsonl", lines({"text": None, "label": "a"}), "has an empty text"),
        ("a.jsonl", lines({"text": "x", "label": "a"}, {"text": "y"}), r"row 2 \(line 2\) has an empty label"),
        ("a.jsonl", lines({"text": "\ud800", "label": "a"}), "its text is not valid Unicode"),
        ("a.jsonl", lines({"text": "x", "label": "a"}, ["x", "a"]), "line 2 is an array, not an object"),
        ("a.jsonl", json.dumps([{"text": "x"}], indent=1), r"line 1 is an array.*jq -c '\.\[\]' a\.jsonl"),
        ("a.jsonl", lines("x"), "line 1 is of type str, not an object"),
        ("a.jsonl", '{"text": "x",\n', "line 1 is not JSON"),
        ("a.jsonl", '{"text": "x", "label": ' + "[" * 100_000, "line 1 is not JSON: maximum recursion depth"),
        ("a.jsonl", '{"text": "x", "label": "a", "label": "b"}\n', "the key 'label' is there twice"),
        # classes
        ("a.csv", table("{},a"), "two classes; it has a"),
        ("a.csv", f"{PLAIN}one more,c\n", "class 'c' has one text left for train and test"),
        (
            "a.csv",
            table(rows=[(text, {"a": "01", "b": "1"}[label]) for text, label in ROWS]),
            "'01' and '1' are the same",
        ),
    ],
)
def test_a_bad_file_is_an_error_that_names_the_place(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, {name: content}, name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"test": 100}, "holds out 100 sentences, but there are only 40"),
        ({"path": "nowhere.csv"}, "nowhere.csv: no such file"),
        ({"label_column": "text"}, "'text' is both text_column and label_column"),
        (
            {"text_column": "label", "label_column": "text"},
            r"a\.csv: no row is left for train; dropped: with contra.*40",
        ),
        ({"max_length": 513}, None),  # errors of the profile itself
        ({"path": ""}, None),
    ],
)
def test_a_bad_key_is_an_error_and_leaves_no_data(tmp_path, monkeypatch, about, message):
    monkeypatch.setattr("compress.config.profile.ROOT", tmp_path)
    (tmp_path / "a.csv").write_text(PLAIN)
    with pytest.raises(UserError if message else ValueError, match=message or next(iter(about))):
        prepare(own_data(tmp_path, **about), [0])
    assert not (tmp_path / "build/own/data").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"data.csv": table("{}, yes,{}")}, r"data.csv: row 1 \(line 2\) has 3 fields"),
        ({"data/train.csv": table("{}, yes,{}")}, r"data/train.csv: row 1 \(line 2\) has 3 fields"),
        ({"train.csv": PLAIN, "train.jsonl": "{}"}, "train.csv: is not read: a folder holds one file, or"),
        ({"train.csv": PLAIN, "dev.csv": PLAIN}, "dev.csv: is not read"),
        ({"a.csv": PLAIN, "b.csv": PLAIN}, "a.csv: is not read"),
        ({"train.csv": PLAIN, "test.json": "[]"}, "test.json: is not read"),
        ({"train.csv": PLAIN, "Valid.csv.gz": b""}, "Valid.csv.gz: is not read"),
        ({"a.tsv": PLAIN, "sets/dev.txt": PLAIN}, "sets/dev.txt: is not read"),
        ({"data/train-00000-of-00001.csv": PLAIN, "data/dev.csv": PLAIN}, "data/dev.csv: is not read"),
        ({"test.csv": PLAIN}, "no split train; it has test"),
        ({"a.csv": PLAIN, "data/train.parquet": b""}, "data/train.parquet: is not read"),
        ({"data/train.parquet": LFS_POINTER}, "data/train.parquet: a Git LFS pointer"),
        ({"a.txt": PLAIN}, "a.txt: unknown format"),
        ({".train.csv.swp": PLAIN, ".git/config": ""}, "no such file, and no folder with files"),
        (
            {"train.csv": PLAIN, "test.jsonl": lines({"text": "x", "label": "a"})},
            "no sentence of class 'b' in the split",
        ),
    ],
)
def test_a_folder_whose_files_are_bad_or_ambiguous_is_refused(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, files)


@pytest.mark.parametrize("name", ["a.csv", "folder/data.csv", "folder/train.csv", "nested/data/train.csv"])
def test_every_road_leads_to_the_same_rows(tmp_path, name):
    root = tmp_path / name.split("/")[0]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    quoted = [*ROWS, ('"yes, and ""no"""', "a"), ('"one,\ntwo"', "b"), ("None", "a")]
    (tmp_path / name).write_text("\ufeff" + table(rows=quoted), "utf-8")
    (tmp_path / name).with_name("._data.csv").write_text("a file that macOS leaves behind")
    tables, names = read_tables(Data(path=str(root)))
    assert tables == {"train": [*ROWS, ('yes, and "no"', "a"), ("one,\ntwo", "b"), ("None", "a")]}
    assert names == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "message"), [(5, "its text is of type int, not a text"), (None, "has an empty text")]
)
def test_texts_of_a_typed_data_set_are_checked_like_those_of_a_file(tmp_path, value, message):
    features = {"text": Value("string" if value is None else "int32"), "label": Value("float64")}
    parquet(tmp_path / "data/train.parquet", features, {"text": [value], "label": [1.0]})
    with pytest.raises(UserError, match=f"{tmp_path}: train: row 1:? {message}"):
        read_tables(Data(path=str(tmp_path)))


NAMES = "dataset_info: {features: [{name: text, dtype: string}, {name: label, dtype: {class_label: {names: [no]}}}]}"


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("configs: [a: b: c", "not a readable data set: while parsing a flow sequence"),
        (NAMES, "train: the label 1 has no name: 1 are declared"),
    ],
)
def test_a_data_set_whose_card_is_wrong_is_refused(tmp_path, card, message):
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n")
    features = {"text": Value("string"), "label": Value("int64")}
    parquet(tmp_path / "data/train.parquet", features, {"text": ["x", "y"], "label": [0, 1]})
    with pytest.raises(UserError, match=f"{tmp_path}: {message}"):
        read_tables(Data(path=str(tmp_path)))


def test_files_of_a_data_set_with_other_columns_are_named(tmp_path):
    for name, column in (("train-0", "label"), ("train-1", "stars")):
        features = {"text": Value("string"), column: Value("string")}
        parquet(tmp_path / f"data/{name}.parquet", features, {"text": ["x"], column: ["a"]})
    with pytest.raises(UserError, match=r"not a readable data set: .*stars"):
        read_tables(Data(path=str(tmp_path)))


def test_quotes_of_a_tsv_file_are_characters(tmp_path):
    splits, _, about = read(tmp_path, {"a.tsv": table("{}\t{}", "text\tlabel", OPENED)}, "a.tsv")
    assert (about["read"], about["used"]) == ({"train": 42}, 42)
    texts = {text for rows in splits.values() for text, _ in rows}
    assert {'"I liked it', 'he said no"'} < texts


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, 1], ["1", "9", "10"]),
        ([10, 2.0, 1], ["1", "2", "10"]),
        ([2, "2.0", -1.5], ["-1.5", "2"]),
        (["01", "10", "2"], ["01", "2", "10"]),
        (["+1", "-1", "0"], ["-1", "0", "+1"]),
        ([1e-07, 10, 1], ["1e-07", "1", "10"]),
        (["10", "2.0", "x"], ["10", "2.0", "x"]),
        ([True, False], ["false", "true"]),
    ],
)
def test_classes_that_are_numbers_are_sorted_by_value(tmp_path, labels, names):
    rows = [(f"text {i}", label) for i, label in enumerate(labels)]
    (tmp_path / "a.jsonl").write_text(
        "\ufeff" + lines(*({"text": text, "label": label} for text, label in rows)), "utf-8"
    )
    (tmp_path / "a.csv").write_text(table(rows=[(text, json.dumps(label).strip('"')) for text, label in rows]))
    for path in (tmp_path / "a.jsonl", tmp_path / "a.csv"):
        assert read_tables(Data(path=str(path)))[1] == names


def test_rows_are_accounted_for_and_contradictions_dropped(tmp_path):
    own = [("Text  1", "b"), ("same", "a"), ("Same ", "b"), ('"one\ntwo"', "a"), ("tested", "a")]
    tested = [("tested", "b"), ("other", "a"), ("both", "a"), ("both", "b")]
    files = {"train.csv": table(rows=ROWS + own), "test.csv": table(rows=tested), "eval.py": "", "README.md": ""}
    splits, _, about = read(tmp_path, files, max_train=20)
    assert about == {
        "read": {"train": 45, "test": 4},
        "used": 28,
        "dropped": {
            "duplicates": 1,
            "with contradicting labels in one split": 4,
            "also in test": 1,
            "beyond max_train": 15,
        },
        "classes": about["classes"],
        "texts": {"with contradicting labels": 3, "with line breaks": 1},
    }
    assert sum(about["read"].values()) == about["used"] + sum(about["dropped"].values())
    assert sum(about["classes"].values()) == about["used"] == sum(map(len, splits.values()))
    assert splits["test"] == [("tested", 1), ("other", 0)]
    assert "same" not in {text.lower().strip() for text, _ in splits["train"] + splits["validation"]}


def test_a_text_with_and_without_a_label_stays_where_it_has_one():
    tables = {"train": [("both", None), ("only", None), ("Both", "a")], "test": [("both ", None)]}
    splits, dropped, _ = assign_texts(tables, ["a", "b"])
    assert (splits["train"], splits["test"], splits["unlabelled"]) == ([("Both", 0)], [], [("only", -1)])
    assert dropped == {"also in train": 2}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return copy_repository(tmp_path_factory.mktemp("own"))


def test_the_documented_example_prints_and_keeps_what_the_documentation_says(clone):
    page = (ROOT / "docs" / "own-data.md").read_text("utf-8")
    sample, printed = re.search(r"```csv\n(.*?)```.*?```\n(.*?)```", page, re.DOTALL).groups()
    (clone / "scripts/profiles/mine.toml").write_text(documented_profile(), "utf-8")
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64}
    save_encoder(clone / "my-encoder", "bert", **sizes)
    with open(clone / "reviews.csv", "w", encoding="utf-8", newline="") as file:
        file.write(sample)
        rows = sentences([BAD, WORDS, GOOD], 1493)
        writer = csv.writer(file)
        writer.writerows([i, text, ("awful", "so-so", "great")[label]] for i, (text, label) in enumerate(rows, 8))
    done = run(clone, ".venv/bin/python", "scripts/prepare_data.py", "--profile", "mine", **OFFLINE)
    assert done.returncode == 0, done.stderr
    shown = re.sub(r", +[\d.]+ word pieces.*", "", done.stdout).splitlines()
    assert [line for line in shown if line in printed.splitlines()] == printed.splitlines()
    card = json.loads((clone / "build/mine/data/seed0/data.json").read_text("utf-8"))
    assert card["labels"] == ["awful", "great", "so-so"]
    assert {name: split["sentences"] for name, split in card["splits"].items()} == {
        "train": 897,
        "validation": 300,
        "test": 300,
    }
    assert card["rows"]["read"] == {"train": 1500}
    assert card["rows"]["dropped"] == {"duplicates": 1, "with contradicting labels in one split": 2}


@pytest.mark.parametrize("quotes", ["'", '"""'])
def test_make_notices_every_change_of_a_local_file(clone, quotes):
    data = clone / ("my data; all/of it/two: #x" if quotes == "'" else "my data; all/of it's $1")
    encoder = clone / "my-encoder/1_Pooling"
    for folder in (data / "sub", encoder):
        folder.mkdir(parents=True, exist_ok=True)
    (data / "train set*.csv").write_text(PLAIN)
    (data / "sub/more.csv").write_text(PLAIN)
    (encoder / "pooling config [1].json").write_text("{}")
    text = documented_profile().replace('"mine"', '"quoted"')
    assert '"reviews.csv"' in text
    path = f"{quotes}{data.relative_to(clone)}{quotes}"
    (clone / "scripts/profiles/quoted.toml").write_text(text.replace('"reviews.csv"', path), "utf-8")

    def is_stale() -> bool:
        done = run(clone, "make", "-n", "data", "PROFILE=quoted")
        assert done.returncode == 0, done.stderr
        return "scripts/prepare_data.py" in done.stdout

    def pretend_prepared() -> None:
        for file in (clone / "build/quoted/.data-0", clone / "build/quoted/data/seed0/data.json"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()

    assert is_stale()
    pretend_prepared()
    assert not is_stale()
    changes = [
        lambda: (data / "train set*.csv").write_text(PLAIN + "more,a\n"),
        lambda: (data / "sub/more.csv").unlink(),
        lambda: (encoder / "pooling config [1].json").write_text("{ }"),
    ]
    for change in changes if quotes == "'" else changes[:1]:
        change()
        assert is_stale()
        pretend_prepared()
