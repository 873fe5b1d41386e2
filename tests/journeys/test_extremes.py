"""Tables at the edges of what PostgreSQL allows: how wide, how large, how they are called, and which are left out with a word."""

import hashlib
from typing import Any

import psycopg

from tests.journeys.conftest import Shell


def mirrored(shell: Shell, *tables: str) -> Any:
    """The shell's database, mirrored: these tables of it."""
    shell.environment["SHOP_DSN"] = shell.dsn
    shell.run("icelake init . --name shop")
    if tables:
        project = shell.folder / "icelake.toml"
        text = project.read_text()
        assert 'tables = ["public.*"]' in text
        project.write_text(text.replace('tables = ["public.*"]', f"tables = {list(tables)!r}"))
    return shell.json("icelake sync --json")


def asked(shell: Shell, question: str, *options: str) -> list[tuple[Any, ...]]:
    """The rows of an answer."""
    (shell.folder / "question.sql").write_text(question)
    return [tuple(row) for row in shell.json(f"icelake query - --json {' '.join(options)} < question.sql")["rows"]]


def equal(shell: Shell) -> None:
    shell.run("icelake sync --json")
    assert shell.json("icelake verify --json")["equal"] is True


def test_sixteen_hundred_columns(shell: Shell) -> None:
    columns = ", ".join(f"c{n} smallint" for n in range(1, 1600))
    shell.sql(f"create table wide (id int primary key, {columns})")
    values = ", ".join(f"(i * {n}) % 30000" for n in range(1, 1600))
    shell.sql(f"insert into wide select i, {values} from generate_series(1, 20) i")
    mirrored(shell, "public.wide")
    shell.sql("update wide set c1599 = null, c800 = -7 where id % 3 = 0")
    shell.sql("delete from wide where id = 20")
    equal(shell)
    question = "select count(*), sum(c800)::bigint, count(c1599), max(c1598) from wide"
    with psycopg.connect(shell.dsn) as source:
        expected = source.execute(question).fetchone()
    assert asked(shell, question) == [expected]


def test_a_value_of_a_hundred_megabytes(shell: Shell) -> None:
    shell.sql("create table huge (id int primary key, note text, body text, raw bytea)")
    shell.sql("alter table huge alter body set storage external, alter raw set storage external")
    body = "repeat(md5('body'), (100 << 20) / 32)"
    shell.sql(f"insert into huge values (1, 'first', {body}, null), (2, 'small', 'x', '\\x00')")
    mirrored(shell, "public.huge")
    # It comes by the load, by an insert, stays when it is not sent, and changes.
    shell.sql(f"insert into huge values (3, 'streamed', {body}, decode({body}, 'escape'))")
    shell.sql("update huge set note = 'touched'")
    shell.sql("update huge set raw = raw || '\\xff' where id = 2")
    equal(shell)
    rows = asked(shell, "select id, note, length(body), md5(body), octet_length(raw) from huge order by id")
    digest = hashlib.md5((hashlib.md5(b"body").hexdigest() * ((100 << 20) // 32)).encode()).hexdigest()
    assert rows == [
        (1, "touched", 100 << 20, digest, None),
        (2, "touched", 1, hashlib.md5(b"x").hexdigest(), 2),
        (3, "touched", 100 << 20, digest, 100 << 20),
    ]


def test_names_of_every_kind(shell: Shell) -> None:
    shell.sql('create schema "Größe & Maß"')
    shell.sql(
        """create table "Größe & Maß"."sélect ""it"" 'now'" ("select" int, "größe (cm)" numeric(5,1), "a.b" text, "UPPER" int, " " text,
           "from" date, "日本" text, "%s {0} $1" text, primary key ("select", "a.b"))"""
    )
    table = """"Größe & Maß"."sélect ""it"" 'now'\""""
    shell.sql(f"insert into {table} select i, i / 10.0, 'k' || i, i, ' ', '2024-02-29', '日本', '%s' from generate_series(1, 30) i")
    mirrored(shell, "Größe & Maß.*")
    shell.sql(f"""update {table} set "größe (cm)" = 7, "UPPER" = 8 where "select" = 3""")
    shell.sql(f"""update {table} set "a.b" = 'moved' where "select" = 4""")
    shell.sql(f"""delete from {table} where "select" > 20""")
    equal(shell)
    question = f"""select "select", "größe (cm)"::varchar, "a.b", "UPPER", "日本" from {table} where "select" in (3, 4) order by 1"""
    assert asked(shell, question) == [(3, "7.0", "k3", 8, "日本"), (4, "0.4", "moved", 4, "日本")]


def test_what_the_server_fills_in(shell: Shell) -> None:
    shell.sql(
        """create table filled (id bigint generated always as identity primary key, n serial, price numeric(8,2) not null default 9.99,
           made timestamptz default now(), twice numeric(9,2) generated always as (price * 2) stored, tag text default 'new')"""
    )
    shell.sql("insert into filled default values")
    mirrored(shell, "public.filled")
    shell.sql("insert into filled (price) values (1), (2)")
    shell.sql("update filled set price = 3, tag = default where id = 2")
    shell.sql("insert into filled (id, n) overriding system value values (70, 70)")
    equal(shell)
    rows = asked(shell, "select * exclude (made, price), price::varchar from filled order by id")
    # A generated column is not sent before PostgreSQL 18, so it is in no mirror.
    assert rows == [
        (1, 1, "new", "9.99"),
        (2, 2, "new", "3.00"),
        (3, 3, "new", "2.00"),
        (70, 70, "new", "9.99"),
    ]


def test_several_tables_truncated_are_empty_in_one_cut(shell: Shell) -> None:
    shell.sql("create table a (id int primary key); create table b (id int primary key); create table c (id int)")
    shell.sql("alter table c replica identity full")
    shell.sql("insert into a select generate_series(1, 50); insert into b select generate_series(1, 50)")
    shell.sql("insert into c select 7 from generate_series(1, 50)")
    mirrored(shell, "public.a", "public.b", "public.c")
    before = {cut["cut"] for cut in shell.json("icelake cuts --json")["cuts"]}
    shell.sql("begin; insert into a values (99); truncate a, b, c; insert into b values (1); insert into c values (1), (1); commit")
    equal(shell)
    counts = "select (select count(*) from a) a, (select count(*) from b) b, (select count(*) from c) c"
    since = [cut["cut"] for cut in shell.json("icelake cuts --json")["cuts"] if cut["cut"] not in before]
    seen = [row for cut in since for row in asked(shell, counts, "--at", str(cut))]
    assert set(seen) <= {(50, 50, 50), (0, 1, 2)}
    assert seen[0] == (0, 1, 2)


def test_tables_that_are_not_in_the_log_are_left_out_with_a_word(shell: Shell) -> None:
    with psycopg.connect(shell.dsn, autocommit=True) as session:
        session.execute("create unlogged table fleeting (id int primary key); create temporary table scratch (id int primary key)")
        session.execute("insert into fleeting values (1); insert into scratch values (1)")
        document = mirrored(shell)
        (left_out,) = document["refused"]
        assert (left_out["table"], left_out["code"]) == ("public.fleeting", "NOT_A_PLAIN_TABLE")
        assert "unlogged" in left_out["why"]
        assert [table["name"] for table in shell.json("icelake tables --json")["tables"]] == ["public.customers", "public.orders"]
        # Whoever uses them is not in the way of anything.
        session.execute("update fleeting set id = 2; update scratch set id = 2")
        equal(shell)
