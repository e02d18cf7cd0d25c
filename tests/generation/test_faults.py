"""What endpoints do: each fault has its behaviour, its line, its number of requests, and loses nothing."""

import json
import os
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import httpx2
import pytest

import tutelage
from tests.generation.asking import generate, ledger_of, outcome, recipe, rows
from tests.instruments.endpoint import OK, Action, Endpoint, error
from tests.verbs.tiny_runs import call
from tutelage.errors import ConfigError, RemoteError
from tutelage.generation import endpoint as endpoints
from tutelage.generation import reply as replies
from tutelage.generation.batch import BatchClient
from tutelage.generation.client import Client, Stop
from tutelage.generation.endpoint import open_endpoint
from tutelage.generation.pace import MOST_WAIT_S, retry_after_s

PERMANENT = [
    (error(429, "insufficient_quota", "You exceeded your current quota"), "API_QUOTA"),
    (error(402, "", "Insufficient Balance"), "API_QUOTA"),
    (error(401, "invalid_api_key", "Incorrect API key"), "API_AUTH"),
    (error(403, "", "not allowed"), "API_AUTH"),
    (error(404, "model_not_found", "no such model"), "API_MODEL"),
    (error(400, "unsupported_parameter", "temperature is not supported"), "API_REQUEST"),
    (error(307, location="http://user:pass@127.0.0.1:1/v1"), "BASE_URL"),
]


@pytest.mark.parametrize(("action", "code"), PERMANENT, ids=[f"{a.status}-{c}" for a, c in PERMANENT])
def test_a_permanent_no_is_asked_once_and_costs_nothing(action, code, server, tmp_path):
    server.script = lambda n, body: OK if n else action
    failed = outcome(tmp_path, server.url, n=1)
    assert isinstance(failed, RemoteError) and failed.code == code
    assert len(server.seen) == 1 and ledger_of(tmp_path).settled == 0
    assert "user:pass" not in failed.message


def test_a_refused_parameter_is_named(server, tmp_path):
    server.script = lambda n, body: error(400, "unsupported_value", "'temperature' does not support 0.5")
    failed = outcome(tmp_path, server.url, n=1, temperature=0.5)
    assert isinstance(failed, RemoteError) and "leave out generate.temperature" in failed.message


def test_an_endpoint_that_wants_the_newer_name_of_the_limit_is_found_by_asking(server, tmp_path):
    old = error(400, "unsupported_parameter", "Unsupported parameter: use 'max_completion_tokens' instead")
    server.script = lambda n, body: old if "max_tokens" in body else OK
    made = generate(tmp_path, server.url, n=4)
    assert made.card.rows == 4 and server.n_billed == 4
    assert all(s.body.get("max_completion_tokens") == 20 for s in server.seen if s.action is OK)


@pytest.mark.parametrize(
    "action",
    [error(500), error(503), Action(how="reset"), Action(how="cut", billed=False), Action(how="hang", billed=False),
     Action(how="drip", billed=False)],
    ids=["500", "503", "reset", "cut", "hang", "drip"],
)  # fmt: skip
def test_a_fault_is_tried_again_so_often_and_then_stops_the_run(action, server, tmp_path):
    server.script = lambda n, body: action
    began = time.monotonic()
    failed = outcome(tmp_path, server.url, n=1, api={"retries": 1, "timeout_s": 0.1})
    assert time.monotonic() - began < 3
    assert isinstance(failed, RemoteError) and failed.code == "API_UNREACHABLE"
    assert len(server.seen) == 2 and "after 2 tries" in failed.message and "rerun to continue" in failed.message
    server.script = lambda n, body: OK
    assert generate(tmp_path, server.url, n=1).card.rows == 1


def test_nobody_there_is_said_in_one_line_and_before_all_tries_are_over(tmp_path, capsys):
    failed = outcome(tmp_path, "http://127.0.0.1:9/v1", n=1, api={"retries": 1})
    found = "127.0.0.1: ConnectError (nobody answers at 127.0.0.1:9; does the server run?)"
    assert isinstance(failed, RemoteError) and f"{found} after 2 tries" in failed.message
    assert capsys.readouterr().err.count(f"warning[API_UNREACHABLE]: {found}; trying again, up to 1 times") == 1
    assert ledger_of(tmp_path).settled == 0, "what was never sent is not paid"


