"""Retention: divergences against torch, likelihoods token by token, the control of zeros."""

import math
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from flagtrl.errors import AdapterError, DataError, PromptError
from flagtrl.qa import divergence as measures
from flagtrl.qa import retention as module
from flagtrl.qa.arms import arm, load_arms
from flagtrl.qa.divergence import (
    WORDS,
    Prompt,
    check_zero,
    divergence,
    full_kl,
    text_bits,
    word_masses,
)
from flagtrl.qa.paired import PairedLM
from flagtrl.qa.records import Question
from flagtrl.qa.retention import (
    Asked,
    asked_of,
    document_passages,
    general_passages,
    passages_of,
    question_prompts,
    read_texts,
    retention,
    trading_prompts,
)
from flagtrl.record import RunRecord
from qa_inputs import lora

TEXT = "Net sales rose 5% to $94 million.\n\nThe board proposed a dividend of $0.12 per share."


@pytest.fixture(scope="module")
def lm(small_model, loras):
    model, tokenizer, _, _ = load_arms(str(small_model), [str(loras[0])], "cpu")
    return PairedLM(model, tokenizer, 2)


def prompts(lm, *texts):
    return [Prompt(tuple(lm.tok_encode(text)), text) for text in texts]


def test_the_divergence_is_torchs():
    torch.manual_seed(0)
    base, tuned = (torch.randn(7, 50).log_softmax(-1) for _ in range(2))
    expected = torch.nn.functional.kl_div(tuned, base, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(full_kl(base, tuned), expected)
    half = torch.tensor([[0.5, 0.5]]).log()
    assert float(full_kl(half, torch.tensor([[0.25, 0.75]]).log())) == pytest.approx(
        0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    )


def test_divergence_against_two_full_forwards(lm):
    (prompt,) = prompts(lm, TEXT)
    found = divergence(lm, partial(arm, lm.model), "adapter_0", [prompt])
    ids = torch.tensor([prompt.ids])
    with torch.no_grad():
        tuned = lm.model(ids).logits[0].double().log_softmax(-1)
        with lm.model.disable_adapter():
            base = lm.model(ids).logits[0].double().log_softmax(-1)
    kl = (base.exp() * (base - tuned)).sum(-1)
    assert found.kl[0] == pytest.approx(float(kl.sum()), rel=1e-4)
    assert found.kl_answer[0] == pytest.approx(float(kl[-1]), rel=1e-4)
    assert found.answer_positions[0] == 1
    assert found.agree[0] == int((base.argmax(-1) == tuned.argmax(-1)).sum())
    assert found.positions[0] == len(prompt.ids)
    assert found.kl[0] > 1e-3


def test_answer_positions_are_those_that_predict_the_gold_answers_tokens(lm):
    text, answer = "Question: how much was it?\nAnswer:", " $94 million"
    (prompt,) = question_prompts(lm, [Asked("d", text, answer)])
    start, whole = lm.tok_encode(text), lm.tok_encode(text + answer)
    many = len(whole) - len(start)
    assert whole[: len(start)] == start and many > 2
    assert (prompt.ids, prompt.answer) == (tuple(whole[:-1]), many)
    found = divergence(lm, partial(arm, lm.model), "adapter_0", [prompt])
    stepwise = [Prompt(tuple(whole[:i]), "d") for i in range(len(start), len(whole))]
    each = divergence(lm, partial(arm, lm.model), "adapter_0", stepwise)
    assert found.answer_positions[0] == many
    assert found.kl_answer[0] == pytest.approx(each.kl_answer.sum(), rel=1e-3)
    assert found.agree_answer[0] == each.agree_answer.sum()


def test_a_documents_text_counts_once_and_is_resampled_as_one():
    long = "\n\n".join(f"Paragraph {i}: " + "word " * 200 for i in range(4))
    asked = [
        Question(str(i), name, text, "how much?", "5", ("5",), "", "number")
        for i, (name, text) in enumerate(
            [("a", long), ("a", long), ("b", "Sales rose."), ("b", "Sales fell.")]
        )
    ]
    passages = document_passages(asked)
    assert [document for document, _ in passages] == ["a"] * len(passages_of(long)) + ["b", "b"]
    assert len(set(passages)) == len(passages)
    assert asked_of(asked)[2] == Asked("b", "Sales rose.\n\nQuestion: how much?\nAnswer:", " 5")


def test_the_general_text_is_of_a_dozen_things():
    passages = general_passages()
    assert len(passages) == len({document for document, _ in passages}) == 12
    assert all(150 < len(passage) < module.PASSAGE for _, passage in passages)


def test_mass_on_the_action_words_counts_every_token(lm):
    """`Sell` is two tokens: its mass is the product of both, as plain forwards give it."""
    context = "Question: is it good?\nAnswer:"
    expected = 0.0
    for word in WORDS:
        start, whole = lm.tok_encode(context), lm.tok_encode(context + word)
        assert whole[: len(start)] == start
        with torch.no_grad():
            logs = lm.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        expected += math.exp(
            sum(float(logs[i - 1, whole[i]]) for i in range(len(start), len(whole)))
        )
    assert any(
        len(lm.tok_encode(context + word)) - len(lm.tok_encode(context)) == 2 for word in WORDS
    )
    assert word_masses(lm, context, (nullcontext,)) == pytest.approx([expected], rel=1e-4)


def test_mass_is_also_that_of_words_of_many_tokens(shared, tmp_path):
    """A vocabulary of 512 spells them letter by letter."""
    base = shared / "models/stories260K"
    model, tokenizer, _, _ = load_arms(str(base), [str(lora(base, tmp_path / "lora", 0.1))], "cpu")
    small = PairedLM(model, tokenizer, 2)
    context = "One day a girl said:"
    pairs = [small._encode_pair(context, word) for word in WORDS]
    assert min(len(word) for _, word in pairs) > 1, "no word is read at the context's end alone"
    requests = [Instance("loglikelihood", {}, (context, word), i) for i, word in enumerate(WORDS)]
    expected = sum(math.exp(score) for score, _ in small.loglikelihood(requests, disable_tqdm=True))
    assert word_masses(small, context, (nullcontext,)) == pytest.approx([expected], rel=1e-4)


def test_bits_of_a_text_are_those_of_its_tokens(lm):
    ids = lm.tok_encode(TEXT)
    with torch.no_grad():
        logs = (
            lm.model(torch.tensor([[lm.prefix_token_id, *ids]])).logits[0].double().log_softmax(-1)
        )
    nats = -sum(float(logs[i, token]) for i, token in enumerate(ids))
    assert text_bits(lm, [TEXT]) == pytest.approx([nats / math.log(2)], rel=1e-5)


def test_passages_keep_the_text_and_are_of_one_size():
    text = "\n\n".join(f"Paragraph {i}: " + "word " * 60 for i in range(30))
    passages = passages_of(text)
    assert "".join("".join(passages).split()) == "".join(text.split())
    assert len(passages) > 5
    assert max(map(len, passages)) <= module.PASSAGE + 2


def test_an_adapter_of_zeros_is_measured_as_exactly_zero_and_is_gone_afterwards(lm):
    before = list(lm.model.peft_config)
    assert check_zero(lm, prompts(lm, TEXT, "Answer:")) == 0.0
    assert list(lm.model.peft_config) == before
    assert divergence(lm, partial(arm, lm.model), "adapter_0", prompts(lm, TEXT)).kl[0] > 1e-3


def test_a_control_that_is_not_zero_stops_the_run(lm, monkeypatch):
    def not_zero(model):
        model.add_adapter("flagtrl_zero", model.peft_config["adapter_0"])
        for name, parameter in model.named_parameters():
            if "flagtrl_zero" in name and "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.1)
        return "flagtrl_zero"

    monkeypatch.setattr(measures, "add_zero_adapter", not_zero)
    with pytest.raises(AdapterError, match="do not trust"):
        check_zero(lm, prompts(lm, TEXT))


def test_the_control_works_beside_a_full_top_adapter(small_model, trained):
    model, tokenizer, (name,), _ = load_arms(str(small_model), [str(trained)], "cpu")
    full_top = PairedLM(model, tokenizer, 2)
    assert check_zero(full_top, prompts(full_top, TEXT)) == 0.0
    assert divergence(full_top, partial(arm, model), name, prompts(full_top, TEXT)).kl[0] > 0


def test_rows_of_everything_that_is_kept(lm):
    settings = RunRecord(
        prompt={"prompt_style": "compact", "news_token_budget": 8}, market={"lookback": 3}
    )
    trading = trading_prompts(lm, settings, 3)
    assert len(trading) == 3
    assert lm.tokenizer.decode(trading[0].ids).endswith('{"Action": "')
    asked = [
        Asked("a", TEXT + "\n\nQuestion: how much?\nAnswer:", " 5%"),
        Asked("b", "Question: when?\nAnswer:", " 2015"),
    ]
    rows, (said,) = retention(lm, ["adapter_0"], asked, {"text": [("a", TEXT)]}, trading)
    assert "exactly 0 on prompts: 2 of questions and 2 of trading" in said
    by = {(row.task, row.metric): row for row in rows}
    kl = by["retention_trading", "kl"]
    each = divergence(lm, partial(arm, lm.model), "adapter_0", trading)
    assert kl.difference.adapter == pytest.approx(each.kl.sum() / each.positions.sum())
    assert by["retention_questions", "kl_at_answer"].n == 2
    assert by["retention_text", "bits_per_byte"].difference.base == pytest.approx(
        _base_bits(lm) / len(TEXT.encode())
    )
    mass = by["retention_questions", "action_word_mass"].difference
    assert 0 < mass.base < 1 and np.isfinite(mass.p)
    assert all(not row.tested for row in rows if row.metric.startswith(("kl", "top1")))


def _base_bits(lm):
    with arm(lm.model, None):
        return float(text_bits(lm, [TEXT])[0])


def test_a_control_that_was_not_measured_is_not_claimed(lm, monkeypatch):
    monkeypatch.setattr(
        measures, "add_zero_adapter", lambda model: pytest.fail("there is nothing to measure it on")
    )
    rows, (said,) = retention(lm, ["adapter_0"], [], {"text": [("a", TEXT)]})
    assert [row.task for row in rows] == ["retention_text"]
    assert said.startswith("Control: not measured")


def test_a_reward_that_a_run_names_is_not_run(lm, tmp_path):
    """A run may be somebody else's."""
    code = tmp_path / "reward.py"
    code.write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n\n\ndef mine(history):\n    return 0.0\n"
    )
    settings = RunRecord(
        prompt={"prompt_style": "compact"}, market={"lookback": 3, "reward": f"{code}:mine"}
    )
    found, reason = module.trading_prompts_or_reason(lm, settings, 2, None, 0)
    assert found == [] and "code is run only if you name it" in reason
    assert not (tmp_path / "ran").exists()


def test_what_cannot_be_read_or_does_not_fit_is_named(lm, tmp_path):
    with pytest.raises(DataError, match="NAME=FILE"):
        read_texts([f"general={tmp_path / 'none.txt'}"])
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(DataError, match="empty"):
        read_texts([f"empty={tmp_path / 'empty.txt'}"])
    settings = RunRecord(prompt={"prompt_style": "paper"}, market={"lookback": 10})
    short = type("Short", (), {"tokenizer": lm.tokenizer, "max_length": 64})()
    with pytest.raises(PromptError, match="64"):
        trading_prompts(short, settings, 2)
    found, reason = module.trading_prompts_or_reason(short, settings, 2, None, 0)
    assert found == [] and "Not measured on trading prompts" in reason
