"""The OpenAPI description, and whatever a generator makes of it: the server never fails."""

import anyio
import pytest

pytest.importorskip("fastapi", reason="needs streammem[serve]")

TAKEN = {"method", "url", "content", "data", "json", "params", "headers", "cookies", "files"}


def app_of(model, folder):
    from streammem.engine.session_config import SessionConfig
    from streammem.server.app import make_app
    from streammem.server.limits import Limits, ServerConfig
    from streammem.server.sessions import Sessions
    from tests.sessions import SHORT

    # A generator asks quickly, and opens sessions that it never closes.
    limits = Limits(requests_per_s=1e6, burst=10**6, sessions=4)
    options = SessionConfig(answer=SHORT, caption=SHORT)
    config = ServerConfig(memories=folder, uploads=folder.parent, limits=limits)
    sessions = Sessions(model, options, config)
    return make_app(sessions), sessions


def test_the_contract_is_described(model, memories):
    app, sessions = app_of(model, memories)
    paths = app.openapi()["paths"]
    anyio.run(sessions.close)  # no client has come that would end its thread
    contract = {
        "/v1/sessions": {"post", "get"},
        "/v1/sessions/{name}": {"get", "delete"},
        "/v1/sessions/{name}/frames": {"post"},
        "/v1/sessions/{name}/events": {"get"},
        "/v1/sessions/{name}/questions": {"post"},
        "/v1/sessions/{name}/plan": {"post", "delete"},
        "/v1/memories": {"get"},
        "/v1/memories/{name}/questions": {"post"},
        "/v1/archive": {"get"},
        "/v1/archive/timeline": {"get"},
        "/v1/archive/questions": {"post"},
        "/v1/archive/find": {"post"},
        "/v1/archive/{name}/keyframes/{segment}": {"get"},
        "/v1/chat/completions": {"post"},
        "/v1/models": {"get"},
        "/healthz": {"get"},
        "/metrics": {"get"},
    }
    for path, methods in contract.items():
        assert methods <= set(paths[path]), path


@pytest.mark.heavy
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_makes_the_server_fail(model, memories, mode):
    schemathesis = pytest.importorskip("schemathesis", reason="needs streammem[dev]")
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
    from starlette.testclient import TestClient

    app, _ = app_of(model, memories)
    schema = schemathesis.openapi.from_dict(app.openapi())
    kind = schemathesis.GenerationMode(mode)
    # An endless stream is no request that a generator can wait for.
    operations = [
        found.ok() for found in schema.get_all_operations() if "events" not in found.ok().path
    ]
    strategy = st.one_of(*(o.as_strategy(generation_mode=kind) for o in operations))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        known = client.post("/v1/sessions", json={}).json()["id"]

        @settings(
            max_examples=120,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
        @given(strategy, st.sampled_from([known, "trips", None]))
        def check(case, name):
            if name and "name" in (case.path_parameters or {}) and case.method != "DELETE":
                case.path_parameters["name"] = name
            sent = case.as_transport_kwargs(base_url="http://localhost")
            if isinstance(sent.get("data"), str | bytes):
                sent["content"] = sent.pop("data")
            response = client.request(**{key: sent[key] for key in sent if key in TAKEN})
            assert response.status_code < 500, (case.method, case.formatted_path, response.text)

        check()