def test_a_certificate_that_nobody_signed_stops_at_once():
    """What TLS says then, read without a server of its own: it would say it again."""
    client = Client(open_endpoint("https://127.0.0.1:1/v1", allow_private_host=True), timeout_s=1.0, limit_field=None)
    said = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1006)"
    found = client._failed(httpx2.ConnectError(said))
    assert isinstance(found, Stop) and "does not trust the certificate of 127.0.0.1" in found.error.message
    assert "self-signed" in found.error.message


@pytest.mark.parametrize("status", [201, 204])
def test_another_success_is_tried_again_and_counts_as_paid(status, server, tmp_path):
    server.script = lambda n, body: Action(status=status, body=None if status == 201 else b"")
    failed = outcome(tmp_path, server.url, n=1, api={"retries": 1})
    assert isinstance(failed, RemoteError) and f"127.0.0.1: {status} after 2 tries" in failed.message
    assert ledger_of(tmp_path).n_spent == 2


def test_one_request_that_always_fails_stops_the_run_only_after_the_others(server, tmp_path):
    server.script = lambda n, body: error(500) if "What is 2" in json.dumps(body) else OK
    failed = outcome(tmp_path, server.url, n=6, api={"retries": 2})
    assert isinstance(failed, RemoteError) and "5 of 6 answers are safe" in failed.message


def test_a_rate_limit_is_waited_for_and_is_no_fault(server, tmp_path):
    server.script = lambda n, body: error(429, "rate_limit", retry_after="0.01") if n < 8 else OK
    made = generate(tmp_path, server.url, n=3, api={"retries": 0})
    assert made.card.rows == 3 and made.card.requests == 3


@pytest.mark.parametrize(
    ("value", "milliseconds", "expected"),
    [("2", None, 2.0), ("0.5", None, 0.5), ("-5", None, 0.0), ("1e9", None, MOST_WAIT_S), ("nan", None, None),
     ("inf", None, MOST_WAIT_S), (None, "250", 0.25), ("7", "250", 0.25), (None, None, None), ("soon", None, None),
     (format_datetime(datetime.fromtimestamp(1030, UTC)), None, 30.0),
     (format_datetime(datetime.fromtimestamp(900, UTC)), None, 0.0)],
)  # fmt: skip
def test_retry_after_in_every_form(value, milliseconds, expected):
    assert retry_after_s(value, milliseconds=milliseconds, now_s=1000.0) == expected


# --- replies ---
def body(choice: object = None, **fields: object) -> bytes:
    choices = [{"message": {"content": "hello"}, "finish_reason": "stop"}] if choice is None else choice
    return json.dumps({"model": "m", "choices": choices, **fields}).encode()


def chat(finish: object = "stop", **message: object) -> bytes:
    return body([{"message": message, "finish_reason": finish}])


BODIES = [
    (chat(content="hello"), "answer"),
    (chat("length", content="hel"), "truncated"),
    (chat(None, content="hello"), "incomplete"),
    (body([{"message": {"content": "hello"}}]), "incomplete"),
    (chat("content_filter", content=""), "refused"),
    (chat(content=None, refusal="I cannot"), "refused"),
    (chat(content=None), "empty"),
    (chat(content=" \n "), "empty"),
    (chat(content=None, tool_calls=[{"id": "1"}]), "tool_call"),
    (chat(content=None, reasoning_content="hm"), "reasoning_only"),
    (chat(content="<think>hm</think>"), "reasoning_only"),
    (chat("length", content="<think>hm"), "truncated"),
    (body([]), "no_choice"),
    (chat(content="a\x00b"), "bad_text"),
    (b'{"choices": [{"message": {"content": "\\ud800"}, "finish_reason": "stop"}]}', "bad_text"),
    (b'{"error": {"message": "overloaded"}}', "error"),
    (b"<html>Sign in</html>", "bad_body"),
    (b"", "bad_body"),
    (b"\xff\xfe", "bad_body"),
    (b"[]", "bad_body"),
    (b'{"choices": {"a": 1}}', "bad_body"),
    (b'{"choices": [7]}', "bad_body"),
    (b'{"choices": [{"message": 7, "finish_reason": "stop"}]}', "bad_body"),
    (b"[" * 100_000, "bad_body"),
    (body([{"text": "rest", "finish_reason": "stop"}]), "answer"),
    (chat(content=[{"type": "text", "text": "in parts"}]), "answer"),
]


