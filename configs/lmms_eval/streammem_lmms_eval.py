"""A model of lmms-eval that asks a streammem server over HTTP; nothing of streammem is imported.

    lmms-eval --model streammem --model_args base_url=http://localhost:8080 --tasks videomme

A video is uploaded, watched once and asked for all its questions, one after another, so that the
server needs no folder in common. lmms-eval pins older packages: it stands in its own environment.
"""

from __future__ import annotations

import json
import os
from typing import Any, BinaryIO
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Name the model for the entry point ``lmms_eval.models``."""
    return ModelManifest("streammem", chat_class_path=f"{__name__}.Streammem")


class Streammem(lmms):
    """A streammem server.

    Args:
        base_url: of the server.
        timeout_s: seconds for a video to be watched, or for an answer.
        token: of the server; ``STREAMMEM_TOKEN`` by default.
    """

    is_simple = False

    def __init__(
        self,
        base_url: str = "http://localhost:8080",
        timeout_s: float = 3600,
        token: str | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self._url, self._timeout_s = base_url.rstrip("/"), float(timeout_s)
        self._token = token or os.environ.get("STREAMMEM_TOKEN")

    def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
        """Answer requests, video by video; results come in the requests' order."""
        asked = [self._read(request) for request in requests]
        answers, video, source = [None] * len(requests), None, None
        for number in sorted(range(len(requests)), key=lambda n: asked[n][0]):
            path, question = asked[number]
            if path != video:
                self._forget(source)
                video, source = path, self._upload(path)
            part = {"type": "video_url", "video_url": {"url": source}}
            content = [part, {"type": "text", "text": question}]
            reply = self._send(
                "/v1/chat/completions",
                {"model": "streammem", "messages": [{"role": "user", "content": content}]},
            )
            usage = reply["usage"]
            answers[number] = GenerationResult(
                reply["choices"][0]["message"]["content"],
                TokenCounts(usage["prompt_tokens"], usage["completion_tokens"]),
            )
        self._forget(source)
        return answers

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not supported: each question stands alone."""
        raise NotImplementedError("streammem answers one question at a time")

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Not supported: the server states no likelihoods."""
        raise NotImplementedError("streammem states no likelihoods over HTTP")

    def _read(self, request: Any) -> tuple[str, str]:
        """Return the video of a request, and its text."""
        _, messages_of, _, doc_id, task, split = request.args
        parts = [
            part
            for message in messages_of(self.task_dict[task][split][doc_id])
            for part in message["content"]
        ]
        videos = [part["url"] for part in parts if part["type"] == "video"]
        if len(videos) != 1:
            raise ValueError(f"{task} {doc_id}: {len(videos)} videos; streammem reads one")
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        return str(videos[0]).removeprefix("file://"), text

    def _upload(self, path: str) -> str:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            kept = self._send(f"/v1/uploads?name={quote(os.path.basename(path))}", file, size)
        return str(kept["source"])

    def _forget(self, source: str | None) -> None:
        if source:
            self._send(f"/v1/uploads/{source.removeprefix('upload:')}", method="DELETE")

    def _send(
        self,
        path: str,
        body: dict[str, Any] | BinaryIO | None = None,
        size: int | None = None,
        method: str | None = None,
    ) -> Any:
        headers = {"Content-Type": "application/json" if size is None else "video/mp4"}
        if size is not None:
            headers["Content-Length"] = str(size)
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        request = Request(f"{self._url}{path}", data, headers, method=method)
        try:
            with urlopen(request, timeout=self._timeout_s) as reply:
                content = reply.read()
        except HTTPError as error:
            told = error.read().decode(errors="replace")[:500]
            raise RuntimeError(f"{self._url}{path}: HTTP {error.code}: {told}") from None
        return json.loads(content) if content else None
