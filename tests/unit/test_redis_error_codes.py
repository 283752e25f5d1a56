"""What an error reply means is told by its code, wherever a version of the server puts it, and by no other word."""

from __future__ import annotations

import pytest
from redis._parsers.base import BaseParser

from ag06.errors import AG06Error, ConfigurationError, StoreError, StoreUnavailable
from ag06.persistence.log import StoreFull
from ag06.persistence.redis.client import GroupLost, explain, is_wrong_server

_OOM = "OOM command not allowed when used memory > 'maxmemory'."
_REPLICA = "READONLY You can't write against a read only replica."
_IN_SCRIPT_6 = "ERR Error running script (call to f_6b1bf486c81ceb7edf3c093f4c48582e38c0e791): @user_script:3: "


def meaning(reply: str) -> AG06Error:
    return explain(BaseParser.parse_error(reply), "redis://host")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (_OOM, StoreFull),
        (_REPLICA, StoreUnavailable),
        ("MISCONF Valkey is configured to save RDB snapshots, but cannot.", StoreUnavailable),
        ("NOREPLICAS Not enough good replicas to write.", StoreUnavailable),
        ("NOGROUP No such key 'k' or consumer group 'g'", GroupLost),
        ("NOPERM this user has no permissions to run the 'xadd' command", ConfigurationError),
    ],
    ids=lambda value: value.partition(" ")[0] if isinstance(value, str) else "",
)
def test_a_code_means_the_same_wherever_a_version_puts_it(code: str, expected: type[AG06Error]) -> None:
    replies = [code, f"{code} script: 6b1bf486, on @user_script:3.", f"{_IN_SCRIPT_6}@user_script: 3: {code}"]
    replies.append(f"{_IN_SCRIPT_6}@user_script: 3: -{code}")
    assert [type(meaning(reply)) for reply in replies] == [expected] * len(replies)


def test_a_command_that_a_user_may_not_run_in_a_script_is_a_refused_user() -> None:
    reply = "ERR ACL failure in script: No permissions to access a key script: on @user_script:1."
    assert type(meaning(reply)) is ConfigurationError


@pytest.mark.parametrize("word", ["OOM", "READONLY", "NOPERM", "NOAUTH", "NOGROUP", "LOADING", "UNBLOCKED", "UNFIT"])
def test_a_code_within_a_message_means_nothing(word: str) -> None:
    for reply in (f"ERR the key {word} is odd", f"WRONGTYPE Operation against {word} holding the wrong kind of value"):
        assert type(meaning(reply)) is StoreError
        assert not is_wrong_server(BaseParser.parse_error(reply))


def test_a_replica_is_another_server_in_every_form() -> None:
    for reply in (_REPLICA, f"{_IN_SCRIPT_6}-{_REPLICA}", "UNBLOCKED force unblock from blocking operation"):
        assert is_wrong_server(BaseParser.parse_error(reply))
