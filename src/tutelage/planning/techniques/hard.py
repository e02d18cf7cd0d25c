"""Hard labels: the teacher writes, the students train on its text."""

from tutelage.planning.facts import Facts
from tutelage.planning.techniques._needs import a_teacher as impossible
from tutelage.planning.work import Work

__all__ = ["TITLE", "impossible", "work"]

TITLE = "text that the teacher writes"


def work(facts: Facts) -> Work:
    """As much text as the data hold, each begun by the data and gone on with by the teacher."""
    prompt = facts.prompt_share * facts.text.unique
    return Work(student_training=facts.text.trained, prompt=prompt, answer=facts.text.unique - prompt)
