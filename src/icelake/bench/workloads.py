"""What the benchmarks of the applier write: tables, and changes that can be made piece after piece.

Every workload counts changes as the source's log has them: rows inserted, updated and deleted.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    what: str
    tables: str
    """SQL that makes them, with ``{rows}`` rows before."""
    changes: str
    """SQL that makes about ``{changes}`` changes, for the ``{piece}``-th time (from 0) of as many."""
    size: int
    """Changes a piece, unless told otherwise."""
    again: str = ""
    """SQL that brings the tables back to ``{rows}`` rows, where the changes make them grow."""


_ITEM = """
create table item (
    id bigint primary key, customer int not null, sku text not null, price numeric(12,2) not null,
    quantity int not null, paid boolean not null, changed timestamptz not null
);
"""
_ITEMS = """
insert into item
select g, g % 5000, 'sku-' || g % 997, (g % 10000) / 100.0, g % 17, g % 2 = 0, timestamptz '2026-01-01' + g * interval '1 second'
from generate_series(1, {rows}) g;
"""


def _turns(table: str, before: str, change: str, row: str) -> str:
    """60 updates, 20 inserts, 20 deletes a transaction. ``before``: the ids there were; ``row`` is of ``g``, from 1, after ``top``."""
    return f"""
do $$
declare
    top bigint := {before} + {{piece}} * ({{changes}} / 5);
    low bigint := 1 + {{piece}} * ({{changes}} / 5);
begin
    for t in 1..{{changes}} / 100 loop
        update {table} set {change}
        where id in (select low + 20 + (random() * (top - low - 20))::bigint from generate_series(1, 60));
        insert into {table} select {row} from generate_series(1, 20) g;
        top := top + 20;
        delete from {table} where id >= low and id < low + 20;
        low := low + 20;
        commit;
    end loop;
end $$;
"""


_MIXED = _turns(
    "item",
    "{rows}",
    "quantity = quantity + 1, price = price + 0.01, changed = changed + interval '1 minute'",
    "top + g, g, 'new-' || g, g, g, true, timestamptz '2026-02-01'",
)

_INSERTS = """
do $$
declare
    top bigint := {rows} + {piece} * {changes};
begin
    for t in 1..{changes} / 100 loop
        insert into item
        select top + g, g, 'sku-' || g % 997, g, g % 17, true, timestamptz '2026-02-01' + (top + g) * interval '1 second'
        from generate_series(1, 100) g;
        top := top + 100;
        commit;
    end loop;
end $$;
"""

_DOCUMENT = """
create table document (id bigint primary key, title text not null, views int not null, body text not null);
alter table document alter body set storage external;
insert into document
select g, 'document ' || g, 0, (select string_agg(md5(g::text || n), '') from generate_series(1, 128) n)
from generate_series(1, greatest(1000, {rows} / 50)) g;
"""

_DOCUMENTS = _turns(
    "document",
    "greatest(1000, {rows} / 50)",
    "views = views + 1",
    "top + g, 'new ' || g, 0, (select string_agg(md5((top + g)::text || n), '') from generate_series(1, 128) n)",
)

_TPCC = """
create table warehouse (w_id int primary key, w_name text not null, w_tax numeric(4,4) not null, w_ytd numeric(12,2) not null);
create table district (
    d_w_id int, d_id int, d_name text not null, d_tax numeric(4,4) not null, d_ytd numeric(12,2) not null, d_next_o_id int not null,
    primary key (d_w_id, d_id)
);
create table customer (
    c_w_id int, c_d_id int, c_id int, c_last text not null, c_since timestamptz not null, c_balance numeric(12,2) not null,
    c_ytd_payment numeric(12,2) not null, c_payment_cnt int not null, c_data text not null, primary key (c_w_id, c_d_id, c_id)
);
create table item (i_id int primary key, i_name text not null, i_price numeric(5,2) not null);
create table stock (
    s_w_id int, s_i_id int, s_quantity int not null, s_ytd int not null, s_order_cnt int not null, s_data text not null,
    primary key (s_w_id, s_i_id)
);
create table orders (
    o_w_id int, o_d_id int, o_id int, o_c_id int not null, o_entry_d timestamptz not null, o_carrier_id int, o_ol_cnt int not null,
    primary key (o_w_id, o_d_id, o_id)
);
create table new_order (no_w_id int, no_d_id int, no_o_id int, primary key (no_w_id, no_d_id, no_o_id));
create table order_line (
    ol_w_id int, ol_d_id int, ol_o_id int, ol_number int, ol_i_id int not null, ol_delivery_d timestamptz, ol_quantity int not null,
    ol_amount numeric(6,2) not null, primary key (ol_w_id, ol_d_id, ol_o_id, ol_number)
);
create table history (h_id bigint generated always as identity primary key, h_c_id int, h_d_id int, h_w_id int, h_date timestamptz,
    h_amount numeric(6,2));
