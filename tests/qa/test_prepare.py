"""Converters: the counts of the original files, their quirks, and malformed rows by file and
line.
"""

import csv
import json
import re

import datasets
import pytest
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from flagtrl.cli import main
from flagtrl.errors import ConfigError, DataError
from flagtrl.qa import sources
from flagtrl.qa.choices import with_choices
from flagtrl.qa.prepare import DATASETS, prepare
from flagtrl.qa.records import Question, read_records
from flagtrl.qa.scoring import answer_matches
from qa_inputs import FINQA, ORIGINALS, TURNS, write_original

# file below shared/qa, samples, documents, malformed: PROVENANCE.md counts FiQA's sentences, which
# are the documents.
COUNTS = [
    ("tatqa", "tatqa/tatqa_dataset_test_gold.json", 1663, 277, 0),
    ("tatqa", "tatqa/tatqa_dataset_dev.json", 1668, 278, 0),
    ("finqa", "finqa_subset/finqa_test_100.json", 98, 98, 2),
    ("finqa", "finqa_subset/finqa_open_domain.jsonl", 1098, 369, 5),
    ("fiqa_sa", "fiqa_sa/task1_headline_ABSA_train.json", 379, 336, 0),
    ("fiqa_sa", "fiqa_sa/task1_headline_ABSA_test.json", 119, 100, 0),
    ("fiqa_sa", "fiqa_sa/task1_post_ABSA_train.json", 575, 575, 0),
    ("fiqa_sa", "fiqa_sa/task1_post_ABSA_test.json", 100, 100, 0),
    ("twitter_fin", "twitter_fin/sent_train.csv", 9543, 9543, 0),
    ("twitter_fin", "twitter_fin/sent_valid.csv", 2388, 2388, 0),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, file, samples, documents, malformed", COUNTS)
def test_the_counts_are_the_published_ones(
    shared, tmp_path, name, file, samples, documents, malformed
):
    done = prepare(name, str(shared / "qa" / file), tmp_path, skip_malformed=bool(malformed))
    assert (done.samples, done.documents, len(done.skipped)) == (samples, documents, malformed)
    records = read_records(tmp_path, name)
    assert len(records) == len({record.id for record in records}) == samples
    note = json.loads((tmp_path / f"{name}.source.json").read_text())
    assert note["licence"] == DATASETS[name].licence
    assert len(note["source"][0]["sha256"]) == 64


def test_malformed_rows_are_named_by_file_and_line_and_skipped_only_when_asked(
    shared, tmp_path, capsys
):
    file = shared / "qa/finqa_subset/finqa_test_100.json"
    lines = file.read_text().splitlines()
    both = (
        r"finqa_test_100.json:23: .* blank; .*finqa_test_100.json:298: .* neither a number nor "
        r"yes or no; .*--skip_malformed"
    )
    with pytest.raises(DataError, match=both):
        prepare("finqa", str(file), tmp_path)
    assert not list(tmp_path.iterdir())
    main(["qa", "prepare", "finqa", str(file), "--data", str(tmp_path), "--skip_malformed"])
    out = capsys.readouterr().out
    assert "98 samples" in out and "2 skipped" in out
    for place in (23, 298):
        assert f"finqa_test_100.json:{place}:" in out
        assert lines[place - 1].strip() == "{", "the line is that of the record's first character"


def test_of_many_malformed_rows_some_are_named_and_the_others_counted(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\n" + "bad,7\n" * 9)
    with pytest.raises(
        DataError, match=r"x.csv:2: .*x.csv:3: .*x.csv:4: .*; and 6 more; correct the file"
    ) as error:
        prepare("twitter_fin", str(tmp_path / "x.csv"), tmp_path / "data")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("file", ["finalDataset_0208.tsv", "gold.TSV"])
def test_gold_headlines_are_read_from_tabs_too(file, tmp_path):
    """The same records as from commas; a headline with a comma or a quotation mark needs no quoting
    there.
    """
    name, text = ORIGINALS["gold_headlines"]
    rows = list(csv.reader(text.splitlines()))
    for source, content in ((name, text), (file, "".join("\t".join(row) + "\n" for row in rows))):
        (tmp_path / source).write_text(content)
    read = []
    for source in (name, file):
        prepare("gold_headlines", str(tmp_path / source), tmp_path / "data")
        read.append(
            [(r.text, r.about, r.label) for r in read_records(tmp_path / "data", "gold_headlines")]
        )
    assert sorted(read[0]) == sorted(read[1]) and len(read[1]) == 6
    assert read[1][0][0] == "april gold down 20 cents, settles"
    (tmp_path / file).write_text("\t".join(rows[0]) + "\n" + "\t".join(rows[1][:-1]) + "\n")
    with pytest.raises(DataError, match=rf"{re.escape(file)}:2: 9 values for 10 columns"):
        prepare("gold_headlines", str(tmp_path / file), tmp_path / "data")


def test_a_folder_of_gold_headlines_in_tabs_is_read(tmp_path):
    _, text = ORIGINALS["gold_headlines"]
    content = "".join("\t".join(row) + "\n" for row in csv.reader(text.splitlines()))
    (tmp_path / "gold_headlines.tsv").write_text(content)
    assert prepare("gold_headlines", str(tmp_path), tmp_path / "data").samples == 6


def test_an_answerless_file_says_which_file_has_answers(shared, tmp_path):
    with pytest.raises(DataError, match="test_gold"):
        prepare("tatqa", str(shared / "qa/tatqa/tatqa_dataset_test.json"), tmp_path)


@pytest.mark.parametrize("name", ["tatqa", "finqa"])
def test_choices_hold_the_answer_once_and_only_wrong_ones_beside_it(shared, data, tmp_path, name):
    folder = {"tatqa": "tatqa", "finqa": "finqa_subset"}[name]
    questions = read_records(data, name)
    places = [0] * 4
    for question in questions:
        assert len(question.choices) == (2 if question.kind == "yes_no" else 4)
        assert question.choices[question.label] == question.answer
        wrong = [choice for i, choice in enumerate(question.choices) if i != question.label]
        assert len({choice.lower() for choice in wrong}) == len(wrong)
        assert not any(
            answer_matches(choice, question.answers, question.scale, question.kind)
            for choice in wrong
        ), question
        places[question.label] += 1
    assert max(places) < 0.35 * len(questions), "no letter is right too often"
    prepare(name, str(shared / "qa" / folder), tmp_path, skip_malformed=True)
    assert (tmp_path / f"{name}.jsonl").read_bytes() == (data / f"{name}.jsonl").read_bytes()


FORMS = [
    "(94)",
    "-12.6",
    "$ (1,496.5)",
    "(5)%",
    "-0.4%",
    "1e-05",
    "1.5E-07",
    "0",
    "0.00",
    ".5",
    "$94 million",
    "2015",
    "1",
]


@pytest.mark.parametrize("gold", FORMS)
def test_all_choices_have_the_gold_ones_form(gold):
    """Of a bracketed or negative answer too, whose page has positive numbers: only digits
    differ.
    """

    def form(text):
        return re.sub(
            r"\d+(,\d{3})*(?=\.|\D|$)", "9", re.sub(r"(?<=e)[-+]\d+", "", text, flags=re.IGNORECASE)
        )

    context = "sales | 90 | 1,200.5 | 8 | 0.3 | 0.00002 | (5)"
    (asked,) = with_choices([Question("q", "d", context, "how much?", gold, (gold,), "", "number")])
    assert len(asked.choices) == 4
    assert {form(choice).replace("0.9", ".9").replace("9.9", ".9") for choice in asked.choices} == {
        form(gold).replace("0.9", ".9").replace("9.9", ".9")
    }


def test_a_limit_does_not_see_one_label_alone(shared, tmp_path):
    """The original is sorted by label."""
    prepare("twitter_fin", str(shared / "qa/twitter_fin"), tmp_path)
    assert {record.label for record in read_records(tmp_path, "twitter_fin")[:30]} == {0, 1, 2}


@pytest.mark.parametrize("name", ORIGINALS)
def test_every_original_form_is_read_from_its_folder(name, tmp_path):
    write_original(name, tmp_path)
    done = prepare(name, str(tmp_path), tmp_path / "data")
    assert (
        done.samples
        == {
            "finqa": 1,
            "convfinqa": 2,
            "financebench": 3,
            "phrasebank": 2,
            "gold_headlines": 6,
            "fomc": 2,
        }[name]
    )


def test_the_forms_mean_what_they_say(tmp_path):
    records = {}
    for name in ORIGINALS:
        (tmp_path / name).mkdir()
        prepare(name, str(write_original(name, tmp_path / name)), tmp_path)
        records[name] = sorted(read_records(tmp_path, name), key=lambda record: record.id)
    finqa = records["finqa"][0]
    # a blank answer: the executed program's
    assert (finqa.answer, finqa.document) == ("94.0", "A/2015/page_1.pdf")
    assert finqa.context == "before .\n | 2015\nsales | $ 94\nafter ."
    first, second = records["convfinqa"]
    assert second.question == "what were sales in 2015? 94.0 and in 2014?"
    assert first.document == second.document
    assert [record.kind for record in records["financebench"]] == ["number", "yes_no", "text"]
    assert records["financebench"][0].context == "capex\n1,577"
    rose = records["phrasebank"][0]
    assert (rose.text, rose.label) == ("Sales at \u20ac 5 @ home rose .", 2)
    assert [r.label for r in records["gold_headlines"]] == [0, 0, 1, 0, 1, 0]
    assert len({r.document for r in records["gold_headlines"]}) == 1
    assert [r.label for r in records["fomc"]] == [2, 0]  # hawkish is tightening, dovish easing


def test_latin_1_is_read(tmp_path):
    (tmp_path / "x.txt").write_bytes("H\u00e4meenlinna .@neutral\n".encode("latin-1"))
    prepare("phrasebank", str(tmp_path / "x.txt"), tmp_path)
    assert read_records(tmp_path, "phrasebank")[0].text == "H\u00e4meenlinna ."


def test_a_turn_file_gives_one_question_a_row(tmp_path):
    turns = [
        FINQA
        | {
            "id": f"A_{i}",
            "annotation": TURNS
            | {"cur_dial": TURNS["dialogue_break"][: i + 1], "exe_ans": TURNS["exe_ans_list"][i]},
        }
        for i in range(2)
    ]
    (tmp_path / "dev_turn.json").write_text(json.dumps(turns))
    assert prepare("convfinqa", str(tmp_path), tmp_path).samples == 2
    assert sorted(r.answer for r in read_records(tmp_path, "convfinqa")) == ["90.0", "94.0"]


ASKED = {"uid": "q", "question": "how much?", "answer": "5", "scale": ""}


def _tatqa(**changes):
    table = {
        "table": {"uid": "t", "table": [["sales", None, "5"]]},
        "paragraphs": [],
        "questions": [ASKED],
    }
    return json.dumps([table | changes])


BAD = {
    "sentiment out of bounds": (
        "fiqa_sa",
        "x.json",
        '{"1": {"sentence": "s", "info": [\n{"target": "A", "sentiment_score": "1.4"}]}}',
        "x.json:1",
    ),
    "unknown label": ("twitter_fin", "x.csv", "text,label\nfine,1\nbad,7\n", "x.csv:3"),
    "blank text": ("twitter_fin", "x.csv", 'text,label\n"two\nlines",1\n  ,1\n', "x.csv:4"),
    "broken JSON": (
        "finqa",
        "x.json",
        '[\n{"question": "q", "answer": "1"},\n{"question": ]',
        "x.json:3",
    ),
    "broken JSON line": ("financebench", "x.jsonl", "\n{", "x.jsonl:2: no JSON"),
    "a company that is a word": (
        "fiqa_sa",
        "x.json",
        '{"1": {"sentence": "s", "info": ["A"]}}',
        "x.json:1: info[0] is 'A'",
    ),
    "no list of companies": (
        "fiqa_sa",
        "x.json",
        '{"1": {"sentence": "s", "info": 3}}',
        "x.json:1: info is 3",
    ),
    "a score that is none": (
        "fiqa_sa",
        "x.json",
        '{"1": {"sentence": "s", "info": [{"target": "A"}]}}',
        "is None, no number",
    ),
    "no text": (
        "tatqa",
        "x.json",
        _tatqa(paragraphs=[{"order": 1, "text": None}]),
        "x.json:1: None is no text",
    ),
    "no question": (
        "tatqa",
        "x.json",
        _tatqa(questions=["how much?"]),
        "x.json:1: question is 'how much?', no record",
    ),
    "a blank question": (
        "tatqa",
        "x.json",
        _tatqa(questions=[ASKED | {"question": None}]),
        "question is None, no text",
    ),
    "a nested answer": (
        "tatqa",
        "x.json",
        _tatqa(questions=[ASKED | {"answer": {"a": 1}}]),
        "neither text nor number",
    ),
    "no answer": (
        "tatqa",
        "x.json",
        _tatqa(questions=[ASKED | {"answer": None}]),
        "neither text nor number",
    ),
    "null question": (
        "finqa",
        "x.json",
        '[{"question": null, "answer": "1"}]',
        "x.json:1: question is None, no text",
    ),
    "evidence without text": (
        "financebench",
        "x.jsonl",
        '{"doc_name": "d", "question": "q", "answer": "5", "evidence": [{"evidence_text": null}]}',
        "x.jsonl:1: evidence_text is None",
    ),
    "no document": (
        "financebench",
        "x.jsonl",
        '{"doc_name": null, "question": "q", "answer": "5"}',
        "doc_name is None",
    ),
    "a turn without text": (
        "convfinqa",
        "x.json",
        json.dumps([FINQA | {"annotation": TURNS | {"dialogue_break": ["sales?", None]}}]),
        "x.json:1: None is no text",
    ),
    "after blank lines": ("twitter_fin", "x.csv", "\ntext,label\n\n\nfine,1\n\nbad,7\n", "x.csv:7"),
    "an unquoted comma": (
        "twitter_fin",
        "x.csv",
        "text,label\nup, then down,1\n",
        "x.csv:2: 3 values for 2 columns",
    ),
    "missing field": (
        "tatqa",
        "x.json",
        '[{"table": {"uid": "a", "table": []}, "questions": [{"uid": "q"}]}]',
        "'paragraphs'",
    ),
    "no records": ("fomc", "x.csv", "sentence,label\n", "no sample"),
    "another kind of file": ("fomc", "x.xlsx", "PK", ".xlsx"),
    "a list of numbers": ("finqa", "x.json", "[1, 2]", "x.json:1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(case, tmp_path):
    name, file, text, said = BAD[case]
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError) as error:
        prepare(name, str(tmp_path / file), tmp_path / "data")
    assert said in str(error.value)


def test_one_bad_question_costs_no_other_and_is_counted(tmp_path):
    asked = [ASKED | {"uid": str(i), "answer": "" if i == 2 else [str(i)]} for i in range(6)]
    (tmp_path / "x.json").write_text(_tatqa(questions=asked))
    done = prepare("tatqa", str(tmp_path / "x.json"), tmp_path, skip_malformed=True)
    assert (done.samples, len(done.skipped)) == (5, 1)
    assert "sales |  | 5" in read_records(tmp_path, "tatqa")[0].context, "an empty cell is no None"
    lost = _tatqa(questions=asked, paragraphs=[{"order": 1, "text": None}])
    (tmp_path / "x.json").write_text(json.dumps([*json.loads(lost), *json.loads(_tatqa())]))
    done = prepare("tatqa", str(tmp_path / "x.json"), tmp_path, skip_malformed=True)
    assert (done.samples, len(done.skipped)) == (1, 6), (
        "a table without its text costs each of its questions"
    )


def test_broken_lines_and_rows_that_are_no_records_are_skipped_when_asked(tmp_path):
    row = json.dumps({"doc_name": "d", "question": "q", "answer": "5"})
    (tmp_path / "x.jsonl").write_text(f"{row}\n{{\n[1]\n{row}\n")
    done = prepare("financebench", str(tmp_path / "x.jsonl"), tmp_path, skip_malformed=True)
    assert done.samples == 2
    assert [place.rpartition("/")[2][:9] for place in done.skipped] == ["x.jsonl:2", "x.jsonl:3"]


def test_unknown_names_missing_files_and_unprepared_data_are_named(tmp_path, capfd):
    with pytest.raises(ConfigError, match="'fpb' is unknown; use one of tatqa"):
        prepare("fpb", str(tmp_path), tmp_path)
    with pytest.raises(DataError, match=r"holds tatqa_dataset_test_gold\.json"):
        prepare("tatqa", str(tmp_path), tmp_path)
    with pytest.raises(DataError, match="flagtrl qa prepare finqa"):
        read_records(tmp_path, "finqa")
    (tmp_path / "finqa.jsonl").write_text('{"question": "q"}\n')
    with pytest.raises(DataError, match=r"finqa.jsonl:1 is damaged"):
        read_records(tmp_path, "finqa")
    with pytest.raises(SystemExit) as stop:
        main(["qa", "prepare", "fpb", "x", "--data", str(tmp_path)])
    assert stop.value.code == 2
    assert capfd.readouterr().err.strip().splitlines()[-1].startswith("flagtrl: ConfigError")


@pytest.fixture
def repository(monkeypatch, tmp_path):
    """A data set of the Hub, `me/set`, as a folder; its files and configurations are what a test
    makes them.
    """
    folder = tmp_path / "hub"
    folder.mkdir()
    asked = []

    def download(repo, repo_type, allow_patterns):
        asked.append((repo, allow_patterns))
        return str(folder)

    monkeypatch.setattr(
        sources, "list_repo_files", lambda repo, repo_type: [p.name for p in folder.iterdir()]
    )
    monkeypatch.setattr(sources, "snapshot_download", download)
    monkeypatch.setattr(sources, "get_dataset_config_names", lambda repo: ["all", "half"])
    rows = datasets.Dataset.from_list([{"text": "up", "label": 1}, {"text": "down", "label": 0}])
    loaded = datasets.DatasetDict({"train": rows, "validation": rows})
    monkeypatch.setattr(
        sources, "load_dataset", lambda repo, config: asked.append((repo, config)) or loaded
    )
    return folder, asked


def test_of_the_hub_the_original_files_are_read(repository, tmp_path):
    """Also those with answers of several types, which `datasets` cannot put into one column."""
    folder, asked = repository
    (folder / "tatqa_dataset_dev.json").write_text(
        _tatqa(questions=[ASKED, ASKED | {"uid": "r", "answer": ["a", "b"]}])
    )
    (folder / "README.md").write_text("")
    assert prepare("tatqa", "hub:me/set", tmp_path).samples == 2
    assert asked == [("me/set", ["tatqa_dataset_dev.json"])]
    assert prepare("tatqa", f"hub:{folder}", tmp_path).samples == 2, "a folder that is at hand"
    note = json.loads((tmp_path / "tatqa.source.json").read_text())
    assert note["source"] == [{"hub": str(folder)}]


def test_of_the_hub_a_configuration_and_a_split_are_read(repository, tmp_path):
    _, asked = repository
    for named in ("half", "half:train", "half:validation"):
        assert prepare("twitter_fin", f"hub:me/set:{named}", tmp_path).samples == 2
    assert asked == [("me/set", "half")] * 3
    with pytest.raises(
        DataError, match="has the configurations all, half; name one: hub:me/set:CONFIG"
    ):
        prepare("twitter_fin", "hub:me/set", tmp_path)
    with pytest.raises(DataError, match="no split 'test'; it has train, validation"):
        prepare("twitter_fin", "hub:me/set:half:test", tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no route\nat all"),
        DatasetGenerationError("types"),
        DatasetNotFoundError("no set"),
        TypeError("x"),
    ],
)
def test_no_hub_is_one_clear_line(error, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise error

    for name in ("list_repo_files", "get_dataset_config_names"):
        monkeypatch.setattr(sources, name, refuse)
    for source in ("hub", "hub:a/b", "hub:a/b:half"):
        with pytest.raises(DataError, match="give its file instead") as stop:
            prepare("twitter_fin", source, tmp_path)
        assert str(error).splitlines()[0] in str(stop.value) and "\n" not in str(stop.value)


def test_a_folder_that_datasets_cannot_read_is_one_clear_line(tmp_path, monkeypatch):
    """Through the real loader, whose error is none of Python's own."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set/broken.json").write_text('[{"answer": ')
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(DataError, match="give its file instead"):
        prepare("tatqa", f"hub:{tmp_path / 'set'}", tmp_path)
