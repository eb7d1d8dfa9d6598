"""A stand-in of the W&B server on 127.0.0.1, for the real client and the real sweep agent.

It answers what ``wandb`` 0.31 asks for runs and sweeps, and keeps what it is told. Its suggestions are given to it.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal["refuses", "is silent"]
ENTITY = {"id": "entity", "name": "tester"}


@dataclass
class Run:
    """What the server knows of a run."""

    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    uploaded: set[str] = field(default_factory=set)
    starts: int = 0
    exit_code: int | None = None
    stop_sent: bool = False


class StandIn:
    """The server; use it as a context manager.

    Args:
        trials: Parameters of the trials that a sweep's agent is given, in this order.
        stop: Says of a running trial's history whether the agent shall stop it.
        fault: What is wrong with its answers to questions about runs; None for nothing.
    """

    def __init__(
        self,
        trials: list[dict[str, Any]] | None = None,
        stop: Callable[[list[dict[str, Any]]], bool] | None = None,
        fault: Fault | None = None,
    ) -> None:
        self.fault, self.closed = fault, threading.Event()
        self.trials, self.stop = trials or [], stop or (lambda history: False)
        self.runs: dict[str, Run] = {}
        self.sweep_config = ""
        self.given: list[str] = []
        self.operations: list[str] = []
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that send a client here."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": "0123456789" * 4,
            # The client reports itself to the makers of wandb otherwise.
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
        }

    def __enter__(self) -> StandIn:
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closed.set()
        self.http.shutdown()
        self.http.server_close()

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The data that answers an operation; None for an unknown one."""
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = found[1] if found else ""
        self.operations.append(operation)
        project = {
            "id": "project",
            "name": variables.get("projectName") or variables.get("project") or "p",
            "entity": ENTITY,
        }
        if operation == "Viewer":
            teams: dict[str, Any] = {"edges": []}
            return {
                "viewer": {
                    "id": "u",
                    "entity": "tester",
                    "username": "tester",
                    "email": "",
                    "flags": "{}",
                    "teams": teams,
                }
            }
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "RunResumeStatus":
            return {"model": {**project, "bucket": self._status(variables["name"])}}
        if operation == "UpsertSweep":
            self.sweep_config = variables.get("config") or self.sweep_config
            return {"upsertSweep": {"sweep": {"name": "the-sweep", "project": project}, "configValidationWarnings": []}}
        if operation == "SweepWithRuns":
            sweep = {"id": "s", "name": "the-sweep", "state": "RUNNING", "config": self.sweep_config}
            return {"project": {"sweep": {**sweep, "runs": {"edges": []}}}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": "agent"}}}
        if operation == "Heartbeat":
            commands = self._commands(json.loads(variables["runState"]))
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
        if operation == "UpsertBucket":
            new = variables["name"] not in self.runs
            return {"upsertBucket": {"bucket": self._bucket(variables, project), "inserted": new}}
        if operation == "CreateRunFiles":
            files = [
                {"name": name, "uploadUrl": f"{self.url}/upload/{variables['run']}/{name}"}
                for name in variables["files"]
            ]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return None

    def _status(self, name: str) -> dict[str, Any] | None:
        """What a client needs to continue a run; None for a new one."""
        if name not in self.runs:
            return None
        run = self.runs[name]
        return {
            "id": f"bucket-{name}",
            "name": name,
            "displayName": name,
            "summaryMetrics": json.dumps(run.summary),
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "tags": [],
            "notes": "",
            "wandbConfig": json.dumps({"t": 1}),
        }

    def _bucket(self, variables: dict[str, Any], project: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        run = self.runs.setdefault(name, Run())
        if variables.get("config"):
            config = json.loads(variables["config"])
            run.config.update({key: value.get("value") for key, value in config.items() if key != "_wandb"})
        if variables.get("program") or variables.get("host"):
            run.starts += 1
        return {
            "id": f"bucket-{name}",
            "name": name,
            "displayName": variables.get("displayName") or name,
            "description": "",
            "config": variables.get("config") or "{}",
            "sweepName": variables.get("sweep"),
            "project": project,
            "historyLineCount": 0,
        }

    def _commands(self, running: dict[str, bool]) -> list[dict[str, Any]]:
        for name in running:
            run = self.runs.get(name)
            if run and not run.stop_sent and self.stop(run.history):
                run.stop_sent = True
                return [{"type": "stop", "run_id": name}]
        if running:
            return []
        if len(self.given) < len(self.trials):
            name = f"run{len(self.given)}"
            args = {key: {"value": value} for key, value in self.trials[len(self.given)].items()}
            self.given.append(name)
            return [{"type": "run", "run_id": name, "args": args, "program": "lightning-faces"}]
        return [{"type": "exit"}]

    def file_stream(self, name: str, body: dict[str, Any]) -> None:
        """Keep what a run streams."""
        run = self.runs.setdefault(name, Run())
        files = body.get("files") or {}
        run.history += [json.loads(line) for line in files.get("wandb-history.jsonl", {}).get("content", [])]
        for line in files.get("wandb-summary.json", {}).get("content", []):
            run.summary.update(json.loads(line))
        if body.get("complete"):
            run.exit_code = body.get("exitcode")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def do_GET(self) -> None:
                self.answer(200, {})

            def do_PUT(self) -> None:
                self.body()
                if found := re.fullmatch(r"/upload/([^/]+)/(.+)", self.path):
                    with server.lock:
                        server.runs.setdefault(found[1], Run()).uploaded.add(found[2])
                self.answer(200, {})

            def do_POST(self) -> None:
                raw = self.body()
                if server.fault == "refuses":
                    self.answer(401, {"errors": [{"message": "permission denied"}]})
                elif server.fault == "is silent":
                    server.closed.wait()
                elif self.path.endswith("/graphql"):
                    asked = json.loads(raw)
                    with server.lock:
                        data = server.graphql(asked["query"], asked.get("variables") or {})
                    # The client takes 4xx for an answer and does not try again.
                    self.answer(
                        *((400, {"errors": [{"message": "unknown"}]}) if data is None else (200, {"data": data}))
                    )
                elif found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                    with server.lock:
                        server.file_stream(found[1], json.loads(raw))
                    self.answer(200, {"exitcode": None, "limits": {}})
                else:
                    self.answer(200, {})

            def log_message(self, *args: object) -> None:
                pass

        return Handler
