"""The refusal of a request: an answer that says why."""


class Refused(Exception):
    """A request that is not served.

    Attributes:
        status: HTTP status, 4xx.
        message: why, and what to try.
        retry_s: seconds after which it may be tried again; None where that does not help.
    """

    def __init__(self, status: int, message: str, retry_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_s = status, message, retry_s
