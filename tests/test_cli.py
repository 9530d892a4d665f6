"""Tests of the command `grpo-hf`: it starts fast, and its messages say what to do."""

import json
import subprocess
import sys
import time
from importlib.metadata import version

import pytest
from support.run_folders import write_run

from grpo_hf.cli import main
from grpo_hf.reporting.report import next_steps

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def cli(capsys):
    """Return a function that runs a command and returns what it prints."""

    def run(*arguments):
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


class TestLightness:
    def test_help_within_a_second(self):
        seconds = []
        for _ in range(3):
            started = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", "grpo_hf.cli", "--help"],
                capture_output=True,
                text=True,
                check=True,
            )
            seconds.append(time.monotonic() - started)
        assert all(
            command in done.stdout for command in ("train", "rewards", "plot", "credit", "report")
        )
        assert min(seconds) < 1

    def test_version(self, capsys):
        with pytest.raises(SystemExit) as left:
            main(["--version"])
        assert left.value.code == 0
        assert capsys.readouterr().out == f"grpo-hf {version('grpo-hf')}\n"

    def test_trying_a_reward_imports_nothing_heavy(self):
        program = (
            "import sys; from grpo_hf.cli import main; main(['rewards', 'list']);"
            "main(['rewards', 'test', 'gsm8k', '--completion', '#### 4', '--column', 'answer=4']);"
            "print({'torch', 'transformers', 'trl', 'datasets', 'altair'} & set(sys.modules))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout.endswith("1.000  '#### 4'\nset()\n")


class TestArguments:
    @pytest.mark.parametrize(
        "arguments", [[], ["rewards"], ["rewards", "list", "--all"], ["plot", "run"], ["rewrds"]]
    )
    def test_wrong_commands(self, refused, arguments):
        assert "usage: grpo-hf" in refused(*arguments)

    def test_a_misspelled_command(self, refused):
        assert "no command 'trian'. Did you mean 'train'? The commands are train, init," in refused(
            "trian", "mine"
        )
        assert "no command 'chek'. Did you mean 'check'? The commands are list, check, test." in (
            refused("rewards", "chek")
        )
        # Alone it lists what there is.
        assert "train a recipe" in refused() and "score texts" in refused("rewards")

    def test_train_reads_the_recipe_and_passes_flags_on(self, refused, tmp_path):
        (tmp_path / "mine.yaml").write_text("rewards: [gsm8k]\n")
        assert f"no such recipe. Did you mean '{tmp_path}/mine.yaml'?" in refused(
            "train", tmp_path / "mine.yml"
        )
        text = refused("train", tmp_path / "mine.yaml", "--num_generations", "1")
        assert text.startswith("error: num_generations is 1;")

    def test_a_file_of_rewards_is_no_recipe(self, refused, tmp_path):
        (tmp_path / "mine.py").write_text("def mine(completions, **_):\n    return [1.0]\n")
        said = refused("rewards", "check", tmp_path / "mine.py")
        assert "is a Python file; expected a recipe" in said
        assert f"grpo-hf rewards test {tmp_path}/mine.py:FUNCTION" in said

    def test_what_a_run_advises_at_its_end_is_a_command(self, cli):
        commands = [line.split() for line in next_steps("runs/mine") if "grpo-hf" in line]
        assert len(commands) == 5
        for _, name, run, *_ in commands:
            assert run == "runs/mine"
            with pytest.raises(SystemExit) as left:
                cli(name, "--help")
            assert left.value.code == 0


class TestRewardsList:
    @pytest.mark.parametrize("width", [60, 200])
    def test_names_options_and_columns(self, cli, monkeypatch, width):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = cli("rewards", "list").splitlines()
        rows = {
            line.split()[0].partition("(")[0]: line for line in lines if not line.startswith(" ")
        }
        assert {"gsm8k", "answer_format", "overlong"} <= set(rows)
        assert rows["gsm8k"].split()[1] == "answer"
        assert "answer_format" in rows
        assert "max_length=512" in rows["overlong"] or width < 100
        assert "grpo-hf" in rows["gsm8k"]

    def test_what_cannot_be_used_says_why(self, cli, monkeypatch):
        broken = {"broken": lambda: None}
        monkeypatch.setattr("grpo_hf.scoring.registry._registered", broken)
        monkeypatch.setenv("COLUMNS", "200")
        assert "has the signature broken()" in cli("rewards", "list")


class TestRewardsTest:
    def test_completions_and_a_column(self, cli):
        flags = (
            "--completion",
            "so #### 42",
            "--completion",
            "#### 41",
            "--column",
            "answer=#### 42",
        )
        assert cli("rewards", "test", "gsm8k", *flags) == "1.000  'so #### 42'\n0.000  '#### 41'\n"

    def test_a_text_as_a_chat_model_gives_it(self, cli, tmp_path, capsys):
        (tmp_path / "mine.py").write_text(
            "def short(completions, **_):\n"
            "    return [float(len(each.strip()) < 9) for each in completions]\n"
        )
        command = ("rewards", "test", f"{tmp_path}/mine.py:short", "--completion", "Friday")
        assert cli(*command) == "1.000  'Friday'\n"
        with pytest.raises(SystemExit):
            cli(*command, "--messages")
        said = capsys.readouterr()
        assert "failed (exception)  'Friday'" in said.out
        assert "AttributeError: 'list' object has no attribute 'strip'" in said.err

    def test_file_of_completions(self, cli, tmp_path):
        rows = [
            {"completion": "#### 1\u2028", "answer": "1"},
            {"completion": "#### 2", "answer": 3},
        ]
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (tmp_path / "texts.jsonl").write_text(f"\ufeff{text}\n\n", encoding="utf-8")
        printed = cli("rewards", "test", "gsm8k", "--completions", tmp_path / "texts.jsonl")
        assert [line.split()[0] for line in printed.splitlines()] == ["1.000", "0.000"]

    def test_a_column_of_the_file_wins(self, cli, tmp_path):
        (tmp_path / "texts.jsonl").write_text(
            '{"completion": "#### 1", "answer": "1"}\n{"completion": "#### 2"}\n'
        )
        printed = cli(
            "rewards",
            "test",
            "gsm8k",
            "--completions",
            tmp_path / "texts.jsonl",
            "--column",
            "answer=2",
        )
        assert [line.split()[0] for line in printed.splitlines()] == ["1.000", "1.000"]

    def test_cannot_judge(self, cli):
        flags = ("--completion", "#### 42", "--column", "answer=unreadable")
        assert cli("rewards", "test", "gsm8k", *flags) == "cannot judge  '#### 42'\n"

    def test_options(self, cli):
        flags = ("--completion", " ".join(["word"] * 15))
        assert cli("rewards", "test", "overlong(max_length=20, cache=10)", *flags).startswith(
            "-0.500  "
        )

    @pytest.mark.parametrize("kind", ["def", "async def"])
    def test_reward_of_a_file(self, cli, tmp_path, kind):
        signature = "score(prompts, completions, gold, *, bonus=0)"
        body = "return [len(p) + gold[0] + bonus for p in prompts]"
        (tmp_path / "mine.py").write_text(f"{kind} {signature}: {body}\n")
        flags = ("--completion", "x", "--column", "gold=30", "--column", "prompt=abc")
        assert (
            cli("rewards", "test", f"{tmp_path}/mine.py:score(bonus=1)", *flags) == "34.000  'x'\n"
        )

    def test_column_that_is_missing(self, refused, tmp_path):
        text = refused("rewards", "test", "gsm8k", "--completion", "#### 42")
        assert text == (
            "error: reward 'gsm8k' needs the column 'answer': give --column answer=VALUE, or rows "
            "with it in --completions.\n"
        )
        (tmp_path / "texts.jsonl").write_text(
            '{"completion": "a", "answer": "1"}\n{"completion": "b"}\n'
        )
        assert "needs the column 'answer'" in refused(
            "rewards", "test", "gsm8k", "--completions", tmp_path / "texts.jsonl"
        )

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["gsm9k", "--completion", "x"], "reward 'gsm9k' is not known. Did you mean 'gsm8k'?"),
            (["gsm8k"], "no text to score: give --completion TEXT, or --completions FILE"),
            (
                ["gsm8k", "--completion", "x", "--column", "answer"],
                "--column answer: expected NAME=VALUE",
            ),
            (["gsm8k", "--completions", "nowhere.jsonl"], "nowhere.jsonl cannot be read ("),
        ],
    )
    def test_mistakes(self, refused, arguments, message):
        assert message in refused("rewards", "test", *arguments)

    @pytest.mark.parametrize(
        "content, message",
        [
            ('{"completion": "a"}\n{"completion": \n', "texts.jsonl:2: not JSON (Expecting value)"),
            ('{"completion": "a"}\n[1]\n', "texts.jsonl:2: expected an object, got list"),
            ("null\n", "texts.jsonl:1: expected an object, got NoneType"),
            ('{"text": "a"}\n', "no text to score"),
            ("", "no text to score"),
            (b"\xff\xfe", "texts.jsonl cannot be read ("),
        ],
    )
    def test_file_that_does_not_fit(self, refused, tmp_path, content, message):
        file = tmp_path / "texts.jsonl"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        assert message in refused("rewards", "test", "overlong", "--completions", file)

    def test_what_a_reward_returns_is_checked(self, refused, tmp_path):
        (tmp_path / "mine.py").write_text("def score(completions): return [1.0] * 3\n")
        text = refused(
            "rewards", "test", f"{tmp_path}/mine.py:score", "--completion", "a", "--completion", "b"
        )
        assert "score failed (wrong length): it returned 3 values for 1 completion" in text