@pytest.mark.parametrize(("raw", "expected"), BODIES, ids=[f"{n}-{e}" for n, (_, e) in enumerate(BODIES)])
def test_every_body_has_one_outcome(raw, expected):
    assert replies.parse(raw).outcome == expected


def test_a_missing_finish_reason_is_an_answer_only_where_the_user_says_so():
    assert replies.parse(chat(None, content="x"), finish_reason_optional=True).outcome == "answer"


@pytest.mark.parametrize(
    ("content", "field", "expected"),
    [("4", "two and two", ("4", "two and two")), ("<think>\ntwo\n</think>\n\n4", None, ("4", "two")),
     ("two</think>4", None, ("4", "two")), ("a </think> in <think> text", None, ("a </think> in <think> text", "")),
     ("<think>never ends", None, ("", "never ends"))],
)  # fmt: skip
def test_reasoning_is_kept_apart(content, field, expected):
    message = {"content": content} | ({"reasoning_content": field} if field else {})
    reply = replies.parse(chat(**message))
    assert (reply.text, reply.reasoning) == expected


def test_reasoning_stands_in_its_own_column(server, tmp_path):
    server.script = lambda n, body: Action(text="4", message={"reasoning_content": "two and two"})
    generate(tmp_path, server.url, n=1)
    assert rows(tmp_path)[0]["messages"][-1]["content"] == "4" and rows(tmp_path)[0]["reasoning"] == "two and two"


def test_answers_cut_by_max_tokens_are_paid_once_kept_and_left_out(server, tmp_path, capsys):
    server.script = lambda n, body: Action(finish="length") if n in (2, 5) else OK
    made = generate(tmp_path, server.url, n=10, api={"concurrency": 1})
    assert made.card.rows == 8 and {d.step: d.n for d in made.card.dropped} == {"no_answer": 0, "complete": 2}
    generate(tmp_path, server.url, n=10)
    assert len(server.seen) == 10
    assert "warning[TRUNCATED_ANSWERS]: 2 of 10 answers hit max_tokens=20; left out" in capsys.readouterr().err
    assert generate(tmp_path, server.url, n=10, select=[{"complete": False}]).card.rows == 10
    assert len(server.seen) == 10


def test_replies_without_finish_reason_are_asked_again_and_in_the_end_left_out(server, tmp_path, capsys):
    server.script = lambda n, body: Action(finish=None) if "What is 1" in json.dumps(body) else OK
    made = generate(tmp_path, server.url, n=3, api={"retries": 2})
    assert made.card.rows == 2 and len(server.seen) == 5 and made.card.outcomes["incomplete"] == 1
    assert "warning[API_INCOMPLETE]: 3 replies had no finish_reason" in capsys.readouterr().err


def test_html_with_status_200_is_journalled_paid_and_stops_the_run(server, tmp_path):
    server.script = lambda n, body: Action(body=b"<html>Sign in</html>")
    failed = outcome(tmp_path, server.url, n=1, api={"retries": 1})
    assert isinstance(failed, RemoteError) and failed.code == "API_BODY" and "starts '<html>" in failed.message
    assert ledger_of(tmp_path).n_spent == 2 == len(server.seen)
    assert (tmp_path / "answers" / "journal.jnl").read_bytes().count(b"<html>Sign in") == 2


def test_a_prompt_that_does_not_fit_is_left_out_and_the_others_go_on(server, tmp_path):
    long = error(400, "context_length_exceeded", "maximum context length is 10 tokens")
    server.script = lambda n, body: long if "What is 1" in json.dumps(body) else OK
    made = generate(tmp_path, server.url, n=3)
    assert made.card.rows == 2 and made.card.outcomes == {"answer": 2, "too_long": 1} and made.card.requests == 2


