"""What people read of rows and queries that are given as tokens: decoded by the run's tokeniser, without its model."""

from collections.abc import Sequence

from influence.capture.opening import check_unchanged
from influence.data.example import Example, TokenContent
from influence.data.tokenise import readable
from influence.model.load import load_tokeniser
from influence.run_dir import RunDir


def readable_texts(run: RunDir, examples: Sequence[Example]) -> list[str]:
    """Return the text of each example.

    Raises:
        FingerprintMismatch: The tokeniser or the model has changed since the rows were captured.
    """
    if not any(isinstance(example.content, TokenContent) for example in examples):
        return [example.text for example in examples]
    check_unchanged(run.config, run.path, run.manifest)
    tokeniser = load_tokeniser(run.config.model)
    return [readable(example, tokeniser) for example in examples]
