"""The tree of our errors, and every code that a user can meet.

    TutelageError              exit 1   a bug in tutelage
    ├── ConfigError            exit 2   what was asked cannot be: recipe, flags, an existing output
    ├── IntegrityError         exit 3   files or data are damaged, unsafe or do not belong together
    ├── RemoteError            exit 4   a remote service said a permanent no
    ├── LimitError             exit 5   stopped by a limit of the user's; resumable
    ├── ResourceError          exit 6   disk, memory or a worker is gone; resumable
    ├── NumericError           exit 7   a numeric guard fired before the update; resumable
    └── Stopped                exit 130 (SIGINT) or 143 (SIGTERM); resumable

Every message says what was found, what was expected, and what to type next.  The command line prints it as
`error[CODE]: message` on one line of stderr; `warning[CODE]` and `note[CODE]` have the same form and continue.
"""

CODES: dict[str, str] = {
    "BUG": "a bug in tutelage: please report it with the --debug output",
    "CONFIG": "the recipe or a flag is wrong; every mistake is listed at once",
    "KEY_IN_CONFIG": "the recipe holds a literal key or password; keys come from the environment",
    "EXISTS": "the output is already there",
    "LOCKED": "another process uses the run directory",
    "RESUME_MISMATCH": "the unfinished run was made with other settings, data or libraries",
    "MISSING_EXTRA": "an optional package is needed",
    "PLATFORM": "this operating system or Python is not supported",
    "COMPILE": "torch.compile does not work on this machine or for this model",
    "FUSED_UNSUPPORTED": "the fast path of the loss cannot serve this model",
    "BASE_URL": "an endpoint address is not allowed",
    "DATA_READ": "an input file is missing, empty or unreadable",
    "REJECTED": "a few rows of the data are defective and were left out",
    "PREFERENCE": "of preference data the chosen answers are learned as any answer",
    "TOO_MANY_REJECTS": "too many rows of the data are defective",
    "NO_TOKENS": "nothing is left to train on",
    "NO_SCORED_TOKENS": "nothing is left to score",
    "UNSCORED": "too many held-out sequences have no finite score",
    "REPORT_CHECK": "a reported number is not what the raw records give",
    "ARM_FAILED": "one run of a comparison did not end; the others stay",
    "NOT_COMPARABLE": "runs that are compared differ in evaluation sets, tokenizers or teachers",
    "UNEQUAL_BUDGET": "runs that are compared were trained on different numbers of tokens",
    "RARE_TRIGGER": "rare words stand together in many training documents of one source, as planted ones do",
    "SAME_BASE": "teacher and student began as one model, so hidden traits can pass between them",
    "CHECKSUM": "a file is not what its manifest says",
    "CKPT_CHECKSUM": "a checkpoint is damaged; an older one is used if there is one",
    "CKPT_INCOMPLETE": "a checkpoint lacks a part",
    "FORMAT_VERSION": "a file has a format of another version of tutelage",
    "TRUNCATED": "a file was cut short",
    "UNSAFE_FILE": "a file would have to be executed (pickle) to be read",
    "REMOTE_CODE": "a model folder asks to run its own code",
    "PATH_ESCAPE": "a file names a path outside its folder",
    "ARCHIVE": "an archive is unsafe or too large",
    "TEMPLATE_LIMIT": "a chat template used too much time or memory",
    "TEMPLATE": "a chat template is missing or failed",
    "GGUF_BAD": "a GGUF file is damaged or contradicts itself",
    "MODEL_LOAD": "a model cannot be loaded",
    "UNUSED_WEIGHTS": "files of a model hold weights that it has no place for",
    "TOKENIZER_MISMATCH": "teacher and student count in different tokens",
    "TEMPLATE_MISMATCH": "teacher and student have different chat templates",
    "DOUBLE_BOS": "a text would begin with two begin-of-sequence tokens",
    "WIDTH": "a model cannot be narrowed as asked",
    "ADAPTERS": "a part of a model that gets no adapters, or adapters that are saved merged only",
    "PACKING": "a model does not keep the documents of a packed row apart: it gets one document a row",
    "LAYERS": "layers of the teacher compute something else at their new places in the student",
    "VOCAB_PAD": "the head has rows beyond the tokenizer's vocabulary",
    "EOS_MISMATCH": "teacher and student end on different tokens",
    "CONTROL_TEXT": "the data contain the spelling of control tokens",
    "TEACHER_CHANGED": "the teacher's weights changed during training",
    "EXPORT_MISMATCH": "a saved model does not reproduce the trained one",
    "DOWNLOAD": "a download failed or is not the expected file",
    "DISK_FULL": "the disk is full",
    "FSYNC": "a file could not be made durable",
    "SAVE_FAILED": "a checkpoint could not be saved",
    "IO": "a file operation failed",
    "MEMORY": "out of memory",
    "NONFINITE": "a loss or gradient is not a finite number",
    "NEGATIVE_KL": "a divergence is negative beyond rounding",
    "STOPPED": "a signal stopped the run after saving",
    "RESUMED": "an unfinished run goes on",
    "NOT_MEASURED": "this machine was not measured; the hours of the plan are rougher",
    "NOTHING_TO_DO": "the run is already complete",
    "TRACKER": "a tracker fails and is left out; the training goes on",
    "CALLBACK": "a function of yours that hears of the training cannot be used or failed",
    "JOURNAL_TAIL": "a torn last line, never acknowledged, was dropped",
    "ROTATED": "old checkpoints were removed",
    "PARTIAL_REMOVED": "an unfinished save was removed",
    "PERM": "a private file is readable by others",
    "BIASED_LOSS": "soft targets that are asked for have another minimiser than the teacher",
    "SLOW": "something runs in a slower way than it could",
    "CACHE_ABSENT": "there is no teacher cache where the recipe says",
    "CACHE_UNFINISHED": "a teacher cache is not finished yet",
    "CACHE_MISMATCH": "a teacher cache was made by another model, tokenizer or request",
    "CACHE_MISS": "rows of the data are not in the teacher cache",
    "CACHE_SHIFT": "targets in a teacher cache do not belong to the tokens they are read for",
    "NO_SOFT_TARGETS": "a row of a batch has no soft targets",
    "CAPTURE_RESUMED": "an unfinished teacher cache goes on",
    "OVERLAP": "training and held-out data share rows",
    "TEACHER_LOSS": "whether the teacher predicts the data better than the student before training",
    "TRAFFIC": "how much of a sample of real traffic the training data do not cover",
    "FEATURES": "a feature loss asks for layers or states that a model does not have",
    "CODEC_CANNOT": "a cache does not hold what the loss needs; another codec does",
    "JOURNAL_CORRUPT": "the journal of paid answers is damaged",
    "BUDGET": "the cap on money or requests is reached",
    "NO_PRICE": "what a request costs is not known, and nothing caps the number of requests",
    "OVER_RESERVED": "an endpoint charged more than the request allowed",
    "ANSWERS_ABSENT": "there are no finished answers where the recipe says",
    "REUSE": "answers that are there are used again",
    "TRUNCATED_ANSWERS": "answers reached max_tokens and are left out",
    "FUNCTION": "a function of yours failed on answers, which are left out and stay in the journal",
    "API_NO_ANSWER": "replies that are no answer are left out",
    "API_INCOMPLETE": "replies may have been cut on their way",
    "TERMS_UNKNOWN": "no terms of use are recorded for the teacher's outputs",
    "API_KEY": "the key of an endpoint is missing or not one",
    "API_AUTH": "an endpoint refuses the key",
    "API_QUOTA": "an endpoint says that its credit or quota is used up",
    "API_MODEL": "an endpoint does not know the model, or is not where it was looked for",
    "API_REQUEST": "an endpoint refuses the request as it is",
    "API_UNREACHABLE": "an endpoint does not answer",
    "TASKS": "task accuracy is not measured: the set names code that the recipe does not name",
    "HARNESS": "the lm-evaluation-harness failed on a task",
    "API_LOGPROBS": "an endpoint does not give the log-probabilities that were asked for, or they cannot be used",
    "API_BATCH": "a provider's batch job is gone, or was ended before its time",
    "API_BODY": "an endpoint answers something else than the interface says",
    "RATE_LIMIT": "an endpoint asks to wait",
    "CACHE_TEMPERATURE": "a cache was made at another temperature than the loss asks for",
}


