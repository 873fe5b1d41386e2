"""Connection strings and the wording of errors, without a server."""

import pytest
from psycopg import conninfo

from icelake.errors import Gap, IcelakeError, ProjectError, Refused, Unreachable
from icelake.sources.postgres.session import address, conninfo_of, explain_state
from icelake.sources.postgres.types import SESSION


def test_the_settings_are_ours_whatever_the_string_says() -> None:
    text = conninfo_of("postgresql://u:p@h/d?application_name=x&connect_timeout=3&options=-c%20work_mem%3D1MB", options="-c a=b")
    settings = conninfo.conninfo_to_dict(text)
    assert settings["application_name"] == "icelake"
    assert settings["connect_timeout"] in {3, "3"}
    options = str(settings["options"])
    assert options.startswith("-c work_mem=1MB -c ")
    assert options.endswith("-c a=b")
    for name, value in SESSION.items():
        assert f"-c {name}={value}".replace(", ", ",\\ ") in options


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:pa@ss@h/d",
        "words without sense",
        "postgresql://u:p@h:x y/d",
        "dbname='open",
        # To libpq the first of these has no user: it is host u, port pa, database zzy@h:1/d.
        "postgresql://u:pa/zzy@h:1/d",
        "postgres://u:12/zzy@h",
        "postgresql://u:pa?x/zzy@h/d",
    ],
)
def test_a_bad_string_is_never_shown(dsn: str) -> None:
    with pytest.raises(ProjectError, match="BAD_DSN") as caught:
        conninfo_of(dsn)
    assert dsn not in str(caught.value)
    assert "zzy" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__cause__ is None


@pytest.mark.parametrize(
    "dsn",
    ["postgresql://u:p@h/d", "postgresql://u:a%2Fb%40c@h:1/d?sslmode=require", "postgresql:///d?host=/run/x@y", "host=h password=a/b@c@d"],
)
def test_a_good_string_is_let_pass(dsn: str) -> None:
    assert conninfo_of(dsn)


def test_an_address_holds_no_password() -> None:
    assert address("postgresql://u:p@h:77/d") == "u@h:77/d"
    assert address("host=/run/pg user=u password=p dbname=d") == "u@/run/pg:5432/d"


@pytest.mark.parametrize(
    ("state", "said", "code", "kind"),
    [
        ("28P01", 'password authentication failed for user "u"', "AUTHENTICATION_FAILED", Refused),
        ("28000", 'no pg_hba.conf entry for replication connection from host "h"', "CONNECTION_REFUSED_BY_SERVER", Refused),
        ("42501", "permission denied to use replication slots", "NO_REPLICATION_PRIVILEGE", Refused),
        ("42501", "permission denied for table a", "PERMISSION_DENIED", Refused),
        ("53300", 'number of requested standby connections exceeds "max_wal_senders" (currently 0)', "NO_FREE_WALSENDER", Unreachable),
        ("53300", "sorry, too many clients already", "SOURCE_UNREACHABLE", Unreachable),
        ("53400", "all replication slots are in use", "NO_FREE_SLOT", Unreachable),
        ("55000", 'logical decoding requires "wal_level" >= "logical"', "WAL_LEVEL", Refused),
        ("55000", 'can no longer access replication slot "s"', "SLOT_LOST", Gap),
        ("58P01", "requested WAL segment 000000010000000000000001 has already been removed", "SLOT_LOST", Gap),
        ("55P03", "canceling statement due to lock timeout", "LOCKED", Unreachable),
        ("57P01", "terminating connection due to administrator command", "SOURCE_UNREACHABLE", Unreachable),
        ("42P01", 'relation "a" does not exist', "SOURCE_ERROR", Refused),
        ("", "server closed the connection unexpectedly", "SOURCE_UNREACHABLE", Unreachable),
    ],
)
def test_what_an_sqlstate_means(state: str, said: str, code: str, kind: type[IcelakeError]) -> None:
    error = explain_state(state, said, "postgresql://u:hunter2@h/d", "cannot do it")
    assert (error.code, type(error)) == (code, kind)
    assert said in error.why
    assert error.fix
    assert "hunter2" not in str(error)
