"""What can go wrong while scoring, one class per kind of input."""


class EvalError(ValueError):
    """A refusal with a reason: what was found, what was expected, what to do next."""


class DataError(EvalError):
    """A shard, text or sidecar that cannot be scored."""


class TokenBytesError(EvalError):
    """A tokenizer or bytes-per-token table that is damaged or belongs to another vocabulary."""


class ScoreError(EvalError):
    """Settings that do not fit the data, or a model whose output cannot be scored."""


class ModelError(EvalError):
    """A model file, class or state dict that cannot be used."""
