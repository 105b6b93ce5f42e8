"""Who may use which model, as HTTP shows it, and what the log says of it."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
import pytest

from support.serving import Model, serving, write_keys

BODY = {"model": "tiny", "prompt": "x"}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_without_a_known_key_everything_but_health_is_401(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", {"alice": "sk-alice\n"})
    async with (
        serving(Model(keys=keys)) as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        assert (await http.get("/health")).status_code == 200
        wrong: list[dict[str, str]] = [{}, bearer("sk-alicf"), {"authorization": "Bearer"}]
        wrong.append({"authorization": "Basic c2stYWxpY2U="})
        for headers in (*wrong, {"x-api-key": "sk-alice"}, bearer("sk-alice x")):
            for method, path in (
                ("GET", "/v1/models"),
                ("POST", "/v1/completions"),
                ("POST", "/v1/chat/completions"),
                ("POST", "/tokenize"),
                ("GET", "/nothing"),
            ):
                answer = await http.request(method, path, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert answer.headers["x-servewright-revision"] == "rev-1"
                assert answer.json()["error"]["type"] == "authentication_error"
        for scheme in ("Bearer", "bearer", "BEARER"):
            headers = {"authorization": f"{scheme} sk-alice"}
            answer = await http.post("/v1/completions", json=BODY, headers=headers)
            assert answer.status_code == 200


async def test_a_stranger_cannot_make_the_server_read_a_body(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", {"alice": "sk-alice"})
    async with (
        serving(Model(keys=keys)) as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        answer = await http.post("/v1/completions", content=b" " * 5_000_000)
        assert answer.status_code == 401
        assert answer.headers["connection"] == "close"


async def test_a_changed_key_works_within_seconds_and_the_old_one_no_more(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", {"alice": "old"})
    async with (
        serving(Model(keys=keys)) as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):

        async def status(key: str) -> int:
            answer = await http.post("/v1/completions", json=BODY, headers=bearer(key))
            return answer.status_code

        assert await status("old") == 200
        (keys / "alice").write_text("newer")
        folder = server.models["tiny"].keys
        assert folder is not None
        folder._looked_at = float("-inf")  # a second has passed
        assert await status("old") == 401
        assert await status("newer") == 200


async def test_each_model_has_its_own_keys(tmp_path: Path) -> None:
    first = write_keys(tmp_path / "first", {"alice": "a"})
    second = write_keys(tmp_path / "second", {"bob": "b"})
    models = (Model(keys=first), Model(name="second", keys=second), Model(name="open"))
    async with serving(*models) as server, httpx.AsyncClient(base_url=server.url) as http:

        async def ask(model: str, headers: dict[str, str]) -> int:
            body = {"model": model, "prompt": "x"}
            return (await http.post("/v1/completions", json=body, headers=headers)).status_code

        assert await ask("tiny", bearer("a")) == 200
        assert await ask("second", bearer("a")) == 404  # as if it did not exist
        assert await ask("second", bearer("b")) == 200
        assert await ask("open", bearer("b")) == 200
        assert await ask("open", {}) == 200
        assert await ask("tiny", {}) == 401
        assert await ask("tiny", bearer("c")) == 401  # a mistyped key is told as one
        assert await ask("open", bearer("c")) == 200
        for headers, names in (
            ({}, ["open"]),
            (bearer("a"), ["tiny", "open"]),
            (bearer("b"), ["second", "open"]),
            (bearer("c"), ["open"]),
        ):
            answer = await http.get("/v1/models", headers=headers)
            assert [model["id"] for model in answer.json()["data"]] == names
            missing = await http.get("/v1/models/nobody", headers=headers)
            assert missing.status_code == 404


async def test_the_access_log_has_one_line_a_request_and_no_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="servewright.access")
    keys = write_keys(tmp_path / "keys", {"alice": "sk-secret"})
    async with (
        serving(Model(keys=keys)) as server,
        httpx.AsyncClient(base_url=server.url, headers=bearer("sk-secret")) as http,
    ):
        body = {"model": "tiny", "prompt": "my private prompt", "max_tokens": 4}
        await http.post("/v1/completions", json=body, headers={"x-request-id": "r-1"})
        await http.post("/v1/completions", json={**body, "top_p": 7})
        await http.post("/v1/completions", json=body, headers=bearer("wrong-secret"))
        await http.get("/private/path")
        await http.get("/health")
    lines = [vars(r) for r in caplog.records if r.name == "servewright.access"]
    assert [line["status"] for line in lines] == [200, 400, 401, 404]
    done, refused, stranger, lost = lines
    assert done["request_id"] == "r-1"
    assert (done["model"], done["key"], done["path"]) == ("tiny", "alice", "/v1/completions")
    assert (done["prompt_tokens"], done["completion_tokens"]) == (17, 4)
    assert done["queue_s"] >= 0
    assert done["seconds"] > 0
    assert refused["error"] == "invalid_value"
    assert stranger["error"] == "invalid_api_key"
    assert "key" not in stranger
    assert lost["path"] == "/private/path"
    for record in caplog.records:
        assert "secret" not in str(vars(record))
        assert "private prompt" not in str(vars(record))
