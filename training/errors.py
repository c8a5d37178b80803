"""The training job's errors, in the order in which a run can fail. Knows no exit codes.

LenserveError                    (serving.errors)
    UsageError                   the command line or a config file is wrong
        RecipeError                  a recipe, or one of its overrides, is wrong
        RunFolderConflict               the run folder holds something that must not be lost or mixed
    DeviceUnavailable            a device was asked for that is not there
    TrainingError                the work itself failed
        CompilerMissing              torch.compile was asked for, and has no compiler
        LoggerUnavailable            where the history shall go takes none
        DataError                    the data are missing, broken, or too few to learn and to judge by
        WeightsError                 pretrained weights cannot be read, or belong to another network
        CheckpointError              a checkpoint does not belong to this run, or cannot be read
        OutOfMemory                  the memory of the GPU, or of the machine, is full
        GraphCaptureFailed              a step does what a CUDA graph cannot hold
        Diverged                     the loss became NaN or infinite
        ProcessLost                  another process of the same run is gone
        ExportError                  the network did not become a sound ONNX file
        GateFailed                  the version is not good enough to be published
        Interrupted                  somebody asked the job to stop, and it saved what it had
"""

from serving.errors import LenserveError, UsageError


class RecipeError(UsageError):
    """A recipe does not parse, has an unknown key, or a value out of bounds."""


class RunFolderConflict(UsageError):
    """The run folder holds something that must not be lost or mixed."""


class TrainingError(LenserveError):
    """The training job failed."""


class CompilerMissing(TrainingError):
    """torch.compile was asked for, and the compiler that it needs is not installed."""


class LoggerUnavailable(TrainingError):
    """Where the history of the run shall go, nothing is taken."""


class DataError(TrainingError):
    """The data are missing, broken, or too few to learn and to judge by."""


class WeightsError(TrainingError):
    """Pretrained weights cannot be read, or belong to another network."""


class CheckpointError(TrainingError):
    """A checkpoint does not belong to this run, or cannot be read."""


class OutOfMemory(TrainingError):
    """The memory of the GPU, or of the machine, is full."""


class GraphCaptureFailed(TrainingError):
    """A training step does what a CUDA graph cannot hold."""


class Diverged(TrainingError):
    """The loss became NaN or infinite."""


class ProcessLost(TrainingError):
    """Another process of the same run is gone."""


class ExportError(TrainingError):
    """The network did not become a sound ONNX file."""


class GateFailed(TrainingError):
    """A check failed, and nothing was published."""


class Interrupted(TrainingError):
    """Somebody asked the job to stop."""
