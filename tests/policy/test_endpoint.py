"""A model behind an endpoint: what is sent, what is kept, and what an answer that does not come
costs. A server of this machine stands for it.
"""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from answering_server import GOOD, Server
from flagtrl.errors import ConfigError, EndpointError
from flagtrl.evidence.backtest import backtest
from flagtrl.language.settings import PromptSettings
from flagtrl.market.env import MarketSettings
from flagtrl.market.synthetic import news_leads_price
from flagtrl.policy.answers import Answers, answering
from flagtrl.policy.endpoint import TRIES, Asking, Endpoint

MARKET = news_leads_price(12, seed=3)
SETTINGS = MarketSettings(reward="log_return", lookback=3)
PROMPTS = PromptSettings(prompt_style="markov", news_token_budget=16)


def asking(server, folder, waits=None, **more):
    sleep = [].append if waits is None else waits.append
    return Asking(Endpoint(server.url, "a-model", **more), PROMPTS, folder, sleep)


def traded(ask, answers=None):
    return backtest(answering(ask, answers or Answers()), MARKET.window(), SETTINGS)


def test_every_day_is_asked_once_and_then_known(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with Server((200, GOOD, {})) as server:
        ask, answers = asking(server, tmp_path), Answers()
        first = traded(ask, answers)
        assert ask.made.sent == len(server.got) == 11 and answers.asked == 11
        path, headers, content = server.got[0]
        assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
        assert content["model"] == "a-model" and content["temperature"] == 0.0
        (message,) = content["messages"]
        assert message["role"] == "user" and "Buy, Sell or Hold?" in message["content"]
        kept = "".join(path.read_text() for path in tmp_path.iterdir())
        assert "secret" not in kept
        again = asking(server, tmp_path)
        second = traded(again)
        assert again.made.sent == 0 and again.made.cached == 11 and len(server.got) == 11
        assert first.values.tolist() == second.values.tolist()
        other = Asking(Endpoint(server.url, "another"), PROMPTS, tmp_path)
        traded(other)
        assert other.made.cached == 0, "another model's answers are not its own"


def test_a_request_that_fails_in_passing_is_made_again_and_counted(tmp_path):
    busy, broken = (429, {"error": "slow down"}, {"Retry-After": "7"}), (503, b"down", {})
    waits = []
    with Server(busy, broken, busy, (200, GOOD, {})) as server:
        ask = asking(server, tmp_path, waits)
        traded(ask)
    assert (ask.made.rate_limited, ask.made.failed, ask.made.timeouts) == (2, 1, 0)
    assert ask.made.sent == 14 and waits == [7.0, 2.0, 7.0]


def test_one_that_never_answers_stops_in_one_line_and_keeps_what_was_answered(tmp_path):
    good = [(200, GOOD, {})] * 3
    with Server(*good, (500, b"<html>no</html>", {})) as server:
        waits = []
        ask = asking(server, tmp_path, waits)
        with pytest.raises(EndpointError, match=r"in 5 tries \(HTTP 500: .*3 answers so far are"):
            traded(ask)
        assert len(waits) == TRIES - 1 and waits == [1, 2, 4, 8]
        server.replies = [(200, GOOD, {})]
        again = asking(server, tmp_path)
        traded(again)
        assert again.made.cached == 3, "the same command goes on"


def test_nobody_there_and_nobody_in_time(tmp_path):
    with Server((200, GOOD, {})) as server:
        pass
    gone = asking(server, tmp_path)
    with pytest.raises(EndpointError, match="did not answer in 5 tries"):
        traded(gone)
    assert gone.made.timeouts == TRIES
    silent = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # accepts, says nothing
    try:
        url = f"http://127.0.0.1:{silent.server_port}"
        late = Asking(Endpoint(url, "m", timeout_s=0.05), PROMPTS, tmp_path, lambda s: None)
        with pytest.raises(EndpointError, match="the 0 answers so far are kept"):
            traded(late)
    finally:
        silent.server_close()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((401, b"no key", {}), r"refuses the request \(HTTP 401: no key\); set OPENAI_API_KEY"),
        ((404, b"no such model", {}), r"refuses the request \(HTTP 404: no such model\)"),
        ((200, b"<html>", {}), r"answers with no chat completion .*up to /v1"),
        ((200, {"choices": []}, {}), "answers with no chat completion"),
        ((200, {"choices": [{"message": {"content": None}}]}, {}), "in 512 tokens; raise --max_t"),
        ((200, {"choices": [{**GOOD["choices"][0], "finish_reason": "length"}]}, {}), "--max_tok"),
        ((200, [1], {}), "answers with no chat completion"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(tmp_path, reply, said):
    with Server(reply) as server:
        ask = asking(server, tmp_path)
        with pytest.raises(EndpointError, match=said):
            traded(ask)
        assert len(server.got) == 1


def test_an_answer_of_nothing_is_unreadable_and_not_hold(tmp_path):
    with Server((200, {"choices": [{"message": {"content": ""}}]}, {})) as server:
        answers = Answers()
        traded(asking(server, tmp_path), answers)
    assert answers.unreadable == answers.asked == 11


def test_settings_and_a_damaged_cache_are_refused(tmp_path):
    for url, model, time_s, said in (
        ("localhost", "m", 1, "give an address"),
        ("http://x", "", 1, "endpoint_model is empty"),
        ("http://x", "m", 0, "must be above 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            Endpoint(url, model, time_s)
    with pytest.raises(ConfigError, match="max_tokens is 0; it must be at least 1"):
        Endpoint("http://x", "m", max_tokens=0)
    ask = Asking(Endpoint("http://x/v1", "m"), PROMPTS, tmp_path)
    ask._write("a", "b")
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    path.write_text(whole + '{"question": "c", "ans')  # killed as it wrote
    again = Asking(Endpoint("http://x/v1", "m"), PROMPTS, tmp_path)
    assert again._known == {"a": "b"}
    again._write("d", "e")
    assert Asking(Endpoint("http://x/v1", "m"), PROMPTS, tmp_path)._known == {"a": "b", "d": "e"}
    path.write_text(whole + "x\n")
    with pytest.raises(EndpointError, match=r"is damaged \(.*line 2.*\); mend it"):
        Asking(Endpoint("http://x/v1", "m"), PROMPTS, tmp_path)


@pytest.mark.parametrize("url", ["http://", "http://[bad/v1"])
def test_what_cannot_be_sent_is_one_line_without_the_key(tmp_path, monkeypatch, url):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sec\nret")
    ask = Asking(Endpoint(url, "m"), PROMPTS, tmp_path, lambda s: None)
    with pytest.raises(EndpointError, match="cannot be sent") as error:
        traded(ask)
    assert "sec" not in str(error.value) and error.value.__suppress_context__
    good = Asking(Endpoint("http://127.0.0.1:9/v1", "m"), PROMPTS, tmp_path, lambda s: None)
    with pytest.raises(EndpointError, match=r"cannot be sent .*OPENAI_API_KEY"):
        traded(good)
