"""What every command keeps to: quick help, JSON only on stdout, exit codes, no traceback for what is not a bug."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from icelake import cli
from icelake.project import load_project

ICELAKE = [sys.executable, "-c", "import sys; from icelake.cli import main; sys.exit(main())"]


def icelake(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([*ICELAKE, *words], capture_output=True, text=True, cwd=cwd, env=env, check=False)


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    program = "import sys; from icelake.cli import main\ntry: main(['--help'])\nfinally: print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for name, sentence in cli.COMMANDS.items():
        assert name in done.stdout
        assert sentence.split(",")[0] in " ".join(done.stdout.split())
    loaded = done.stderr
    for heavy in ("pyarrow", "numpy", "duckdb", "pydantic", "rich", "psycopg", "numba", "icelake.lakehouse"):
        assert f"'{heavy}'" not in loaded


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_and_json_and_loads_its_body_later(name: str) -> None:
    program = (
        f"import sys; from icelake.cli import main\ntry: main([{name!r}, '--help'])\nfinally: print(sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "--json" in done.stdout
    for heavy in ("pyarrow", "numpy", "duckdb", "pydantic", "rich", "psycopg", "numba", "icelake.lakehouse"):
        assert f"'{heavy}'" not in done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("icelake 0.")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["qery"], "UNKNOWN_COMMAND", "did you mean query?"),
        (["query"], "USAGE", "SQL"),
        (["--nonsense"], "USAGE", "--nonsense"),
        (["tables", "--nonsense"], "USAGE", "--nonsense"),
        (["sync", "--follow", "--until", "now"], "USAGE", "--until and --follow"),
        (["query", "--engine", "trino", "select 1"], "ENGINE_NOT_BUILT", "duckdb"),
        (["query", "--engine", "oracle", "select 1"], "UNKNOWN_ENGINE", "oracle"),
        (["query", "--csv", "--arrow", "select 1"], "USAGE", "not allowed with"),
        (["bench", "nonsense"], "UNKNOWN_BENCH", "one of"),
        (["status", "-C", "/nowhere"], "PROJECT_NOT_FOUND", "icelake init"),
        (["doctor", "-C", "/nowhere"], "PROJECT_NOT_FOUND", "icelake init"),
    ],
)
def test_usage_is_exit_2_for_people_and_programs(words: list[str], code: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert code in told.err
    assert says in told.err
    assert cli.main([*words, "--json"]) == 2
    told = capsys.readouterr()
    assert told.err == ""
    error = json.loads(told.out)["error"]
    assert error["code"] == code
    assert error["temporary"] is False


def test_nothing_at_all_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "COMMAND" in capsys.readouterr().out


def test_a_reader_that_left_is_no_error() -> None:
    writer = subprocess.Popen([*ICELAKE, "--version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.close()
    told = writer.stderr.read()
    writer.stderr.close()
    assert (writer.wait(), told) == (cli.BROKEN_PIPE, b"")


def test_ctrl_c_is_130_without_a_word(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("icelake.cli._run", interrupted)
    assert cli.main(["query", "-"]) == cli.INTERRUPTED
    assert capsys.readouterr() == ("", "")


def test_a_bug_is_not_mistaken_for_a_difference(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icelake.cli._run", lambda words: 1 // 0)
    assert cli.main(["status"]) == cli.BUG
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_init_makes_a_project_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "My Shop!"
    assert cli.main(["init", str(folder), "--tables", "public.*", "crm.people", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["files"] == [str(folder / "icelake.toml"), str(folder / ".gitignore")]
    project = load_project(folder)
    assert (project.name, project.lake, list(project.sources)) == ("my-shop", folder / "lake", ["my-shop"])
    assert project.sources["my-shop"].tables == ("public.*", "crm.people")
    assert project.sources["my-shop"].dsn.where == "MY_SHOP_DSN"


def test_what_init_writes_out_are_the_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", str(tmp_path), "--name", "shop"]) == 0
    written = load_project(tmp_path)
    (tmp_path / "icelake.toml").write_text('[project]\nname = "shop"\n[sources.shop]\ndsn = { env = "SHOP_DSN" }\ntables = ["public.*"]\n')
    assert load_project(tmp_path) == written


def test_init_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".gitignore").write_text("mine\n")
    assert cli.main(["init", str(tmp_path), "--name", "a"]) == 0
    assert (tmp_path / ".gitignore").read_text() == "mine\n"
    before = (tmp_path / "icelake.toml").read_text()
    assert cli.main(["init", str(tmp_path), "--name", "b"]) == 2
    assert "PROJECT_EXISTS" in capsys.readouterr().err
    assert (tmp_path / "icelake.toml").read_text() == before


@pytest.mark.parametrize("words", [["--name", "Big"], ["--env", "a b"], ["--tables", "orders"], ["--tables", 'public."x']])
def test_init_refuses_what_would_not_load(tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", str(tmp_path / "x"), *words]) == 2
    assert "BAD_NAME" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_init_says_where_it_may_not_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["init", str(tmp_path / "file" / "shop")]) == 2
    assert "INIT_NOT_WRITABLE" in capsys.readouterr().err


def test_the_console_script_is_main() -> None:
    done = subprocess.run([Path(sys.executable).with_name("icelake"), "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_doctor_says_that_a_secret_is_missing_before_anything_is_opened(tmp_path: Path) -> None:
    icelake("init", str(tmp_path), "--name", "shop")
    done = icelake("doctor", "--json", cwd=tmp_path, SHOP_DSN="")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["healthy"] is False
    assert [finding["code"] for finding in report["findings"] if finding["level"] == "problem"] == ["SECRET_NOT_SET"]
    assert not (tmp_path / "lake").exists()
