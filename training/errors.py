"""The training job's errors, in the order in which a run can fail. Independent of exit codes.

LenserveError                    (serving.errors)
    UsageError                   the command line or a configuration file is wrong
        RecipeError                  a recipe or an override is invalid
        RunFolderConflict            the run folder is in use, or holds files that this run would overwrite
    DeviceUnavailable            the requested device does not exist or cannot be used
    TrainingError                the run itself failed
        CompilerMissing              torch.compile needs a compiler that is not installed
        WriteError                   a file cannot be written: no room, no permission
        DamagedFile                  a file of an earlier run or of a bundle's report is damaged
        LoggerUnavailable            TensorBoard or MLflow could not be opened
        DataError                    the data are missing, invalid, or too few
        WeightsError                 pretrained weights cannot be read, or do not fit the network
        CheckpointError              a checkpoint cannot be read, or belongs to another run
        OutOfMemory                  the GPU or the machine is out of memory
        GraphCaptureFailed           a training step cannot be captured as a CUDA graph
        Diverged                     the loss became NaN or infinite
        ProcessLost                  another process of the same run exited
        ExportError                  the exported ONNX file is invalid
        GateFailed                   a check failed, and nothing was published
        TwinUnavailable              a bundle's network cannot be rebuilt in torch
        Interrupted                  a signal stopped the run; its progress is saved
"""

from serving.errors import LenserveError, UsageError


class RecipeError(UsageError):
    """A recipe is not TOML, has an unknown key, or a value out of bounds."""


class RunFolderConflict(UsageError):
    """The run folder is in use, or holds files that this run would overwrite."""


class TrainingError(LenserveError):
    """The run itself failed; each kind below has its own class."""


class CompilerMissing(TrainingError):
    """`training.compile` is set, and the compiler that torch.compile needs is not installed."""


class WriteError(TrainingError):
    """A file cannot be written: the disk is full, or the permission is missing."""


class DamagedFile(TrainingError):
    """A file that an earlier run wrote cannot be read, or does not hold what it should."""


class LoggerUnavailable(TrainingError):
    """TensorBoard or MLflow could not be opened before training began."""


class DataError(TrainingError):
    """The data are missing, invalid, or too few to train and to evaluate."""


class WeightsError(TrainingError):
    """Pretrained weights cannot be read, or do not fit the network."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be read, or belongs to another run."""


class OutOfMemory(TrainingError):
    """The GPU or the machine is out of memory."""


class GraphCaptureFailed(TrainingError):
    """A training step does something that a CUDA graph cannot capture."""


class Diverged(TrainingError):
    """The loss became NaN or infinite."""


class ProcessLost(TrainingError):
    """Another process of the same run exited."""


class ExportError(TrainingError):
    """The exported ONNX file is not what a bundle requires."""


class GateFailed(TrainingError):
    """A check failed, and nothing was published."""


class TwinUnavailable(TrainingError):
    """A bundle has no weights for torch, or they give other probabilities than its ONNX file."""


class Interrupted(TrainingError):
    """A signal stopped the run; its progress is saved."""