insert into warehouse select w, 'w' || w, 0.1, 300000 from generate_series(1, 4) w;
insert into district select w, d, 'd' || d, 0.1, 30000, 3001 from generate_series(1, 4) w, generate_series(1, 10) d;
insert into customer select w, d, c, 'last' || c, '2026-01-01', -10, 10, 1, repeat('x', 300)
from generate_series(1, 4) w, generate_series(1, 10) d, generate_series(1, greatest(30, {rows} / 400)) c;
insert into item select i, 'item ' || i, 1 + i % 100 from generate_series(1, greatest(100, {rows} / 40)) i;
insert into stock select w, i, 50, 0, 0, repeat('s', 40) from generate_series(1, 4) w, generate_series(1, greatest(100, {rows} / 40)) i;
"""

# Of 46 transactions 22 are new orders (23 changes each), 22 payments (4), 2 deliveries (13 for each of ten districts that has an order).
_TPCC_WORK = """
do $$
declare
    w int; d int; c int; o int; made int := 0; turn int := 0;
    items int := greatest(100, {rows} / 40); customers int := greatest(30, {rows} / 400);
begin
    perform setseed(0.{piece}1);
    while made < {changes} loop
        turn := turn + 1;
        w := 1 + (random() * 3)::int; d := 1 + (random() * 9)::int; c := 1 + (random() * (customers - 1))::int;
        if turn % 23 = 0 then
            for n in 1..10 loop
                select min(no_o_id) into o from new_order where no_w_id = w and no_d_id = n;
                continue when o is null;
                delete from new_order where no_w_id = w and no_d_id = n and no_o_id = o;
                update orders set o_carrier_id = 1 + turn % 10 where o_w_id = w and o_d_id = n and o_id = o;
                update order_line set ol_delivery_d = '2026-03-01' where ol_w_id = w and ol_d_id = n and ol_o_id = o;
                update customer set c_balance = c_balance + 1 where c_w_id = w and c_d_id = n and c_id = c;
                made := made + 13;
            end loop;
        elsif turn % 2 = 0 then
            update warehouse set w_ytd = w_ytd + 5 where w_id = w;
            update district set d_ytd = d_ytd + 5 where d_w_id = w and d_id = d;
            update customer set c_balance = c_balance - 5, c_ytd_payment = c_ytd_payment + 5, c_payment_cnt = c_payment_cnt + 1
            where c_w_id = w and c_d_id = d and c_id = c;
            insert into history (h_c_id, h_d_id, h_w_id, h_date, h_amount) values (c, d, w, '2026-03-01', 5);
            made := made + 4;
        else
            update district set d_next_o_id = d_next_o_id + 1 where d_w_id = w and d_id = d returning d_next_o_id into o;
            insert into orders values (w, d, o, c, '2026-03-01', null, 10);
            insert into new_order values (w, d, o);
            update stock set s_quantity = s_quantity - 1, s_ytd = s_ytd + 1, s_order_cnt = s_order_cnt + 1
            where s_w_id = w and s_i_id in (select 1 + (turn * 7 + n * 31) % items from generate_series(1, 10) n);
            insert into order_line select w, d, o, n, 1 + (turn * 7 + n * 31) % items, null, 1, 5 from generate_series(1, 10) n;
            made := made + 23;
        end if;
        commit;
    end loop;
end $$;
"""

WORKLOADS = {
    "mixed": Workload(
        "60 % updates, 20 % inserts, 20 % deletes in transactions of 100, of a table of 7 columns", _ITEM + _ITEMS, _MIXED, 1_000_000
    ),
    "insert_only": Workload(
        "inserts in transactions of 100 into a table of 7 columns", _ITEM + _ITEMS, _INSERTS, 1_000_000, "truncate item;" + _ITEMS
    ),
    "toast": Workload("60/20/20 of documents of 4 KiB; the updates leave the text alone", _DOCUMENT, _DOCUMENTS, 100_000),
    "tpcc": Workload("orders, payments and deliveries over 9 tables, as TPC-C mixes them", _TPCC, _TPCC_WORK, 500_000),
}

STAMPED = Workload(
    "60 % updates, 20 % inserts, 20 % deletes in transactions of 100, of a table of 7 columns, one of them the time of the change",
    _ITEM + _ITEMS,
    _turns(
        "item",
        "{rows}",
        "quantity = quantity + 1, price = price + 0.01, changed = clock_timestamp()",
        "top + g, g, 'new-' || g, g, g, true, clock_timestamp()",
    ),
    10_000,
)
"""For ``bench.peers``: some peers find changes by such a column."""
