"""Lists the models of a repository, which may hang as a whole. Independent of what is in their folders."""

import asyncio

from serving.bundle import Repository
from serving.models.folder_threads import FolderThreads
from serving.models.overlooked import Overlooked


class Listing:
    """The listing that runs: one thread, however long it hangs."""

    def __init__(
        self, repository: Repository, overlooked: Overlooked, threads: FolderThreads, *, patience_s: float
    ) -> None:
        """Store the options.

        Args:
            repository: is listed.
            overlooked: logs folders that look like models, beside the refresh: one of them may hang.
            threads: read folders.
            patience_s: seconds that a listing may take.
        """
        self._repository = repository
        self._overlooked = overlooked
        self._threads = threads
        self._patience_s = patience_s
        self._listing: asyncio.Task[list[str]] | None = None
        self._was_emptied = False
        self._looking: asyncio.Task[None] | None = None  # for folders that only look like models

    async def names(self, *, serves: bool) -> list[str]:
        """List the folders that may be models.

        Args:
            serves: whether a model is served: then an empty repository is a mount that fell away, unless its
                last model was removed.

        Raises:
            OSError: the repository cannot be read, that hangs, or it is empty.
        """
        root = self._repository.root
        if self._listing is None:
            self._listing = self._threads.start(self._list)
        await asyncio.wait([self._listing], timeout=self._patience_s)
        if not self._listing.done():  # the next look waits for the same thread
            raise TimeoutError(
                f"reading the repository {root} has taken more than {self._patience_s:g} s: check its volume"
            )
        listing, self._listing = self._listing, None
        if self._looking is None or self._looking.done():
            self._looking = self._threads.start(self._overlooked.log_new)
        if serves and not listing.result() and not self._was_emptied:
            raise FileNotFoundError(
                f"the repository {root} is empty: what was loaded is served on; mount it again, or restart "
                "the server if it is meant to be empty"
            )
        return listing.result()

    async def until_looked(self) -> None:
        """Wait until folders that only look like models are logged, but not for ever."""
        if self._looking is not None:
            await asyncio.wait([self._looking], timeout=self._patience_s)

    def _list(self) -> list[str]:
        """Called in a thread."""
        names = self._repository.model_folders()
        self._was_emptied = not names and self._repository.was_emptied()
        if not self._repository.root.is_dir():
            raise FileNotFoundError(f"the repository {self._repository.root} is not a directory")
        return names
