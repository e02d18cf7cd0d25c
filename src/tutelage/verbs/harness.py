"""`tutelage evaluate RUN --tasks …`: the models of a run through EleutherAI's lm-evaluation-harness.

The harness is an extra.  Its own tasks download their questions; with a folder of task files (YAML, whose
`dataset_path: json` names local files) nothing is fetched.  Task files are code to the harness: templates and
`!function` in them run, so they must be the user's own or trusted.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from tutelage import console
from tutelage.errors import ConfigError, IntegrityError, ResourceError, TutelageError, is_out_of_memory
from tutelage.evaluation.harness import Answer
from tutelage.models.placement import device_of

_BATCH = 8


def ask(
    models: Mapping[str, nn.Module],
    tokenizer: Any,
    *,
    tasks: Sequence[str],
    task_files: Path | None = None,
    limit: int | None = None,
) -> list[Answer]:
    """The answers of every model to every question (the first `limit` of each task).

    Raises ConfigError[MISSING_EXTRA] without the harness, ConfigError[CONFIG] for a task that it does not know, and
    IntegrityError[DATA_READ] when the questions of one cannot be read, IntegrityError[HARNESS] when it fails otherwise.
    """
    evaluator, manager_type, model_type = _imported()
    with _quiet():
        manager = manager_type(include_path=str(task_files) if task_files is not None else None)
        _require_known(manager, tasks, task_files)
        found = []
        for name, model in models.items():
            console.say(f"asking {name}: {', '.join(tasks)}")
            device = str(device_of(model))
            wrapped = model_type(pretrained=model, tokenizer=tokenizer, batch_size=_BATCH, device=device)
            result = _evaluated(evaluator, wrapped, tasks=tasks, manager=manager, limit=limit)
            found += [one for task, of_task in result["samples"].items() for one in _answers(task, name, of_task)]
    return found


def _evaluated(evaluator: Any, model: Any, *, tasks: Sequence[str], manager: Any, limit: int | None) -> Any:
    try:
        return evaluator.simple_evaluate(
            model=model, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=True
        )
    except TutelageError:
        raise
    except Exception as error:  # the templates and functions of a task may raise anything
        raise _failure(error, tasks) from error


def _failure(error: Exception, tasks: Sequence[str]) -> TutelageError:
    """Questions that cannot be read, memory, or whatever else went wrong inside the harness."""
    said = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
    on = f"the harness failed on {', '.join(tasks)}"
    if is_out_of_memory(error):
        return ResourceError("MEMORY", f"{on}: out of memory; end other programs, or ask for one task at a time")
    if isinstance(error, OSError | ValueError | KeyError):
        return IntegrityError(
            "DATA_READ",
            f"{on} ({said}); without a connection give task files whose questions are on this machine: "
            "--task-files FOLDER",
        )
    return IntegrityError("HARNESS", f"{on} ({said}); repair the task's file, or leave the task out of --tasks")


def _require_known(manager: Any, tasks: Sequence[str], task_files: Path | None) -> None:
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        where = f" or in {task_files}" if task_files is not None else "; name a folder of task files: --task-files"
        raise ConfigError("CONFIG", f"--tasks: {', '.join(unknown)} is no task of the harness{where}")


def _answers(task: str, model: str, samples: Sequence[Mapping[str, Any]]) -> Iterator[Answer]:
    """One for each question: the harness gives a sample for each filter of the task, whose metrics are named by it."""
    by_question: dict[int, list[Mapping[str, Any]]] = {}
    for sample in samples:
        by_question.setdefault(int(sample["doc_id"]), []).append(sample)
    for of_question in by_question.values():
        yield _answer(task, model, of_question)


def _answer(task: str, model: str, filtered: Sequence[Mapping[str, Any]]) -> Answer:
    """Of a question with choices the likeliest one, as the harness' own accuracy takes it."""
    sample = filtered[0]
    metrics = {
        m if len(filtered) == 1 else f"{m},{one.get('filter', '')}": float(one[m])
        for one in filtered
        for m in one["metrics"]
        if isinstance(one.get(m), int | float)
    }
    said = sample["filtered_resps"]
    are_choices = len(said) > 1 and all(isinstance(one, list | tuple) and len(one) == 2 for one in said)
    logp = [float(one[0]) for one in said] if are_choices else []
    return Answer(
        task=task,
        model=model,
        question=int(sample["doc_id"]),
        metrics=metrics,
        chosen=max(range(len(logp)), key=logp.__getitem__) if logp else -1,
        n_choices=len(logp),
    )


def _imported() -> tuple[Any, Any, Any]:  # a package without types
    try:
        from lm_eval import evaluator
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            "MISSING_EXTRA", f'--tasks needs lm-eval ({error.name}); run: pip install "tutelage[tasks]"'
        ) from None
    return evaluator, TaskManager, HFLM


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness says at every step what it does."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
