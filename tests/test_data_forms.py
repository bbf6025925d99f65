"""Question files of other projects: each form by its content, each fault by its place."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from searchrl.data.forms import read_dataset
from searchrl.data.jsonl import write_jsonl
from searchrl.data.questions import Question, read_questions
from searchrl.data.verl import question_from_verl, read_parquet, write_verl_parquet
from searchrl.errors import InputError
from searchrl.rewards.multiple_choice import chosen_option, mirage_accuracy
from searchrl.rewards.scoring import score_predictions
from tests.command_line import good, refused

pytest.importorskip("pyarrow")

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
needs_parquet = pytest.mark.skipif(
    not (SHARED / "parquet").is_dir(), reason="the shared data is not here"
)
VERL: dict[str, Any] = {
    "data_source": "nq",
    "prompt": [{"role": "user", "content": "Think. Question: Who?\n"}],
    "ability": "fact-reasoning",
    "reward_model": {"style": "rule", "ground_truth": {"target": ["Me", "I"]}},
    "extra_info": {"split": "train", "index": 7},
}
GUIDE = {
    "data_source": "sample",
    "prompt": "Who?",
    "ability": "search",
    "reward_model": "exact_match",
    "golden_answers": ["Me"],
}
MIRAGE = {
    "medqa": {"0001": {"question": "Which?", "options": {"A": "x", "B": "y: z"}, "answer": "B"}},
    "bioasq": {"1": {"question": "Is it?", "options": {"A": "yes", "B": "no"}, "answer": "A"}},
}
OUTPUTS = {
    "Who?": {"golden_answers": ["Me"], "context_with_info": "Doc 1 ...", "response_str": "..."},
    "What?": {"golden_answers": "That", "context_with_info": ""},
}


def write(path: Path, value: Any, indent: int | None = None) -> Path:
    path.write_text(json.dumps(value, indent=indent))
    return path


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def complaint(path: Path, source: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_dataset(path, source)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


class TestForms:
    def test_flashrag(self, tmp_path: Path) -> None:
        row = {"id": "train_0", "question": "Who?", "golden_answers": ["Me"]}
        path = lines(tmp_path / "a.jsonl", row | {"metadata": {"type": "bridge"}})
        assert read_dataset(path) == [Question("train_0", "Who?", ("Me",))]

    @pytest.mark.parametrize("indent", [None, 2])
    def test_rows_of_verl_in_every_wrapping(self, tmp_path: Path, indent: int | None) -> None:
        other = VERL | {"extra_info": {"index": 8}}
        expected = [Question(f"nq_{n}", "Who?", ("Me", "I"), "nq") for n in (7, 8)]
        assert read_dataset(lines(tmp_path / "a.jsonl", VERL, other)) == expected
        assert read_dataset(write(tmp_path / "a.json", [VERL, other], indent)) == expected
        assert read_dataset(write(tmp_path / "b.json", VERL, indent)) == expected[:1]
        packed = tmp_path / "a.jsonl.gz"
        packed.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
        assert read_dataset(packed) == expected

    @pytest.mark.parametrize(
        "truth",
        [
            {"target": ["Me", "I"]},
            {"target": np.array(["Me", "I"], dtype=object)},
            ["Me", "I"],
            np.array(["Me", "I"]),
        ],
    )
    def test_every_way_to_write_gold_answers(self, truth: Any) -> None:
        row = VERL | {"reward_model": {"style": "rule", "ground_truth": truth}}
        assert question_from_verl(row, "here").answers == ("Me", "I")

    @pytest.mark.parametrize("truth", [{"target": "Me"}, "Me", {"target": ["Me"]}])
    def test_one_gold_answer(self, truth: Any) -> None:
        row = VERL | {"reward_model": {"ground_truth": truth}, "golden_answers": ["other"]}
        assert question_from_verl(row, "here").answers == ("Me",)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"question": "What?"}, "What?"),
            ({"reward_model": {"ground_truth": {"question": "How?", "target": "x"}}}, "How?"),
            ({"extra_info": {"index": 1, "question": "Why?"}}, "Why?"),
            ({"prompt": "Plain?"}, "Plain?"),
            ({"prompt": [{"content": "Only this?"}]}, "Only this?"),
            ({"prompt": [{"content": "Question: a Question: b"}]}, "b"),
            ({"question": " ", "extra_info": {"index": 1}}, "Who?"),
        ],
    )
    def test_where_the_question_stands(self, change: dict[str, Any], text: str) -> None:
        assert question_from_verl(VERL | change, "here").text == text

    @pytest.mark.parametrize(
        ("change", "identifier"),
        [
            ({}, "nq_7"),
            ({"id": "train_3"}, "nq_train_3"),
            ({"id": "nq_3"}, "nq_3"),
            ({"id": 3}, "nq_3"),
            ({"id": "3", "extra_info": {"id": "mine"}}, "mine"),
        ],
    )
    def test_ids_of_merged_sources_stay_apart(
        self, change: dict[str, Any], identifier: str
    ) -> None:
        assert question_from_verl(VERL | change, "here").id == identifier

    def test_retrieval_asks_without_the_options_in_mirages_sets_alone(self, tmp_path: Path) -> None:
        text = "Which?\nOptions:\nA: x\nB: y\n"
        for source, query in (("medqa", "Which?"), ("nq", text)):
            row = VERL | {"data_source": source, "question": text}
            question = question_from_verl(row, "here")
            assert (question.text, question.query) == (text, query)
            outputs = {text: {"golden_answers": ["A: x"], "context_with_info": ""}}
            path = write(tmp_path / f"{source}_output_sequences.json", outputs)
            [question] = read_dataset(path)
            assert (question.text, question.query) == (text, query)
        assert question_from_verl(VERL | {"data_source": "medqa"}, "here").own_query == ""

    def test_the_guides_lines(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "a.jsonl", GUIDE, GUIDE | {"prompt": "What?"})
        assert read_dataset(path) == [
            Question("sample_1", "Who?", ("Me",), "sample", reward="exact_match"),
            Question("sample_2", "What?", ("Me",), "sample", reward="exact_match"),
        ]
        without = {key: value for key, value in GUIDE.items() if key != "golden_answers"}
        said = complaint(lines(tmp_path / "b.jsonl", GUIDE, without))
        assert "b.jsonl:2: no gold answer" in said

    @pytest.mark.parametrize("indent", [None, 1])
    def test_mirage(self, tmp_path: Path, indent: int | None) -> None:
        path = write(tmp_path / "benchmark.json", MIRAGE, indent)
        expected = [
            Question(
                "medqa_0001",
                "Which?\nOptions:\nA: x\nB: y: z",
                ("B: y: z",),
                "medqa",
                own_query="Which?",
            ),
            Question(
                "bioasq_1",
                "Is it?\nOptions:\nA: yes\nB: no",
                ("A: yes",),
                "bioasq",
                own_query="Is it?",
            ),
        ]
        assert read_dataset(path) == expected
        kept = lines(tmp_path / "kept.jsonl", *(question.to_row() for question in expected))
        assert read_dataset(kept) == read_questions(kept) == expected
        table = tmp_path / "kept.parquet"
        write_verl_parquet(table, expected, "test")
        assert read_dataset(table) == expected
        assert read_dataset(path, source="bioasq") == expected[1:]
        assert read_dataset(path, limit=1) == expected[:1]
        assert "no question of source 'mmlu'" in complaint(path, "mmlu")

    @pytest.mark.parametrize("indent", [None, 1])
    def test_output_sequences_of_s3(self, tmp_path: Path, indent: int | None) -> None:
        path = write(tmp_path / "hotpotqa_output_sequences.json", OUTPUTS, indent)
        assert read_dataset(path) == [
            Question("hotpotqa_1", "Who?", ("Me",), "hotpotqa"),
            Question("hotpotqa_2", "What?", ("That",), "hotpotqa"),
        ]

    def test_beir(self, tmp_path: Path) -> None:
        query = {"_id": "q1", "text": "Who?", "metadata": {"answer": "Me"}}
        path = lines(tmp_path / "queries.jsonl", query)
        assert read_dataset(path) == [Question("q1", "Who?", ("Me",))]
        said = complaint(lines(path, query, {"_id": "q2", "text": "What?", "metadata": {}}))
        assert "queries.jsonl:2" in said
        assert "evaluate-retrieval" in said

    @needs_parquet
    def test_real_rows_of_search_r1(self) -> None:
        train = read_dataset(SHARED / "parquet" / "search_r1_train.parquet")
        held_out = read_dataset(SHARED / "parquet" / "search_r1_val.parquet")
        assert Counter(q.source for q in train) == {"nq": 256, "hotpotqa": 256}
        assert len(held_out) == 112
        assert len({q.source for q in held_out}) == 7
        assert train[0].text == "volume of air lungs can hold at the end of maximum inhalation?"
        assert train[0].answers == ("about 6 litres",)
        # What stands in the prompt is the question too.
        for _, row in read_parquet(SHARED / "parquet" / "search_r1_val.parquet"):
            bare = {key: value for key, value in row.items() if key != "question"}
            asked = question_from_verl(bare, "here").text
            assert asked == row["question"].strip()


class TestFaults:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"data_source": 3}, "data_source"),
            ({"extra_info": "x"}, "extra_info"),
            ({"prompt": [], "extra_info": {"index": 1}}, "holds a question"),
            ({"prompt": [{"content": None}]}, "holds a question"),
            ({"reward_model": {"ground_truth": {"target": []}}}, "no gold answer"),
            ({"reward_model": {"ground_truth": {"target": [" "]}}}, "no gold answer"),
            ({"reward_model": {"ground_truth": {"target": {"a": 1}}}}, "ground_truth.target"),
            ({"reward_model": {"ground_truth": {"target": [None]}}}, "ground_truth.target"),
            ({"reward_model": None}, "no gold answer"),
            ({"golden_answers": 3, "reward_model": "em"}, "golden_answers"),
            ({"hops": "two"}, "hops"),
            ({"supporting_ids": 3}, "supporting_ids"),
        ],
    )
    def test_a_bad_row_of_verl(self, change: dict[str, Any], said: str, tmp_path: Path) -> None:
        text = complaint(lines(tmp_path / "a.jsonl", VERL, VERL | change))
        assert text.startswith(f"{tmp_path / 'a.jsonl'}:2: ")
        assert said in text

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"question": ""}, "question"),
            ({"options": None}, "options"),
            ({"options": {"A": 1}}, "options"),
            ({"answer": "E"}, "letter of an option"),
            ({"answer": None}, "letter of an option"),
        ],
    )
    def test_a_bad_entry_of_mirage(self, change: dict[str, Any], said: str, tmp_path: Path) -> None:
        tree = json.loads(json.dumps(MIRAGE))
        tree["bioasq"]["1"] |= change
        text = complaint(write(tmp_path / "a.json", tree))
        assert "bioasq: 1" in text
        assert said in text

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "{}",
            "[]",
            "[1]",
            "3",
            '"text"',
            "{",
            "[",
            '{"a": 1}',
            '{"a": {"b": 1}}',
            '[{"a": 1}]',
            "PAR1 and then nothing",
            '{"id": "1", "question": "?", "golden_answers": ["x"]}\n' * 2,
            '{"id": "1", "question": "?", "golden_answers": ["x"]}\n{"id": "2"\n',
        ],
    )
    def test_what_is_no_question_file_is_named(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text(content)
        complaint(tmp_path / "a.json")

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        assert "no such file" in complaint(tmp_path / "absent.parquet")

    def test_a_damaged_table_never_reads_as_something_else(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        asked = [Question(str(n), "Who?", ("Me",)) for n in range(20)]
        write_verl_parquet(path, asked, "train")
        whole = path.read_bytes()
        for size in (3, 4, 8, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            complaint(path)


text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)
questions = st.builds(
    Question,
    id=text,
    text=text,
    answers=st.lists(text, min_size=1, max_size=3).map(tuple),
    source=text,
    gold_ids=st.lists(text, max_size=2).map(tuple),
    hops=st.integers(0, 4),
)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(questions, min_size=1, max_size=4, unique_by=lambda q: q.id))
def test_what_is_written_for_verl_is_read_back(tmp_path: Path, asked: list[Question]) -> None:
    path = tmp_path / "a.parquet"
    assert write_verl_parquet(path, asked, "test", "Think first.") == len(asked)
    assert read_dataset(path) == asked
    rows = [row for _, row in read_parquet(path)]
    for index, (row, question) in enumerate(zip(rows, asked, strict=True)):
        [message] = row["prompt"]
        assert message["role"] == "user"
        assert message["content"] == f"Think first. Question: {question.text}\n"
        assert row["reward_model"]["ground_truth"]["target"] == list(question.answers)
        assert (row["extra_info"]["split"], row["extra_info"]["index"]) == ("test", index)


def test_no_half_table_is_left_behind(tmp_path: Path) -> None:
    def broken() -> Any:
        yield Question("1", "Who?", ("Me",))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_verl_parquet(tmp_path / "a.parquet", broken(), "train")
    assert list(tmp_path.iterdir()) == []


class TestMultipleChoice:
    @pytest.mark.parametrize(
        ("reply", "letter"),
        [
            ("B", "B"),
            (" C ", "C"),
            ("B or C", "B"),
            ("D and A", "D"),
            ("A/B", "A"),
            ("C, because", "C"),
            ("I choose option D: A is wrong", "D"),
            ("Option B", "B"),
            ("The answer is: C", "C"),
            ("D. Aspirin", "D"),
            ("B: yes", "B"),
            ('{"step": "A: no", "answer_choice": "C"}', "C"),
            ('"answer_choice": "A" and then "answer_choice": "B. x"', "B"),
            ("b", None),
            ("The answer is C", None),
            ("E", None),
            ("", None),
        ],
    )
    def test_the_option_a_reply_chose(self, reply: str, letter: str | None) -> None:
        assert chosen_option(reply) == letter
        for option in "ABCD":
            expected = float(option == (letter or "A"))
            assert mirage_accuracy(reply, [f"{option}: text"]) == expected

    def test_it_is_a_metric_by_name(self) -> None:
        asked = [Question("1", "?", ("B: y",)), Question("2", "?", ("C: z",))]
        table = score_predictions({"1": "B.", "2": "D."}, asked, ["mirage_accuracy"])
        assert table.means == {"mirage_accuracy": 0.5}


class TestConvert:
    def test_there_and_back(self, tmp_path: Path) -> None:
        benchmark = write(tmp_path / "benchmark.json", MIRAGE)
        out, table = tmp_path / "q.jsonl", tmp_path / "q.parquet"
        told = good("data", "convert", benchmark, "--to", out, "--json").json
        assert told == {"path": str(out), "questions": 2, "sources": ["bioasq", "medqa"]}
        good("data", "convert", out, "--to", table, "--split", "test", "--instruction", "Think.")
        assert read_dataset(table) == read_questions(out) == read_dataset(benchmark)
        one = good("data", "convert", benchmark, "--to", out, "--source", "medqa").stdout
        assert one == f"{out}: 1 questions of medqa\n"

    def test_a_bad_file_ends_in_one_line_and_writes_nothing(self, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "a.jsonl", [VERL, {"id": 1}])
        said = refused("data", "convert", tmp_path / "a.jsonl", "--to", tmp_path / "b.jsonl")
        assert "a.jsonl:2" in said
        assert not (tmp_path / "b.jsonl").exists()
