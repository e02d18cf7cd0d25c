"""The verb `demo`: the main job on a real model and real text, on a laptop's CPU, from nothing.

The teacher is SmolLM2-135M-Instruct from a package, the text Python's own documentation.  The token budget is fixed,
so that two machines do the same work.
"""

from pathlib import Path
from typing import Any

from tutelage import console
from tutelage.evaluation.show import Prompt
from tutelage.rundir import RunDirectory
from tutelage.verbs.train import Run, train

TOKENS = 32_768
TEACHER = "package:smollm2-135m-instruct"
IN_DOMAIN = "like the training text (documentation)"
OUT_OF_DOMAIN = "unlike the training text"
PROMPTS = (
    Prompt(text="The with statement is used to wrap the execution of a block with methods", domain=IN_DOMAIN),
    Prompt(text="Return a list of the names of", domain=IN_DOMAIN),
    Prompt(text="The capital of France is", domain=OUT_OF_DOMAIN),
    Prompt(text="My grandmother always told me that", domain=OUT_OF_DOMAIN),
)
_TEACHER_PARAMETERS, _STUDENT_PARAMETERS = 134_515_008, 99_115_200
_FIXED_S = 200.0  # conversion, importance of layers, evaluation, generation; measured on two cores


def recipe(*, tokens: int = TOKENS, seed: int = 0) -> dict[str, Any]:
    """The demo's recipe, to read and to change."""
    return {
        "teacher": TEACHER,
        "student": {"layers": 20},
        "data": {"sources": [{"python_docs": True}], "held_out": 0.05, "max_length": 256},
        "loss": [{"divergence": "forward_kl", "weight": 1.0, "temperature": 1.0}],
        "training": {
            "tokens": tokens,
            "batch_tokens": 2048,
            "learning_rate": 4e-4,
            "schedule": "wsd",
            "warmup": 0.1,
            "decay": 0.4,
            "save_every": 0.5,
            "keep": 2,
            "log_every": 4,
            "seed": seed,
        },
        "control": True,
        "evaluation": {"rows": 40, "out_of_domain": [{"python_source": True, "limit": 60}]},
    }


def demo(run_dir: str | Path = "runs/demo", *, tokens: int | None = None, seed: int = 0, force: bool = False) -> Run:
    """Distil SmolLM2-135M-Instruct into two thirds of its layers, and its control; the finished run."""
    written = recipe(tokens=tokens or TOKENS, seed=seed)
    if RunDirectory(run_dir).state() == "finished" and not force:
        return train(written, run_dir=run_dir, resume=True)  # the same demo is shown again, another one is refused
    console.say(
        f"tutelage demo: SmolLM2-135M-Instruct (30 layers) teaches a student of 20 layers on {tokens or TOKENS:,} "
        "tokens of Python's documentation, and the same student learns without it, as the control"
    )
    console.say(
        f"about {_minutes(tokens or TOKENS):.0f} minutes on this machine, after a download of 93 MB the first time"
    )
    return train(written, run_dir=run_dir, force=force, prompts=PROMPTS)


def _minutes(tokens: int) -> float:
    """What the demo will take here, from a product measured for a second."""
    from tutelage.planning.pace import products_here

    flops = tokens * (2 * _TEACHER_PARAMETERS + 2 * 6 * _STUDENT_PARAMETERS)
    return (flops / products_here().training_per_s + _FIXED_S) / 60
