import asyncio
from pathlib import Path

import pytest

from realestate.pairing_codes import ALPHABET, pseudonym
from support.backend import AUTHORIZED, TOKEN, InProcess, environment, in_process, refusal
from support.postgres import DatabaseUrls
from watchkeeper.settings import Secret


async def request_code(backend: InProcess, peer: str = "42") -> str:
    """Request a code for a peer of telegram."""
    answer = await backend.pair("telegram", "request", peer_id=peer)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["code"])


async def confirm(backend: InProcess, code: str, peer: str = "42") -> tuple[int, str]:
    """Confirm a code, and return the status and the error code or status name."""
    answer = await backend.pair("telegram", "confirm", peer_id=peer, code=code)
    body = answer.json()
    return answer.status_code, body["status"] if answer.is_success else body["error"]["code"]


def other_than(code: str) -> str:
    """Return another code."""
    return ("A" if code[0] != "A" else "B") + code[1:]


async def failures(backend: InProcess) -> float | None:
    """Return `pairing_failures_total` of telegram."""
    return (await backend.scrape()).get("pairing_failures_total", channel="telegram")


async def test_code_is_shown_once_and_stored_as_a_hash(backend: InProcess) -> None:
    """The database does not reveal the code."""
    answer = await backend.pair("telegram", "request", peer_id="42")
    code = answer.json()["code"]
    assert len(code) == 8
    assert set(code) <= set(ALPHABET)
    assert answer.json()["channel"] == "telegram"
    [stored] = await backend.rows("SELECT *, expires_at - requested_at AS valid_for FROM pairing")
    assert code not in str(stored)
    assert 599 < stored["valid_for"].total_seconds() < 601
    [entry] = await backend.entries("pairing.requested")
    assert (entry["actor_type"], entry["entity"]) == ("agent", "pairing")
    assert code not in str(entry)


async def test_audit_log_names_no_peer(backend: InProcess) -> None:
    """It has a stable pseudonym for each peer, and never the peer's id."""
    peer, stranger = "+250788123456", "+250788654321"
    code = await request_code(backend, peer)
    await confirm(backend, other_than(code), peer)
    await confirm(backend, code, peer)
    await confirm(backend, code, stranger)
    for _ in range(5):
        await confirm(backend, other_than(code), peer)
    assert (await backend.pair("telegram", "request", peer_id=peer)).status_code == 429
    entries = await backend.rows("SELECT * FROM audit_log WHERE entity = 'pairing' ORDER BY id")
    name, other = (pseudonym(Secret(TOKEN), "telegram", one) for one in (peer, stranger))
    assert [entry["entity_id"] for entry in entries] == [name] * 3 + [other] + [name] * 6
    assert peer not in str(entries)
    assert stranger not in str(entries)


async def test_right_code_approves_and_is_audited(backend: InProcess) -> None:
    """The peer is paired; no failure is counted."""
    code = await request_code(backend)
    assert await confirm(backend, f"{code[:4]}-{code[4:]}".lower()) == (200, "approved")
    [stored] = await backend.rows("SELECT approved_at FROM pairing")
    assert stored["approved_at"] is not None
    assert len(await backend.entries("pairing.approved")) == 1
    assert await failures(backend) == 0


