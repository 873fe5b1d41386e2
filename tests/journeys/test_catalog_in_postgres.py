"""A lake whose catalog is in PostgreSQL: mirrored, killed while it commits, questioned, verified, and served."""

from pyiceberg.catalog import load_catalog

from icelake.stack.postgres import Postgres
from tests.journeys.conftest import Shell
from tests.rest.conftest import Served, database, serving

PROJECT = """
[catalog]
database = { env = "CATALOG_DSN" }
"""


def test_the_catalog_of_a_mirror_is_in_postgresql(server: Postgres, shell: Shell) -> None:
    with database(server) as store:
        shell.environment |= {"SHOP_DSN": shell.dsn, **store}
        shell.run("icelake init . --name shop")
        project = shell.folder / "icelake.toml"
        project.write_text(project.read_text() + PROJECT)
        shell.run("icelake sync --json")
        for number, fault in enumerate(("catalog.commit:before:2", "catalog.commit:after:2")):
            shell.sql(f"update orders set total = total + {number + 1} where id % 3 = 0")
            shell.environment["ICELAKE_FAULT"] = fault
            shell.run("icelake sync --json", code=-9)
            del shell.environment["ICELAKE_FAULT"]
            shell.run("icelake sync --json")
            assert shell.json("icelake verify --json")["equal"]
        assert shell.json("icelake query 'select count(*) from orders' --json")["rows"] == [[3000]]
        assert not list(shell.folder.rglob("catalog.db*"))
        with serving(shell.folder, environment=shell.env) as (uri, _):
            assert Served(uri, shell.folder).made("GET", "namespaces")["namespaces"]
            assert load_catalog("lake", type="rest", uri=uri).load_table("public.orders").scan().to_arrow().num_rows == 3000