def test_a_reply_without_end_is_cut_off(server, tmp_path, monkeypatch):
    from tutelage.generation import client

    monkeypatch.setattr(client, "MOST_BYTES", 1000)
    server.script = lambda n, body: Action(body=b"x" * 5000)
    failed = outcome(tmp_path, server.url, n=1, api={"retries": 0})
    assert isinstance(failed, RemoteError) and "too large after 1 tries" in failed.message


# --- keys and addresses ---
CANARY = "sk-canary0123456789canary0123456789"


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "action",
    [OK, error(401, "invalid", f"Incorrect API key provided: {CANARY}"), error(500, "x", CANARY),
     error(400, CANARY, CANARY), Action(body=CANARY.encode()), Action(text=f"your key is {CANARY}"),
     error(307, location=f"http://{CANARY}@127.0.0.1:1/"), Action(how="reset")],
    ids=["ok", "401", "500", "400", "body", "text", "redirect", "reset"],
)  # fmt: skip
def test_the_key_is_sent_and_stands_in_no_byte_that_we_write(action, server, tmp_path, monkeypatch):
    monkeypatch.setenv("TUTELAGE_KEY__127_0_0_1", f" {CANARY}\n")
    server.script = lambda n, body: action
    import yaml

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path, server.url, n=1, api={"retries": 0})))
    said = [call("generate", path, "--debug"), call("generate", path, "--json"), call("status", path, "--debug")]
    assert server.seen[0].headers["authorization"] == f"Bearer {CANARY}"
    assert CANARY.encode() not in everything_in(tmp_path)
    assert not [s for s in said if CANARY in str(s)]