class TestPlot:
    @pytest.fixture
    def finished(self, tmp_path):
        rows = [
            {"step": n, "reward": n / 4, "rewards/gsm8k/mean": n / 4, "kl": 0.01 * n}
            for n in (1, 2, 3)
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    def test_png_and_svg(self, cli, finished):
        picture = finished / "rewards.png"
        assert cli("plot", finished, picture) == f"{picture}\n"
        assert picture.read_bytes().startswith(PNG)
        assert picture.stat().st_size > 5000
        cli("plot", finished, finished / "rewards.svg")
        assert "<svg" in (finished / "rewards.svg").read_text()

    def test_a_torn_line_is_left_out(self, cli, finished, caplog):
        log = finished / "metrics.jsonl"
        log.write_text(log.read_text() + '{"step": 4, "rewa')
        cli("plot", finished, finished / "rewards.svg")
        assert f"{log} has torn lines, which are left out: number 4." in caplog.text

    @pytest.mark.parametrize("ending", ["svg", "png"])
    def test_a_picture_that_cannot_be_written(self, refused, finished, ending):
        picture = finished / "no" / f"rewards.{ending}"
        text = refused("plot", finished, picture)
        assert f"{picture} cannot be written (No such file or directory)." in text

    def test_folder_that_is_no_run(self, refused, tmp_path):
        text = refused("plot", tmp_path, tmp_path / "rewards.png")
        assert f"{tmp_path} is not the output folder of a run: it has no metrics.jsonl." in text
        assert not (tmp_path / "rewards.png").exists()

    def test_an_ending_that_cannot_be_drawn(self, refused, finished):
        assert "expected a name that ends in .png, .svg or .pdf." in refused(
            "plot", finished, "x.gif"
        )


class TestCredit:
    @pytest.fixture
    def finished(self, tmp_path):
        (tmp_path / "metrics.jsonl").touch()
        with (tmp_path / "credit.jsonl").open("w") as file:
            for step, word in [(5, "cut"), (10, "ten"), (5, "five"), (10, "ten\u2028")]:
                one = {
                    "tokens": [word, "<|end|>"],
                    "advantages": [0.5, -0.5],
                    "special": [1],
                    "reward": 1.0,
                }
                print(
                    json.dumps({"step": step, "prompt": "How many?", "completions": [one]}),
                    file=file,
                )
        return tmp_path

    def test_the_last_step_or_one_of_them(self, cli, finished):
        last, fifth = cli("credit", finished), cli("credit", finished, "--step", "5")
        assert "step 10 " in last and "ten\u2028│<|end|>" in last
        assert "step 5 " in fifth and "five│<|end|>" in fifth and "How many?" in fifth

    def test_a_page(self, cli, refused, finished):
        page = finished / "credit.html"
        assert cli("credit", finished, "--html", page, "--step", "5") == f"{page}\n"
        written = page.read_bytes()
        assert b">five</span>" in written and b"Step 10" not in written
        said = refused("credit", finished, "--html", page)
        assert f"{page} exists, and is not overwritten. Give --html another name." in said
        assert page.read_bytes() == written
        assert "cannot be written (No such file" in refused(
            "credit", finished, "--html", finished / "no" / "page.html"
        )

    def test_a_torn_line_is_left_out(self, cli, finished, caplog):
        with (finished / "credit.jsonl").open("a") as file:
            file.write('{"step": 11, "prompt": "How')
        assert "step 10 " in cli("credit", finished)
        assert "has torn lines, which are left out: number 5." in caplog.text

    def test_what_is_not_there(self, refused, finished):
        assert "has no step 7. Give --step one of 5, 10." in refused(
            "credit", finished, "--step", "7"
        )
        (finished / "credit.jsonl").unlink()
        assert "the run was made with log_credit false" in refused("credit", finished)
        (finished / "metrics.jsonl").unlink()
        assert f"{finished} is not the output folder of a run" in refused("credit", finished)


@pytest.mark.long
def test_what_takes_seconds_is_said_and_what_ends_at_once_is_not(tmp_path):
    program = "import sys; from grpo_hf.cli import main; main(sys.argv[1:])"

    def said(*arguments):
        command = [sys.executable, "-c", program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True).stderr

    (tmp_path / "mine.yaml").write_text("rewards: [gsm8k]\n")
    loading = "loading torch, transformers and trl ...\n"
    assert said("train", tmp_path / "mine.yaml", "--num_generations", "1").startswith(loading)
    assert said("settings", "beta") == loading
    assert loading not in said("eval", tmp_path / "none")
    run = write_run(tmp_path / "run")
    assert said("report", run) == "reading the run, drawing its charts ...\n"
