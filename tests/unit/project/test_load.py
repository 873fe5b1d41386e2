"""A project file of nonsense is told file, line, key and the valid choices; a good one becomes frozen values."""

import dataclasses
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icelake.errors import ProjectError
from icelake.model.layout import Layout, PartitionField, SortField
from icelake.model.relation import Choice
from icelake.project import FILE, S3Settings, Secret, Thinning, findings, load_project

GOOD = """\
# a shop
[project]
name = "shop"

[sources.shop]
dsn = { env = "SHOP_DSN" }
tables = ["public.*"]
"""


S3 = """\
[lake]
warehouse = "s3://bkt/p"
[lake.s3]
access_key = { env = "A" }
secret_key = { file = "s" }
"""


def write(folder: Path, text: str) -> Path:
    file = folder / FILE
    file.write_text(text)
    return file


def test_the_smallest_file_and_its_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    project = load_project(tmp_path)
    assert project == load_project(file)
    assert (project.file, project.name, project.profile, project.lake) == (file, "shop", "embedded", tmp_path / "lake")
    source = project.sources["shop"]
    assert (source.name, source.dsn, source.tables, source.exclude) == ("shop", Secret("env", "SHOP_DSN"), ("public.*",), ())
    assert project.commit.interval_ms == 1000
    assert project.retention.keep_all == 60
    assert project.retention.thin[0] == Thinning(10, 600)
    with pytest.raises(dataclasses.FrozenInstanceError):
        project.name = "other"  # type: ignore[misc]


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
[project]
name = "a-b"
profile = "embedded"
[lake]
folder = "/data/lake"
[sources.one]
dsn = "host=x"
tables = ["public.*", "crm.people"]
exclude = ["public.audit"]
[sources.two]
dsn = { file = "two.dsn" }
tables = ["sales.orders"]
[tables."crm.people"]
readers = ["duckdb", "spark"]
out_of_range = "null"
append_only = true
history = true
partition = ["day(born)", 'bucket(16, "Full Name")', "country"]
sort = ["id", "born desc nulls first"]
[tables."crm.people".columns.amount]
type = "decimal(20,4)"
[tables."crm.people".columns."born on"]
out_of_range = "text"
[tables."public.*"]
readers = ["duckdb", "snowflake"]
[tables."public.old"]
format = 2
[commit]
interval_ms = 250
batch_mb = 64
[retention]
keep_all = "2m"
thin = [["1m", "1h"], ["1d", "400d"]]
[query]
memory_limit = "1.5GB"
""",
    )
    project = load_project(tmp_path)
    assert project.lake == Path("/data/lake")
    assert project.sources["two"].dsn == Secret("file", str(tmp_path / "two.dsn"))
    people = project.tables["crm.people"]
    assert (people.readers, people.out_of_range) == (("duckdb", "spark"), "null")
    assert people.columns == {"amount": Choice("decimal(20,4)", None), "born on": Choice(None, "text")}
    assert people.append_only
    assert people.history
    assert not project.tables["public.old"].history
    assert people.layout == Layout(
        (PartitionField("born", "day"), PartitionField("Full Name", "bucket", 16), PartitionField("country")),
        (SortField("id"), SortField("born", True, True)),
    )
    # One of its readers was never seen to read version 3.
    assert project.tables["public.*"].layout == Layout(format_version=2)
    assert project.tables["public.old"].layout == Layout(format_version=2)
    assert (project.commit.interval_ms, project.commit.batch_mb, project.query.memory_limit) == (250, 64, "1.5GB")
    assert project.retention.thin == (Thinning(60, 3600), Thinning(86400, 400 * 86400))


@pytest.mark.parametrize(
    ("change", "code", "line", "says"),
    [
        (
            ("[project]", "[projct]"),
            "PROJECT_UNKNOWN_KEY",
            2,
            ["projct", "did you mean project?", "project, lake, catalog, sources"],
        ),
        (('name = "shop"', ""), "PROJECT_MISSING_KEY", 2, ["project.name", 'name = "shop"']),
        (('name = "shop"', "name = 7"), "PROJECT_BAD_VALUE", 3, ["project.name", "string", "not an integer"]),
        (('name = "shop"', 'name = "My Shop"'), "PROJECT_BAD_VALUE", 3, ["'My Shop' is not a name", "lower-case"]),
        (
            ('name = "shop"', 'name = "shop"\nprofile = "stak"'),
            "PROJECT_BAD_VALUE",
            4,
            ["did you mean stack?", "embedded, stack, external"],
        ),
        (('name = "shop"', 'name = "shop"\nprofile = "stack"'), "PROJECT_PROFILE_NOT_BUILT", 4, ["not in this version", "embedded"]),
        (("[sources.shop]", "[sources.Shop]"), "PROJECT_BAD_VALUE", 5, ["sources.Shop", "not a name"]),
        (('dsn = { env = "SHOP_DSN" }', ""), "PROJECT_MISSING_KEY", 5, ["sources.shop.dsn", 'env = "SHOP_DSN"']),
        (('{ env = "SHOP_DSN" }', "12"), "PROJECT_BAD_VALUE", 6, ["sources.shop.dsn", "not an integer"]),
        (('{ env = "SHOP_DSN" }', '""'), "PROJECT_BAD_VALUE", 6, ["sources.shop.dsn", "empty"]),
        (('{ env = "SHOP_DSN" }', "{ }"), "PROJECT_BAD_VALUE", 6, ["sources.shop.dsn", "one place"]),
        (('{ env = "SHOP_DSN" }', '{ env = "A", file = "b" }'), "PROJECT_BAD_VALUE", 6, ["one place"]),
        (('{ env = "SHOP_DSN" }', '{ enc = "A" }'), "PROJECT_UNKNOWN_KEY", 6, ["dsn.enc", "did you mean env?", "env, file"]),
        (('["public.*"]', '"public.*"'), "PROJECT_BAD_VALUE", 7, ["sources.shop.tables", "not a string"]),
        (('["public.*"]', "[]"), "PROJECT_BAD_VALUE", 7, ["sources.shop.tables", "at least 1"]),
        (('["public.*"]', '["orders"]'), "PROJECT_BAD_VALUE", 7, ["schema.table or schema.*"]),
        (("tables =", "tabels ="), "PROJECT_UNKNOWN_KEY", 7, ["tabels", "did you mean tables?", "and 1 more"]),
        (("# a shop", "[lake]\nfolder = 's3://bucket'"), "PROJECT_BAD_VALUE", 2, ["lake.folder", "local folder"]),
        (("# a shop", "[lake]\nwarehouse = 's3://bucket/p'"), "PROJECT_MISSING_KEY", 2, ["how to reach S3", "[lake.s3] with access_key"]),
        (("# a shop", S3.replace("s3://bkt/p", "/data")), "PROJECT_BAD_VALUE", 2, ["lake.warehouse", "s3://bucket/prefix"]),
        (("# a shop", S3.replace("s3://bkt/p", "s3://lake-1")), "PROJECT_BAD_VALUE", 2, ["lake.warehouse", "a prefix in the bucket"]),
        (("# a shop", S3.replace("s3://bkt/p", "s3://lake-1/a/../b")), "PROJECT_BAD_VALUE", 2, ["lake.warehouse"]),
        (("# a shop", S3.replace("warehouse", "# ")), "PROJECT_MISSING_KEY", 3, ["lake.s3", "add warehouse"]),
        (("# a shop", S3.replace('{ env = "A" }', '"AKIA..."')), "PROJECT_BAD_VALUE", 4, ["access_key", "a table, not a string", "env ="]),
        (("# a shop", S3.replace("env", "enc")), "PROJECT_UNKNOWN_KEY", 4, ["access_key.enc", "did you mean env?", "env, file"]),
        (("# a shop", S3.replace("secret_key", "secret")), "PROJECT_UNKNOWN_KEY", 5, ["lake.s3.secret", "did you mean secret_key?"]),
        (("# a shop", S3 + 'endpoint = "s3.example.org"'), "PROJECT_BAD_VALUE", 6, ["lake.s3.endpoint", "https://s3.example.org"]),
        (("# a shop", S3 + 'endpoint = "http://h:1/lake"'), "PROJECT_BAD_VALUE", 6, ["lake.s3.endpoint"]),
        (("# a shop", "[commit]\ninterval_ms = 0"), "PROJECT_BAD_VALUE", 2, ["commit.interval_ms", "50"]),
        (("# a shop", "[commit]\ninterval_ms = true"), "PROJECT_BAD_VALUE", 2, ["integer", "not a boolean"]),
        (("# a shop", "[retention]\nkeep_all = '10 fortnights'"), "PROJECT_BAD_VALUE", 2, ["s, m, h or d"]),
        (("# a shop", "[retention]\ngrace = '2h'"), "PROJECT_BAD_VALUE", 2, ["more than an hour", "listed in the control table"]),
        (("# a shop", "[retention]\nthin = [['1s', '10s']]"), "PROJECT_BAD_VALUE", 2, ["ages and steps must grow"]),
        (("# a shop", "[retention]\nthin = [['7s', '2m'], ['10s', '3m']]"), "PROJECT_BAD_VALUE", 2, ["divide the next"]),
        (("# a shop", "[query]\nmemory_limit = 'lots'"), "PROJECT_BAD_VALUE", 2, ["512MB"]),
        (
            ("# a shop", '[tables."public.x"]\nreaders = ["duckdb", "sparc"]'),
            "PROJECT_BAD_VALUE",
            2,
            ["did you mean spark?", "duckdb, flink"],
        ),
        (
            ("# a shop", '[tables."public.x"]\npartition = ["day(a)", "weeks(b)"]'),
            "PROJECT_BAD_VALUE",
            2,
            ['tables."public.x".partition', "no transform 'weeks'", "choose of: identity, year"],
        ),
        (("# a shop", '[tables."public.x"]\npartition = ["bucket(a)"]'), "PROJECT_BAD_VALUE", 2, ["write bucket(16, column)"]),
        (
            ("# a shop", '[tables."public.x"]\npartition = "day(a)"'),
            "PROJECT_BAD_VALUE",
            2,
            ["not a string", 'partition = ["day(placed_at)"'],
        ),
        (("# a shop", '[tables."public.x"]\nsort = ["a", "b down"]'), "PROJECT_BAD_VALUE", 2, ["'b down' is none of: column, column desc"]),
        (("# a shop", '[tables."public.x"]\nformat = 1'), "PROJECT_BAD_VALUE", 2, ["1 is not a choice", "choose of: 2, 3"]),
        (
            ("# a shop", '[tables."public.x"]\nreaders = ["athena", "duckdb"]\nformat = 3'),
            "PROJECT_BAD_VALUE",
            3,
            ["version 3 is not for athena", "duckdb, flink, pyiceberg, spark, trino"],
        ),
        (
            ("# a shop", '[tables."public.x"]\nout_of_range = "skip"'),
            "PROJECT_BAD_VALUE",
            2,
            ["'skip' is not a choice", "choose of: error, null, text"],
        ),
        (
            ("# a shop", '[tables."public.x".columns.c]\nout_of_range = "nul"'),
            "PROJECT_BAD_VALUE",
            2,
            ["did you mean null?", "choose of: error, null, text"],
        ),
        (
            ("# a shop", '[tables."public.x".columns.c]\ntype = "decimal(39,2)"'),
            "PROJECT_BAD_VALUE",
            2,
            ["columns.c.type", "expected string, or a decimal of at most 38 digits"],
        ),
        (("# a shop", '[tables."public.x".columns.c]\ntype = "int"'), "PROJECT_BAD_VALUE", 2, ["as in decimal(20,4)"]),
        (
            ("# a shop", '[tables."public.x".columns.c]\ntyp = "string"'),
            "PROJECT_UNKNOWN_KEY",
            2,
            ["did you mean type?", "valid here: type, out_of_range"],
        ),
        (("# a shop", '[tables."public.*"]\nappend_only = true'), "PROJECT_BAD_VALUE", 2, ["for one table", "by name"]),
        (("# a shop", '[tables."public.x"]\nappend_onyl = true'), "PROJECT_UNKNOWN_KEY", 2, ["did you mean append_only?"]),
        (("# a shop", '[tables."crm.x"]\nreaders = ["duckdb"]'), "PROJECT_TABLE_NOT_MIRRORED", 1, ['tables."crm.x"', "public.*"]),
        (("# a shop", "x = = 1"), "PROJECT_SYNTAX", 1, ["not TOML"]),
        (("# a shop", "x = '''"), "PROJECT_SYNTAX", 7, ["not TOML"]),
    ],
)
def test_nonsense(tmp_path: Path, change: tuple[str, str], code: str, line: int, says: list[str]) -> None:
    assert change[0] in GOOD
    file = write(tmp_path, GOOD.replace(*change, 1))
    with pytest.raises(ProjectError) as error:
        load_project(tmp_path)
    text = str(error.value)
    assert error.value.code == code
    assert f"{file}:{line}:" in text
    for words in says:
        assert words in text, text
    assert "_Reference" not in text
    assert "[key]" not in text


def test_a_lake_on_s3(tmp_path: Path) -> None:
    lake = S3.replace("s3://bkt/p", "s3a://lake-1/a/b/")
    write(tmp_path, GOOD + lake)
    project = load_project(tmp_path)
    assert (project.lake, project.warehouse) == (tmp_path / "lake", "s3://lake-1/a/b")
    assert project.s3 == S3Settings(None, "us-east-1", Secret("env", "A"), Secret("file", str(tmp_path / "s")), None, False)
    assert project.s3.url("lake-1") == "https://lake-1.s3.us-east-1.amazonaws.com"
    write(tmp_path, GOOD + lake + 'endpoint = "http://[::1]:9000/"\nregion = "eu-x"\nsession_token = { env = "T" }\n')
    project = load_project(tmp_path)
    assert project.s3 is not None
    assert (project.s3.endpoint, project.s3.region, project.s3.session_token) == ("http://[::1]:9000", "eu-x", Secret("env", "T"))
    assert project.s3.url("lake-1") == "http://[::1]:9000"
    write(tmp_path, GOOD)
    assert load_project(tmp_path).warehouse == str(tmp_path / "lake" / "warehouse")


def test_keys_of_s3_are_read_when_used_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD + S3 + 'endpoint = "http://s3.example.org"\n')
    monkeypatch.setenv("SHOP_DSN", "host=x")
    project = load_project(tmp_path)
    assert project.s3 is not None
    monkeypatch.delenv("A", raising=False)
    assert [finding.code for finding in findings(project)] == ["SECRET_NOT_SET", "SECRET_FILE", "S3_IN_CLEAR", "PROJECT"]
    monkeypatch.setenv("A", "the-access-key")
    (tmp_path / "s").write_text("the-secret-key\n")
    (tmp_path / "s").chmod(0o644)
    assert [finding.code for finding in findings(project)] == ["SECRET_READABLE", "S3_IN_CLEAR", "PROJECT"]
    keys = project.s3.reveal()
    assert (keys.access_key, keys.secret_key, keys.session_token) == ("the-access-key", "the-secret-key", None)
    for shown in (repr(keys), repr(project), str(project.s3)):
        assert "the-access-key" not in shown
        assert "the-secret-key" not in shown


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"PROJECT_NOT_FOUND.*icelake\.toml\n.*icelake init"):
        load_project(tmp_path)


def test_no_sources(tmp_path: Path) -> None:
    write(tmp_path, '[project]\nname = "x"\n')
    with pytest.raises(ProjectError, match=r"PROJECT_MISSING_KEY.*sources"):
        load_project(tmp_path)


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'[project]\nname = "\xff"\n')
    with pytest.raises(ProjectError, match="UTF-8"):
        load_project(tmp_path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "icelake.toml").mkdir()
    with pytest.raises(ProjectError, match="PROJECT_NOT_READABLE"):
        load_project(tmp_path)


def test_a_profile_may_be_chosen_from_outside(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    assert load_project(tmp_path, "embedded").profile == "embedded"
    with pytest.raises(ProjectError, match="PROJECT_PROFILE_NOT_BUILT"):
        load_project(tmp_path, "external")
    with pytest.raises(ProjectError, match=r"(?s)PROJECT_UNKNOWN_PROFILE.*did you mean embedded\?"):
        load_project(tmp_path, "embeded")


@given(st.text(max_size=200) | st.sampled_from(GOOD.splitlines()).flatmap(lambda line: st.just(GOOD.replace(line, line[::-1]))))
def test_any_text_loads_or_is_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with suppress(ProjectError):
        load_project(file)
