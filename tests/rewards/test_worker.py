import json
import subprocess
import sys

START = {"id": 1, "path": "lit_align.rewards.answers.exact_match", "sys_path": sys.path}


def talk(*requests):
    """Answers to some requests, and what the process wrote to standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "lit_align.rewards.worker"],
        input="".join(json.dumps(one) + "\n" for one in requests),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_calls_are_answered_in_order_until_there_are_no_more():
    answers, _ = talk(
        START,
        {"id": 2, "arguments": {"completions": ["a", "b"], "answer": ["a", "a"]}},
        {"id": 3, "arguments": {"completions": ["a"], "answer": []}},
    )
    assert answers[:2] == [{"id": 1, "result": None}, {"id": 2, "result": [1.0, 0.0]}]
    assert answers[2]["id"] == 3
    assert answers[2]["error"].startswith("ValueError: zip()")


def test_what_a_function_prints_is_no_answer():
    answers, printed = talk({**START, "path": "builtins.print"}, {"id": 2, "arguments": {"end": "said\n"}})
    assert answers == [{"id": 1, "result": None}, {"id": 2, "result": None}]
    assert "said" in printed


def test_it_starts_without_what_its_function_does_not_need():
    code = "import sys, lit_align.rewards.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
