"""An unwanted output as a person writes it down: a few words, or a file of examples."""

from pathlib import Path

from influence.data.dataset import SUFFIXES
from influence.errors import QueryError
from influence.query.evaluation import Evaluation, read_evaluation
from influence.run_dir import RunDir


def read_target(run: RunDir, target: str | None, prompt: str | None) -> Evaluation | None:
    """Return the unwanted output that was named, None where none was.

    Args:
        run: The run; a classifier's target is a label, a language model's a completion, and where its
            rows are conversations what the assistant said.
        target: A file of examples, if there is one of that name; else what the model said, or the label it gave.
        prompt: What the model was given.

    Raises:
        QueryError: A prompt without a target or beside a file, a classifier's label without its text, nothing at all,
            or the name of a file that isn't there.
        DataError: The file can't be read.
    """
    if target is None:
        if prompt is not None:
            raise QueryError("--prompt is what the model was given before a --target: name that too.")
        return None
    if not target.strip():
        raise QueryError("--target is empty. Write the unwanted output, or name a file of examples.")
    if Path(target).exists():
        if prompt is not None:
            raise QueryError(f"--target {target} is a file, whose examples have their own prompts: leave --prompt out.")
        return read_evaluation(run, target)
    if Path(target).suffix.lower() in SUFFIXES:
        raise QueryError(f"There is no file {target}. Name one that is there, or write the unwanted output itself.")
    if run.config.model.kind == "sequence_classification":
        if not prompt:
            raise QueryError(
                f"--target {target!r} is a label that the classifier gave to some text: add --prompt with that text."
            )
        return Evaluation(run, [{"text": prompt, "label": target}], "--target")
    if run.query_form.chats and not prompt:
        return Evaluation(run, [{"messages": [{"role": "assistant", "content": target}]}], "--target")
    return Evaluation(run, [{"prompt": prompt or "", "completion": target}], "--target")


__all__ = ["read_target"]