async def test_confirming_again_is_the_same_approval(backend: InProcess) -> None:
    """A repeat after a lost response returns the first approval's time."""
    code = await request_code(backend)
    answers = [await backend.pair("telegram", "confirm", peer_id="42", code=code) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()


async def test_wrong_code_is_403_counted_and_audited(backend: InProcess) -> None:
    """It is a failure of its channel."""
    code = await request_code(backend)
    assert await confirm(backend, other_than(code)) == (403, "wrong_code")
    assert await failures(backend) == 1
    [entry] = await backend.entries("pairing.refused")
    assert entry["payload"] == {"reason": "wrong"}
    assert await confirm(backend, code) == (200, "approved")


async def test_peer_that_never_asked_gets_the_same_answer(backend: InProcess) -> None:
    """Guesses at a peer without a code count, are audited, and reveal nothing."""
    code = await request_code(backend, "known")
    unknown = await backend.pair("telegram", "confirm", peer_id="unknown", code=code)
    known = await backend.pair("telegram", "confirm", peer_id="known", code=other_than(code))
    for answer in (unknown, known):
        answer.json()["error"].pop("requestId")
    assert unknown.status_code == known.status_code == 403
    assert unknown.json()["error"]["message"] == known.json()["error"]["message"]
    assert await failures(backend) == 2
    assert len(await backend.entries("pairing.refused")) == 2


async def test_expired_code_is_410_and_counts(backend: InProcess) -> None:
    """After ten minutes the code is not valid."""
    code = await request_code(backend)
    await backend.rows("UPDATE pairing SET expires_at = now()")
    assert await confirm(backend, code) == (410, "code_expired")
    assert await failures(backend) == 1
    [entry] = await backend.entries("pairing.refused")
    assert entry["payload"] == {"reason": "expired"}


async def test_new_code_voids_the_one_before(backend: InProcess) -> None:
    """Only the last code of a peer is valid."""
    first, second = await request_code(backend), await request_code(backend)
    assert await confirm(backend, first) == (403, "wrong_code")
    assert await confirm(backend, second) == (200, "approved")


async def test_five_wrong_codes_lock_the_peer_out(backend: InProcess) -> None:
    """The right code is then refused, and no new one is issued, until the lock-out ends."""
    code = await request_code(backend)
    for _ in range(5):
        assert await confirm(backend, other_than(code)) == (403, "wrong_code")
    assert await confirm(backend, code) == (429, "pairing_locked")
    refused = await backend.pair("telegram", "request", peer_id="42")
    assert refused.status_code == 429
    assert 880 < int(refused.headers["Retry-After"]) <= 900
    assert await failures(backend) == 7
    await backend.rows("UPDATE pairing SET locked_until = now(), last_attempt_at = now() - interval '15 min'")
    assert await confirm(backend, await request_code(backend)) == (200, "approved")


async def test_new_code_does_not_reset_the_wrong_attempts(backend: InProcess) -> None:
    """Requesting codes between the guesses does not avoid the lock-out."""
    for _ in range(5):
        assert await confirm(backend, other_than(await request_code(backend))) == (403, "wrong_code")
    assert (await backend.pair("telegram", "request", peer_id="42")).status_code == 429


async def test_concurrent_attempts_are_all_counted(backend: InProcess) -> None:
    """Concurrent guesses get five tries, not more."""
    code = await request_code(backend)
    outcomes = await asyncio.gather(*(confirm(backend, other_than(code)) for _ in range(30)))
    assert sorted(outcomes) == [(403, "wrong_code")] * 5 + [(429, "pairing_locked")] * 25
    assert await failures(backend) == 30
    [stored] = await backend.rows("SELECT attempts FROM pairing")
    assert stored["attempts"] == 5


async def test_lock_out_concerns_one_peer(backend: InProcess) -> None:
    """Others of the channel are not affected."""
    code = await request_code(backend)
    for _ in range(5):
        await confirm(backend, other_than(code))
    assert await confirm(backend, await request_code(backend, "43"), "43") == (200, "approved")


async def test_concurrent_requests_leave_one_valid_code(backend: InProcess) -> None:
    """Of the codes of one moment exactly one is valid."""
    codes = await asyncio.gather(*(request_code(backend) for _ in range(4)))
    outcomes = [(await confirm(backend, code))[0] for code in codes]
    assert sorted(outcomes) == [200, 403, 403, 403]


async def test_approval_is_rolled_back_if_its_audit_entry_fails(backend: InProcess) -> None:
    """There is no approval without an entry."""
    code = await request_code(backend)
    await backend.refuse_audit("action <> 'pairing.approved'")
    assert await confirm(backend, code) == (500, "internal_error")
    [stored] = await backend.rows("SELECT approved_at FROM pairing")
    assert stored["approved_at"] is None


@pytest.mark.parametrize("step", ["request", "confirm"])
async def test_unknown_channel_is_404_without_a_series(backend: InProcess, step: str) -> None:
    """A channel that does not exist makes no series."""
    answer = await backend.pair("fax", step, peer_id="42", **({"code": "x"} if step == "confirm" else {}))
    assert refusal(answer) == (404, "unknown_channel")
    assert (await backend.scrape()).get("pairing_failures_total", channel="fax") is None


@pytest.mark.parametrize("step", ["request", "confirm"])
async def test_pairing_needs_the_token(backend: InProcess, step: str) -> None:
    """A request without it is no failed attempt."""
    body = {"peer_id": "42", "code": "ABCD2345"} if step == "confirm" else {"peer_id": "42"}
    answer = await backend.client.post(f"/api/pairing/telegram/{step}", json=body)
    assert answer.status_code == 401
    assert await failures(backend) == 0


async def test_malformed_attempt_is_400_and_no_failure(backend: InProcess) -> None:
    """It does not count, so it raises no alert."""
    for body in [
        b"",
        b"{",
        b"{}",
        b'{"peer_id":42,"code":"x"}',
        b'{"peer_id":"","code":"x"}',
        b'{"peer_id":"a\\u0000","code":"x"}',
        b'{"peer_id":"a\\nb","code":"x"}',
        b'{"peer_id":"42","code":""}',
        b'{"peer_id":"42","code":"x","more":1}',
    ]:
        url = "/api/pairing/telegram/confirm"
        answer = await backend.client.post(url, content=body, headers=AUTHORIZED)
        assert answer.status_code == 400, body
    assert await failures(backend) == 0


async def test_code_may_hold_any_character(backend: InProcess) -> None:
    """A guess with characters that no code has is a wrong code."""
    await request_code(backend)
    assert await confirm(backend, "\0\n\u2600 ''") == (403, "wrong_code")


async def test_another_token_voids_pending_codes(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    """The key of the hash is derived from the token."""
    async with in_process(environment(database_urls, tmp_path), database_urls) as backend:
        code = await request_code(backend)
    environ = environment(database_urls, tmp_path, SERVICE_TOKEN="rotated")
    async with in_process(environ, database_urls) as backend:
        answer = await backend.client.post(
            "/api/pairing/telegram/confirm",
            json={"peer_id": "42", "code": code},
            headers={"Authorization": "Bearer rotated"},
        )
        assert answer.status_code == 403
