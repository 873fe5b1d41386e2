"""An engine attached to the lake at a point in time sees every table as it was then, and the applier's tables like any others."""

from typing import Any
from urllib.parse import quote

import pytest
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import NoSuchTableError, RESTError

from tests.journeys.conftest import Shell
from tests.rest.conftest import Served, attached, serving

QUESTION = "select count(*), sum(total), count(note) from {0}public.orders join {0}public.customers on customer = customers.id"


def rows(catalog: Catalog, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = catalog.load_table(table).scan().to_arrow().sort_by("id").to_pylist()
    return found


def change(shop: Shell, number: int) -> None:
    """Both tables in one transaction, so that no state between is one."""
    shop.sql(
        f"""begin;
        update orders set total = total + 1, note = 'round {number}' where id % 5 = {number % 5};
        delete from orders where id % 97 = {number};
        insert into customers values ({1000 + number}, 'new{number}@example.org', null);
        insert into orders (customer, total) values ({1000 + number}, {number});
        commit"""
    )
    shop.run("icelake sync --json")


def test_every_engine_can_be_attached_to_a_cut(shop: Shell) -> None:
    points = []
    for made in range(4):
        change(shop, made)
        cut = shop.json("icelake cuts --limit 1 --json")["cuts"][0]
        answer = shop.json(f"icelake query '{QUESTION.format('')}' --json")["rows"][0]
        points.append((cut, answer))
        if made == 1:
            shop.sql("alter table customers add column city text default 'here'; create table late (id int primary key)")
    with serving(shop.folder, environment=shop.env) as (uri, _):
        served = Served(uri, shop.folder)
        newest = load_catalog("now", type="rest", uri=uri)
        assert len(rows(newest, "public.customers")) == 204
        assert ("public", "late") in newest.list_tables("public")
        for number, (cut, answer) in enumerate(points):
            for at in (f"cut:{cut['cut']}", cut["lsn"], cut["commit_time"]):
                past = load_catalog("past", type="rest", uri=uri, warehouse=f"lake@{at}")
                customers = rows(past, "public.customers")
                assert len(customers) == 201 + number
                assert ("city" in customers[0]) == (number > 1)
                assert len(rows(past, "public.orders")) == answer[0]
                assert (("public", "late") in past.list_tables("public")) == (number > 1)
                with attached(uri, f"lake@{at}") as duck:
                    count, total, noted = duck.execute(QUESTION.format("lake.")).fetchone() or ()
                    assert [count, str(total), noted] == answer
        cut = points[0][0]["cut"]
        past = load_catalog("past", type="rest", uri=uri, warehouse=f"lake@cut:{cut}")
        with pytest.raises(NoSuchTableError):
            past.load_table("public.late")
        assert not past.namespace_exists("none")
        refused = served.ask("POST", f"{quote(f'lake@cut:{cut}')}/namespaces", {"namespace": ["x"]})
        assert (refused.error, refused.code) == ("ForbiddenException", "READ_ONLY")
        orders = past.load_table("public.orders")
        change_of = {"updates": [{"action": "set-properties", "updates": {"a": "b"}}]}
        refused = served.ask("POST", f"{quote(f'lake@cut:{cut}')}/namespaces/public/tables/orders", change_of)
        assert refused.code == "READ_ONLY"
        assert served.ask("DELETE", f"{quote(f'lake@cut:{cut}')}/namespaces/public/tables/orders").error == "ForbiddenException"
        with pytest.raises(RESTError, match="nothing in the lake is known"):
            load_catalog("past", type="rest", uri=uri, warehouse="lake@cut:7")
        for nonsense in ("lake@nonsense", "cut:7", "other@cut:7"):
            assert served.ask("GET", f"config?warehouse={nonsense}").code == "NO_SUCH_POINT"
        # What the lake holds of a source, and what it keeps for itself, goes by no request.
        (control,) = served.made("GET", "namespaces/icelake/tables")["identifiers"]
        for method, path, body in (
            ("DELETE", "namespaces/public/tables/orders", None),
            ("DELETE", "namespaces/public/tables/orders?purgeRequested=true", None),
            ("POST", "tables/rename", {"source": {"namespace": ["public"], "name": "orders"}, "destination": control}),
            ("DELETE", f"namespaces/icelake/tables/{control['name']}", None),
            ("POST", f"namespaces/icelake/tables/{control['name']}", change_of),
        ):
            assert served.ask(method, path, body).code == "PROTECTED", path
        # What was asked at a cut is asked while the source is followed: the same again.
        change(shop, 5)
        assert rows(past, "public.orders") == orders.scan().to_arrow().sort_by("id").to_pylist()