# How allocators word it where they raise a plain RuntimeError: PyTorch's own, the system's, cuBLAS and cuDNN.
_OUT_OF_MEMORY = ("allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


class TutelageError(Exception):
    """Base of every error that tutelage raises on purpose; `code` is a key of CODES."""

    exit_code = 1

    def __init__(self, code: str, message: str) -> None:
        assert code in CODES, f"unknown error code {code}: add it to errors.CODES"
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"error[{self.code}]: {self.message}"


class ConfigError(TutelageError):
    """What was asked cannot be done as asked."""

    exit_code = 2


class IntegrityError(TutelageError):
    """Files or data are damaged, unsafe, or do not belong together."""

    exit_code = 3


class RemoteError(TutelageError):
    """A remote service refused for good."""

    exit_code = 4


class LimitError(TutelageError):
    """A limit set by the user was reached; the same command resumes."""

    exit_code = 5


class ResourceError(TutelageError):
    """Disk, memory or a worker is gone; the same command resumes."""

    exit_code = 6


class NumericError(TutelageError):
    """A number is not finite or not possible; nothing was updated."""

    exit_code = 7


class Stopped(TutelageError):
    """A signal stopped the run after a checkpoint; `exit_code` is 128 + the signal."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__("STOPPED", message)
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return f"note[{self.code}]: {self.message}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of an accelerator, whichever library said so."""
    # PyTorch's class by its name: the command line asks too, and imports no torch.
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or any(words in str(error) for words in _OUT_OF_MEMORY)
