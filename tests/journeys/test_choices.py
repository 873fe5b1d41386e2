"""What a project chooses for columns, through the real command: carried out when a table is made, and fixed from then on."""

from typing import Any

import pytest

from tests.journeys.refusals import PROJECT, call, refused, rows, with_project

READINGS = """
create type mood as enum ('sad', 'ok');
create domain amount as numeric check (value >= 0);
create table readings (id int primary key, taken timestamp, day date, amount amount, state mood, home inet);
insert into readings values (1, 'infinity', 'infinity', 1.5, 'ok', '10.0.0.1'), (2, '2024-02-29', '2024-02-29', 'NaN', 'sad', null);
"""
CHOICES = """
[tables."public.readings"]
out_of_range = "null"
[tables."public.readings".columns.amount]
type = "decimal(20,4)"
[tables."public.readings".columns.day]
out_of_range = "text"
"""
ANSWER = "select id, taken::varchar, day, amount::varchar, state, home from readings order by id"


@pytest.fixture
def mirror(shell: Any) -> Any:
    shell.sql(READINGS)
    return with_project(shell)


def test_choices_are_made_once(mirror: Any) -> None:
    project = mirror.folder / "icelake.toml"
    project.write_text(PROJECT + CHOICES)
    call(mirror, "sync", 0)
    first = [[1, None, "infinity", "1.5000", "ok", "10.0.0.1"], [2, "2024-02-29 00:00:00", "2024-02-29", None, "sad", None]]
    assert rows(mirror, ANSWER) == first
    # The project changes its mind: that is for new tables.
    project.write_text(PROJECT)
    mirror.sql("insert into readings values (3, '-infinity', '-infinity', 2.25, null, '::1/64')")
    call(mirror, "sync", 0)
    assert rows(mirror, ANSWER) == [*first, [3, None, "-infinity", "2.2500", None, "::1/64"]]


def test_a_choice_that_makes_no_sense(mirror: Any) -> None:
    project = mirror.folder / "icelake.toml"
    named = PROJECT.replace('["public.*"]', '["public.*", "public.readings"]')
    project.write_text(named + '[tables."public.readings".columns.home]\ntype = "decimal(5,2)"\n')
    error = refused(mirror, "COLUMN_CHOICE")
    assert "column home is inet, which cannot be decimal(5,2)" in error["why"]
