"""Tests of the page of a run: that it is whole, and harmless."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from support.pages import Page
from support.run_folders import (
    HOSTILE,
    write_evaluation,
    write_over_time,
    write_run,
)

from grpo_hf.errors import ConfigError, DataError, OutputExistsError
from grpo_hf.reporting.gaming import findings
from grpo_hf.run_report.charts import chart_of
from grpo_hf.run_report.curves import panels_of, usual_value
from grpo_hf.run_report.facts import figures
from grpo_hf.run_report.page import write_plot, write_report
from grpo_hf.run_report.record import read_runs
from grpo_hf.run_report.result_charts import accuracy_chart, at_k_chart
from grpo_hf.runs import finished

# Elements that the page has no use for, and attributes by which one is loaded.
LOADING_TAGS = {"img", "link", "iframe", "object", "embed", "video", "audio", "source", "base"}
LOADING_ATTRIBUTES = {"src", "srcset", "data", "action", "poster", "background"}
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page((run / "report.html").read_text())


def again(run: Path, *, first_right: bool = True) -> None:
    """Write an evaluation of the held-out prompts that judges the answers of a run again."""
    write_evaluation(run, "held_out")
    rows = []
    for row in map(json.loads, (run / "evaluation.jsonl").read_text().splitlines()):
        line = {"prompt": row["prompt"]}
        for side in ("base", "adapter"):
            line[side] = {"greedy": row[side]["answer"], "greedy_right": row[side]["right"]}
        rows.append(line)
    rows[0]["base"]["greedy_right"] = first_right
    lines = [json.dumps(row) + "\n" for row in rows]
    (run / "evaluations" / "held_out.jsonl").write_text("".join(lines))
    file = run / "evaluations" / "held_out.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"problems": 8}))


class TestPage:
    @pytest.mark.long
    def test_it_says_whether_it_got_better(self, page: Page):
        # 7 of 8 against 4 of 8.
        assert "On 8 held-out prompts, 50.0% of the base's answers are right and 87.5%" in page.text
        assert "+37.5 points" in page.text and "svamp" in page.text
        assert "+20.0 points (+15.0 to +25.0)" in page.text and "– sums" in page.text
        for kind, count in (("Right only with the adapter", 3), ("Wrong with both", 1)):
            assert re.search(rf"{kind}\s+{count}\b", page.text)

    @pytest.mark.long
    def test_prompts_that_were_trained_on_are_named_at_the_verdict(self, tmp_path: Path):
        run = write_run(tmp_path / "run")
        rows = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
        for place, row in enumerate(rows):
            row["in_training"] = place < 3
        (run / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = Page(write_report([run], pictures=False).read_text()).text
        assert text.count("3 of 8 held-out prompts are also in the training data.") == 2

    def test_a_reward_that_calls_every_answer_right_cannot_tell(self, tmp_path: Path):
        run = write_run(tmp_path / "run")
        rows = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
        for row in rows:
            row["base"]["right"] = row["adapter"]["right"] = True
        (run / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = Page(write_report([run], pictures=False).read_text()).text
        assert "The reward gives its full mark, 1.0, to all answers, so this says nothing" in text
        assert "no difference that so few prompts can show" not in text

    @pytest.mark.long
    def test_answers_that_were_judged_again_stand_once(self, tmp_path: Path):
        run = write_run(tmp_path / "run")
        again(run)
        text = Page(write_report([run], pictures=False).read_text()).text
        assert "On 8 held-out prompts" in text and "held_out" not in text
        assert text.count("The answers on held-out prompts") == 1
        assert "pass@k" in text

    def test_answers_that_were_judged_otherwise_stand_apart(self, tmp_path: Path):
        run = write_run(tmp_path / "run")
        again(run, first_right=False)
        text = Page(write_report([run], pictures=False).read_text()).text
        assert "The answers on held-out prompts" in text
        assert "The answers on held_out, by grpo-hf eval" in text

    def test_a_chart_names_only_what_it_shows(self):
        rows = []
        for series in ("base pass@k", "adapter pass@k"):
            for k in (1, 2, 3, 4):
                rows.append({"series": series, "k": k, "value": 0.5, "low": 0.4, "high": 0.6})
        chart = at_k_chart("mine", rows)
        assert chart.title == "pass@k on mine" and "Here they cannot" in chart.caption
        drawn = chart.svg()
        assert all(f">{k}</text>" in drawn for k in (1, 2, 3, 4))
        votes = [row | {"series": row["series"].replace("pass", "maj")} for row in rows]
        assert at_k_chart("mine", rows + votes).title == "pass@k and maj@k on mine"

    @pytest.mark.parametrize(("low", "high"), [(0.31, 0.62), (0.0, 0.97), (0.05, 0.95), (0.9, 1.0)])
    def test_shares_have_even_ticks_and_whole_labels(self, low: float, high: float):
        rows = []
        for name in ("a_long_name: held-out prompts", "another: held-out prompts, by grpo-hf eval"):
            for model in ("base", "adapter"):
                interval = {"value": (low + high) / 2, "low": low, "high": high}
                rows.append({"set": name, "model": model} | interval)
        drawn = accuracy_chart(rows).svg()
        assert ">a_long_name<" in drawn.replace("</tspan>", "<") and ">held-out prompts<" in drawn
        ticks = sorted({int(found) for found in re.findall(r">(\d+)%</text>", drawn)})
        steps = {after - before for before, after in pairwise(ticks)}
        assert len(steps) == 1 and 2 <= len(ticks) <= 7

    def test_a_kl_of_rounding_is_none(self, tmp_path: Path):
        run = write_run(tmp_path / "run")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lines = [json.dumps(row | {"kl": -5.99e-10} if "kl" in row else row) for row in rows]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        (record,) = read_runs([run])
        assert ("KL of a step, median", "0", "largest 0") in figures(record)

    def test_a_reward_is_that_of_several_steps(self, tmp_path: Path):
        run = write_run(tmp_path / "run")
        rows = [{"step": step, "reward": float(step % 2)} for step in range(1, 33)]
        rows[-1]["reward"] = 5.0
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (record,) = read_runs([run])
        assert ("reward", "1.75", "from 0.5, means of 4 steps") in figures(record)

    def test_a_run_under_way_says_of_how_many_steps(self, tmp_path: Path):
        run = write_run(tmp_path / "run")
        starts = [{"time": "2026-01-01T00:00:00+00:00", "settings": {"max_steps": 40}}]
        (run / "environment.jsonl").write_text(json.dumps(starts[0]) + "\n")
        rows = [{"step": step, "reward": 0.5} for step in range(1, 10)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (record,) = read_runs([run])
        assert figures(record)[0][:2] == ("steps", "9 of 40")

    @pytest.mark.long
    def test_a_sign_of_gaming_says_what_to_try(self, page: Page):
        assert "Lower its weight." in page.text

    def test_it_has_the_curves(self, page: Page):
        ids = {value.removeprefix("chart-") for value in page.values("id")}
        wanted = {"rewards", "kl", "entropy", "lengths", "signal", "clipping", "gradient", "time"}
        assert wanted | {"throughput", "accuracy", "at_k_svamp", "held_out"} <= ids

    def test_a_quiet_curve_is_seen_under_a_loud_one(self, tmp_path: Path):
        """The largest KL of a token is hundreds of times the median; at step 0 it may be -1e-10."""
        rows = []
        for step in range(1, 9):
            kl = {"kl": 0.02 * step - 0.02 - 1e-10, "kl/median": 0.001 * step, "kl/max": 30 * step}
            rows.append(json.dumps({"step": step} | kl) + "\n")
        (tmp_path / "metrics.jsonl").write_text("".join(rows))
        (panel,) = panels_of(read_runs([tmp_path]))
        assert usual_value(panel.curves) == pytest.approx(0.0045)
        chart = chart_of(panel)
        scale = chart.spec["layer"][0]["encoding"]["y"]["scale"]
        assert scale["type"] == "symlog" and "logarithmic" in chart.caption

    def test_what_never_changes_has_no_chart(self, tmp_path: Path):
        def names(clipped: float, kept: float) -> dict[str, list[str]]:
            rows = []
            for step in (1, 2, 3):
                row = {"step": step, "clip_ratio/low_mean": 0.0, "clip_ratio/high_mean": clipped}
                row |= {"signal/kept_fraction": kept, "completions/clipped_ratio": 0.5}
                rows.append(json.dumps(row) + "\n")
            (tmp_path / "metrics.jsonl").write_text("".join(rows))
            panels = panels_of(read_runs([tmp_path]))
            return {panel.name: [curve.label for curve in panel.curves] for panel in panels}

        assert names(0.0, 1.0) == {"signal": ["cut off"]}
        spoken = names(0.1, 0.5)
        assert spoken["clipping"] == ["low", "high"] and "rows computed" in spoken["signal"]

    def test_charts_are_of_one_size(self, run: Path):
        sizes = {picture.read_bytes()[16:24] for picture in (run / "report").glob("*.png")}
        assert len(sizes) == 1

    def test_spikes_are_folded_before_what_it_writes(self, page: Page, run: Path):
        text = (run / "report.html").read_text()
        folded, _, rest = text.partition("<summary>Spikes of the KL")
        assert folded.rstrip().endswith("<details>") and '<section id="samples">' in rest
        assert "wall time of training" in page.text

    def test_it_says_how_it_was_run(self, page: Page):
        for text in ("python", "learning_rate", "0.0001", "torch 2", "clip_ratio/low_mean"):
            assert text in page.text

    def test_steps_have_their_advantages(self, page: Page):
        spans = [attrs for tag, attrs in page.tags if tag == "span" and attrs.get("style")]
        assert {"up", "down"} <= {attrs["class"].split()[0] for attrs in spans}
        # The first step earned 1.0, which is full colour, and the tokens after it 0.5.
        assert {"--s:1.00", "--s:0.50", "--s:0.70"} <= {attrs["style"] for attrs in spans}
        assert "2 + 2\nstep 0.9: +1#### 4step 0.25" in page.text

    @pytest.mark.long
    def test_held_out_prompts_are_shown_over_time(self, tmp_path: Path):
        run = write_run(tmp_path / "run")
        write_over_time(run, [1, 2, 3, 2, 4])
        page = Page(write_report([run], pictures=False).read_text())
        marks = {}
        for tag, attrs in page.tags:
            if tag == "article" and "over-time" in attrs["id"]:
                marks[attrs["id"]] = attrs["class"].split()[-1]
        # The steps from 2 on were made again, so 3 is gone.
        for prompt in (1, 2):
            of_prompt = f"r1-over-time-{prompt}-"
            found = {id: mark for id, mark in marks.items() if id.startswith(of_prompt)}
            assert list(found.items()) == [
                (f"{of_prompt}base", "mark-wrong"),
                (f"{of_prompt}step-1", "mark-wrong"),
                (f"{of_prompt}step-2", "mark-right"),
                (f"{of_prompt}step-4", "mark-right"),
            ]
        assert len(marks) == 8
        assert f"Prompt 4, right is {HOSTILE}" in page.text and "What is 3?" in page.text
        assert "base, cut off before its end" in page.text
        assert "the adapter at evaluations 2" in " ".join(page.text.split())

    @pytest.mark.long
    def test_of_many_evaluations_some_are_shown(self, tmp_path: Path):
        run = write_run(tmp_path / "run")
        write_over_time(run, range(5, 500, 5), prompts=1)
        ids = Page(write_report([run], pictures=False).read_text()).values("id")
        steps = [int(id.rpartition("-")[2]) for id in ids if "over-time-1-step" in id]
        assert len(steps) == 8 and (steps[0], steps[-1]) == (5, 495)

    def test_without_evaluations_nothing_is_shown_over_time(self, page: Page):
        assert "Held-out prompts over time" not in page.text
        assert not [id for id in page.values("id") if "over-time" in id]

    def test_a_spike_is_named_by_its_token(self, page: Page):
        assert 'KL 17 at step 5 comes from one token: "9" after "= "' in page.text
        assert "r1-spike-1-1" in page.values("id")

    def test_links_lead_to_what_is_there(self, page: Page):
        ids = page.values("id")
        assert len(ids) == len(set(ids))
        links = [value for value in page.values("href") if value.startswith("#")]
        assert "#r1-finding-1-2" in links and {link[1:] for link in links} <= set(ids)


class TestHarmless:
    def test_nothing_that_a_model_wrote_is_html(self, page: Page):
        assert HOSTILE in page.text
        tags = [tag for tag, _ in page.tags]
        assert tags.count("script") == 1 and "img" not in tags
        assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)

    def test_nothing_is_loaded(self, run: Path, page: Page):
        text = (run / "report.html").read_text()
        assert not LOADING_TAGS & {tag for tag, _ in page.tags}
        assert not LOADING_ATTRIBUTES & {name for _, attrs in page.tags for name in attrs}
        assert all(link.startswith("#") for link in page.values("href"))
        assert "url(" not in text and "@import" not in text
        # Names of XML, which nobody fetches.
        assert set(re.findall(r"https?://[\w./]+", text)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }

    def test_names_of_rewards_are_texts_of_a_chart(self, tmp_path: Path):
        rows = []
        for step in (1, 2):
            rewards = {f"rewards/{HOSTILE}/mean": 0.1 * step, "rewards/b/mean": 0.5}
            rows.append(json.dumps({"step": step, "reward": step} | rewards))
        (tmp_path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
        write_report([tmp_path], pictures=False)
        page = Page((tmp_path / "report.html").read_text())
        assert [tag for tag, _ in page.tags].count("script") == 1
        assert "img" not in {tag for tag, _ in page.tags}


class TestFiles:
    def test_pictures_lie_beside_the_page(self, run: Path):
        names = {file.stem for file in (run / "report").iterdir()}
        assert {"rewards", "kl", "time", "accuracy", "at_k_svamp"} <= names
        for file in (run / "report").iterdir():
            assert file.read_bytes().startswith(PNG) and file.stat().st_size < 200_000

    @pytest.mark.long
    def test_it_is_written_anew_but_not_over_another_file(self, run: Path, tmp_path: Path):
        write_report([run], pictures=False)
        own = tmp_path / "mine.html"
        own.write_text("mine")
        with pytest.raises(OutputExistsError, match=r"mine\.html is no report"):
            write_report([run], own)
        assert own.read_text() == "mine"
        with pytest.raises(OutputExistsError, match="cannot be written"):
            write_report([run], run / "metrics.jsonl" / "page.html")

    def test_a_run_that_has_only_metrics_has_a_page(self, tmp_path: Path):
        ended = '{"step": 1, "train_runtime": 2.0}\n'
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n' + ended)
        page = Page(write_report([tmp_path], pictures=False).read_text())
        assert "nothing was evaluated" in page.text and "kept no rollouts" in page.text

    @pytest.mark.parametrize("content", [None, "", '{"step": 3, "train_runtime": 1.0}\n'])
    def test_a_folder_without_a_step_has_none(self, tmp_path: Path, content: str | None):
        if content is not None:
            (tmp_path / "metrics.jsonl").write_text(content)
        with pytest.raises(DataError, match=r"metrics\.jsonl"):
            write_report([tmp_path])
        assert not (tmp_path / "report.html").exists()

    def test_files_of_another_form_count_as_empty(self, tmp_path: Path):
        folder = write_run(tmp_path / "run", steps=3)
        (folder / "recipe.yaml").write_text("- a list")
        (folder / "gaming.json").write_text("{torn")
        (folder / "evaluations").mkdir()
        (folder / "evaluations" / "a.json").write_text('{"base": {"accuracy": null}}')
        (folder / "evaluations" / "b.json").write_text("[1]")
        with (folder / "credit.jsonl").open("a") as file:
            file.write('{"step": 9}\n{"torn')
        with (folder / "evaluation.jsonl").open("a") as file:
            file.write('{"prompt": "another"}\n')
        odd = [{"step": 1}, {"step": 2, "rows": [1, {}, {"adapter": "text"}]}, {"rows": []}]
        lines = "".join(json.dumps(row) + "\n" for row in odd)
        (folder / "answers_over_time.jsonl").write_text(lines)
        assert "8 held-out prompts" in write_report([folder], pictures=False).read_text()

    @pytest.mark.long
    def test_a_run_on_which_no_watch_has_looked_is_looked_at(self, tmp_path: Path):
        folder = write_run(tmp_path / "run")
        page = Page(write_report([folder], pictures=False).read_text())
        assert "could not be looked at" not in page.text
        assert ("Nothing was found." in page.text) == (findings(folder) == [])

    @pytest.mark.long
    def test_a_long_run_has_a_light_page(self, tmp_path: Path):
        folder = write_run(tmp_path / "run", steps=2000)
        page = write_report([folder], pictures=False)
        assert page.stat().st_size < 600_000
        # The single peak is there though only one point of eight is drawn.
        assert "largest 17" in page.read_text()

    def test_a_plot_is_one_of_the_charts(self, run: Path, tmp_path: Path):
        write_plot(run, tmp_path / "curve.svg")
        picture = (tmp_path / "curve.svg").read_text()
        for text in ("gsm8k", "answer_format", "KL divergence", "step"):
            assert text in picture
        assert "var(" not in picture
        write_plot(run, tmp_path / "curve.pdf")
        assert (tmp_path / "curve.pdf").read_bytes().startswith(b"%PDF")
        with pytest.raises(ConfigError):
            write_plot(run, tmp_path / "curve.gif")

    def test_a_plot_of_a_long_run_names_each_line_once(self, tmp_path: Path):
        """Its lines are told apart by their dashes, which had a legend for both charts as well."""
        write_plot(write_run(tmp_path / "run", steps=80), tmp_path / "curve.svg")
        picture = (tmp_path / "curve.svg").read_text()
        for name in ("gsm8k", "weighted sum"):
            assert picture.count(f">{name}<") == 1


class TestSeveralRuns:
    @pytest.mark.long
    def test_other_rewards_and_other_prompts_are_said(self, tmp_path: Path):
        first = write_run(tmp_path / "a", rewards=["../one.py:right", "answer_format"])
        second = write_run(tmp_path / "b", rewards=["../two.py:right"])
        text = Page(write_report([first, second], pictures=False).read_text()).text
        assert "judged by different rewards" in text and "two.py:right" in text
        assert "different held-out prompts" not in text
        # By another path the same file.
        third = write_run(tmp_path / "deep" / "c", rewards=["../../one.py:right"])
        lines = (third / "evaluation.jsonl").read_text().splitlines(keepends=True)
        (third / "evaluation.jsonl").write_text("".join(lines[:4]))
        text = Page(write_report([first, third], pictures=False).read_text()).text
        assert "different rewards" not in text
        assert "(a: 8, c: 4; 4 are common to all)" in text

    def test_a_run_beside_itself_is_one_run(self, tmp_path: Path):
        run = write_run(tmp_path / "a")
        page = write_report([run, tmp_path / "." / "a"], pictures=False)
        assert page == run / "report.html" and "2 runs" not in page.read_text()

    @pytest.mark.long
    def test_they_lie_beside_each_other(self, run: Path, tmp_path: Path):
        other = write_run(tmp_path / "other" / "demo", learning_rate=5e-4)
        page_file = write_report([run, other], pictures=False)
        assert page_file == run / "comparison.html"
        page = Page(page_file.read_text())
        assert f"{run.parent.name}/demo" in page.text and "other/demo" in page.text
        assert re.search(r"learning_rate\s*0\.0001\s*0\.0005", page.text)
        assert "chart-rewards_gsm8k" in page.values("id")
        ids = page.values("id")
        assert len(ids) == len(set(ids))


def test_a_run_shorter_than_logging_steps_is_told_why_it_has_no_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "train_runtime": 1.0}\n')
    assert finished.report(tmp_path) is None
    (said,) = caplog.messages
    assert "The run ended at step 5, before the first one that logging_steps logs" in said
    assert "--logging_steps 1" in said and "another try" not in said
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="Ask again once the run has logged one"):
        write_report([tmp_path])