def test_nothing_arrives_where_a_redirect_points(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TUTELAGE_KEY__127_0_0_1", CANARY)
    with Endpoint() as target:
        server.script = lambda n, body: error(302, location=f"{target.url}/chat/completions")
        failed = outcome(tmp_path, server.url, n=1)
        assert isinstance(failed, RemoteError) and failed.code == "BASE_URL" and target.seen == []


@pytest.mark.parametrize(
    ("url", "code"),
    [("http://10.0.0.7/v1", "BASE_URL"), ("https://10.0.0.7/v1", "BASE_URL"), ("http://example.com/v1", "BASE_URL"),
     ("https://169.254.169.254/v1", "BASE_URL"), ("http://[::ffff:169.254.169.254]/", "BASE_URL"),
     ("https://2852039166/v1", "BASE_URL"), ("https://0xa9fea9fe/", "BASE_URL"), ("https://10.7/v1", "BASE_URL"),
     ("file:///etc/passwd", "BASE_URL"), ("https://user:pass@example.com/v1", "KEY_IN_CONFIG"),
     ("https://example.com/v1?a=b", "BASE_URL"), ("https:///v1", "BASE_URL"), ("http://127.0.0.1:port/", "BASE_URL")],
)  # fmt: skip
def test_an_address_that_is_not_allowed_is_refused_before_anything_is_sent(url, code, tmp_path):
    failed = outcome(tmp_path, url, n=1)
    assert isinstance(failed, ConfigError) and failed.code == code and "pass@" not in failed.message


@pytest.mark.parametrize("key", ["two words", 'a"b', "a'b", "tab\tin", "sch\u00f6n"])
def test_a_key_that_is_none_is_refused_without_showing_it(key, server, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", key)
    failed = outcome(tmp_path, server.url, n=1, api={"key_env": "MY_KEY"})
    assert isinstance(failed, ConfigError) and failed.code == "API_KEY" and key not in failed.message
    assert server.seen == []


def test_a_recipe_cannot_send_the_key_of_one_provider_to_another(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    failed = outcome(tmp_path, server.url, n=1, api={"key_env": "OPENAI_API_KEY"})
    assert isinstance(failed, ConfigError) and "is the key of api.openai.com" in failed.message and server.seen == []


def test_a_key_file_is_read_and_one_that_others_can_read_is_warned_of(server, tmp_path, capsys):
    path = tmp_path / "key"
    path.write_text(f"{CANARY}\n")
    for mode, warned in ((0o600, False), (0o644, True)):
        os.chmod(path, mode)
        generate(
            tmp_path, server.url, n=1, max_tokens=20 + warned, api={"key_file": str(path), "key_header": "api-key"}
        )
        assert server.seen[-1].headers["api-key"] == CANARY and "authorization" not in server.seen[-1].headers
        assert ("warning[PERM]" in capsys.readouterr().err) is warned


def test_the_environment_adds_no_proxy(server, tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert generate(tmp_path, server.url, n=1).card.rows == 1


def test_a_private_host_is_asked_where_it_is_allowed_and_a_link_local_one_never():
    assert open_endpoint("http://10.0.0.7/v1", allow_private_host=True).host == "10.0.0.7"
    assert open_endpoint("http://127.1/v1").is_loopback
    for host in ("169.254.169.254", "2852039166", "0251.0376.0251.0376", "[fe80::1]", "[::ffff:a9fe:a9fe]", "0.0.0.0"):
        with pytest.raises(ConfigError, match="it is never asked") as caught:
            open_endpoint(f"http://{host}/v1", allow_private_host=True)
        assert caught.value.code == "BASE_URL"


def test_neither_the_environment_nor_the_working_directory_names_another_address_or_key(server, tmp_path, monkeypatch):
    with Endpoint() as other:
        found = {"OPENAI_BASE_URL": other.url, "OPENAI_API_BASE": other.url, "OPENAI_API_KEY": CANARY}
        for name, value in found.items():
            monkeypatch.setenv(name, value)
        theirs = {**found, "TUTELAGE_KEY__127_0_0_1": CANARY}
        (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in theirs.items()))
        (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login x password {CANARY}\n")
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        monkeypatch.chdir(tmp_path)
        assert generate(tmp_path, server.url, n=1).card.rows == 1
        assert other.seen == [] and len(server.seen) == 1 and CANARY not in str(server.seen[0].headers)


def test_one_variable_never_gives_its_key_to_two_hosts(tmp_path):
    hosts = ("a-b.example.com", "a.b.example.com")
    made = recipe(tmp_path, "https://a-b.example.com/v1", n=1)
    made["teacher"] = {"answers": made["teacher"]["answers"],
                       "writers": {f"w{i}": {"api": {"base_url": f"https://{host}/v1", "model": "m"}}
                                   for i, host in enumerate(hosts)}}  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"TUTELAGE_KEY__a_b_example_com is the name of the key for a-b.* and for a\.b"
    ):
        tutelage.generate(made)


def test_a_name_that_leads_to_a_special_address_is_never_asked(server, tmp_path, monkeypatch):
    """127.0.0.1 stands for such an address here; what counts is the one that the name led to."""
    monkeypatch.setattr(endpoints, "_is_special", lambda host: host == "127.0.0.1")
    failed = outcome(tmp_path, server.url.replace("127.0.0.1", "localhost"), n=1)
    assert isinstance(failed, ConfigError) and "localhost leads to 127.0.0.1, a link-local" in failed.message
    assert not server.seen and ledger_of(tmp_path).settled == 0
    named = open_endpoint(server.url.replace("127.0.0.1", "localhost"))
    with (
        BatchClient(named, timeout_s=5.0, sleep=lambda _: None) as batch,
        pytest.raises(ConfigError, match="localhost leads to 127.0.0.1"),
    ):
        batch.look("job-1")
    assert not server.seen


@pytest.mark.parametrize("value", ["é", " a", "a\n", "a\tb"])
def test_a_header_that_cannot_be_sent_is_named_before_anything_is(value):
    with pytest.raises(ConfigError, match=r"headers: the value of 'X-Name' is not made of printable ASCII"):
        open_endpoint("http://127.0.0.1:1/v1", headers={"X-Name": value}, allow_private_host=True)


def test_headers_query_and_body_of_the_recipe_are_sent(server, tmp_path):
    api = {"headers": {"X-Team": "a"}, "query": {"api-version": "7"}, "body": {"reasoning_effort": "low"}}
    generate(tmp_path, server.url, n=1, api=api)
    (seen,) = server.seen
    assert seen.path == "/v1/chat/completions?api-version=7" and seen.headers["x-team"] == "a"
    assert seen.body["reasoning_effort"] == "low"
