"""The exception for a request that is refused, with its HTTP status and reason."""


class Refused(Exception):
    """The request is refused.

    Attributes:
        status: HTTP status, 4xx, or 507 for a full disk.
        message: the reason, and what to try.
        retry_s: seconds after which a retry may succeed; None where it never will.
    """

    def __init__(self, status: int, message: str, retry_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_s = status, message, retry_s
