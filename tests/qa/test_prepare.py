"""Converters: the counts of the original files, their quirks, and malformed rows by file and line."""

import json
import re

import pytest

from flagtrl.cli import main
from flagtrl.errors import ConfigError, DataError
from flagtrl.qa.choices import with_choices
from flagtrl.qa.prepare import DATASETS, prepare
from flagtrl.qa.records import Question, read_records
from flagtrl.qa.scoring import answer_matches
from qa_inputs import FINQA, ORIGINALS, TURNS, write_original

# file below shared/qa, samples, documents, malformed: PROVENANCE.md counts FiQA's sentences, which are the documents.
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


@pytest.mark.parametrize("name, file, samples, documents, malformed", COUNTS)
def test_the_counts_are_the_published_ones(shared, tmp_path, name, file, samples, documents, malformed):
    done = prepare(name, str(shared / "qa" / file), tmp_path, skip_malformed=bool(malformed))
    assert (done.samples, done.documents, len(done.skipped)) == (samples, documents, malformed)
    records = read_records(tmp_path, name)
    assert len(records) == len({record.id for record in records}) == samples
    note = json.loads((tmp_path / f"{name}.source.json").read_text())
    assert note["licence"] == DATASETS[name].licence
    assert len(note["source"][0]["sha256"]) == 64


def test_malformed_rows_are_named_by_file_and_line_and_skipped_only_when_asked(shared, tmp_path, capsys):
    file = shared / "qa/finqa_subset/finqa_test_100.json"
    lines = file.read_text().splitlines()
    with pytest.raises(DataError, match=r"finqa_test_100.json:23: .* blank \(and 1 more\).*--skip_malformed"):
        prepare("finqa", str(file), tmp_path)
    assert not list(tmp_path.iterdir())
    main(["qa", "prepare", "finqa", str(file), "--data", str(tmp_path), "--skip_malformed"])
    out = capsys.readouterr().out
    assert "98 samples" in out and "2 skipped" in out
    for place in (23, 298):
        assert f"finqa_test_100.json:{place}:" in out
        assert lines[place - 1].strip() == "{", "the line is that of the record's first character"


def test_an_answerless_file_says_which_file_has_answers(shared, tmp_path):
    with pytest.raises(DataError, match="test_gold"):
        prepare("tatqa", str(shared / "qa/tatqa/tatqa_dataset_test.json"), tmp_path)


@pytest.mark.parametrize("name", ["tatqa", "finqa"])
def test_choices_hold_the_answer_once_and_only_wrong_ones_beside_it(shared, tmp_path, name):
    folder = {"tatqa": "tatqa", "finqa": "finqa_subset"}[name]
    prepare(name, str(shared / "qa" / folder), tmp_path, skip_malformed=True)
    questions = read_records(tmp_path, name)
    places = [0] * 4
    for question in questions:
        assert len(question.choices) == (2 if question.kind == "yes_no" else 4)
        assert question.choices[question.label] == question.answer
        wrong = [choice for i, choice in enumerate(question.choices) if i != question.label]
        assert len({choice.lower() for choice in wrong}) == len(wrong)
        assert not any(answer_matches(choice, question.answers, question.scale, question.kind) for choice in wrong), question
        places[question.label] += 1
    assert max(places) < 0.35 * len(questions), "no letter is right too often"
    prepare(name, str(shared / "qa" / folder), tmp_path / "again", skip_malformed=True)
    assert (tmp_path / f"{name}.jsonl").read_bytes() == (tmp_path / "again" / f"{name}.jsonl").read_bytes()


FORMS = ["(94)", "-12.6", "$ (1,496.5)", "(5)%", "-0.4%", "1e-05", "1.5E-07", "0", "0.00", ".5", "$94 million", "2015", "1"]


@pytest.mark.parametrize("gold", FORMS)
def test_all_choices_have_the_gold_ones_form(gold):
    """Of a bracketed or negative answer too, whose page has positive numbers: only digits differ."""

    def form(text):
        return re.sub(r"\d+(,\d{3})*(?=\.|\D|$)", "9", re.sub(r"(?<=e)[-+]\d+", "", text, flags=re.IGNORECASE))

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
        done.samples == {"finqa": 1, "convfinqa": 2, "financebench": 3, "phrasebank": 2, "gold_headlines": 6, "fomc": 2}[name]
    )


def test_the_forms_mean_what_they_say(tmp_path):
    records = {}
    for name in ORIGINALS:
        (tmp_path / name).mkdir()
        prepare(name, str(write_original(name, tmp_path / name)), tmp_path)
        records[name] = sorted(read_records(tmp_path, name), key=lambda record: record.id)
    finqa = records["finqa"][0]
    assert (finqa.answer, finqa.document) == ("94.0", "A/2015/page_1.pdf")  # a blank answer: the executed program's
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
            "annotation": TURNS | {"cur_dial": TURNS["dialogue_break"][: i + 1], "exe_ans": TURNS["exe_ans_list"][i]},
        }
        for i in range(2)
    ]
    (tmp_path / "dev_turn.json").write_text(json.dumps(turns))
    assert prepare("convfinqa", str(tmp_path), tmp_path).samples == 2
    assert sorted(r.answer for r in read_records(tmp_path, "convfinqa")) == ["90.0", "94.0"]


BAD = {
    "sentiment out of bounds": (
        "fiqa_sa",
        "x.json",
        '{"1": {"sentence": "s", "info": [\n{"target": "A", "sentiment_score": "1.4"}]}}',
        "x.json:1",
    ),
    "unknown label": ("twitter_fin", "x.csv", "text,label\nfine,1\nbad,7\n", "x.csv:3"),
    "blank text": ("twitter_fin", "x.csv", 'text,label\n"two\nlines",1\n  ,1\n', "x.csv:4"),
    "broken JSON": ("finqa", "x.json", '[\n{"question": "q", "answer": "1"},\n{"question": ]', "x.json:3"),
    "broken JSON line": ("financebench", "x.jsonl", '{"a": 1}\n{', "x.jsonl:2"),
    "missing field": ("tatqa", "x.json", '[{"table": {"uid": "a", "table": []}}]', "'paragraphs'"),
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


def test_the_hubs_form_is_read_and_no_hub_is_one_clear_error(tmp_path, monkeypatch):
    import datasets

    from flagtrl.qa import sources

    rows = datasets.Dataset.from_list([{"text": "up", "label": 1}, {"text": "down", "label": 0}])
    monkeypatch.setattr(sources, "load_dataset", lambda repo: datasets.DatasetDict({"train": rows, "validation": rows}))
    assert prepare("twitter_fin", "hub", tmp_path).samples == 2
    note = json.loads((tmp_path / "twitter_fin.source.json").read_text())
    assert note["source"] == [{"hub": "zeroshot/twitter-financial-news-sentiment"}]
    with pytest.raises(DataError, match="no split 'test'; it has train, validation"):
        prepare("twitter_fin", "hub:a/b:test", tmp_path)

    def refuse(repo):
        raise ConnectionError("no route")

    monkeypatch.setattr(sources, "load_dataset", refuse)
    with pytest.raises(DataError, match="no route; give its file instead"):
        prepare("twitter_fin", "hub:a/b", tmp_path)
