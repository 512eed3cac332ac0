"""Runs one benchmark: ``python -m benchmarks NAME [options]``."""

import importlib
import sys

BENCHMARKS = {
    "confidence": "benchmarks.confidence",
    "camera": "benchmarks.camera",
    "choice": "benchmarks.choice",
    "decode": "benchmarks.decode",
    "demo": "benchmarks.demo",
    "encoder": "benchmarks.encoder",
    "films": "benchmarks.films",
    "fleet": "benchmarks.fleet",
    "gate": "benchmarks.gate",
    "gpu": "benchmarks.gpu",
    "kernels": "benchmarks.kernels",
    "listen": "benchmarks.listen",
    "memory": "benchmarks.memory",
    "named": "benchmarks.named",
    "names": "benchmarks.names",
    "next_action": "benchmarks.next_action",
    "parents": "benchmarks.parents",
    "plan": "benchmarks.plan",
    "recognised": "benchmarks.recognised",
    "recurrent": "benchmarks.recurrent",
    "rooms": "benchmarks.rooms",
    "said": "benchmarks.said",
    "scenes": "benchmarks.scenes",
    "see": "benchmarks.see",
    "server": "benchmarks.server",
    "speech": "benchmarks.speech",
    "stream": "benchmarks.stream",
    "swapped": "benchmarks.swapped",
    "trace": "benchmarks.trace",
    "where": "benchmarks.where",
}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in BENCHMARKS:
        print(f"usage: python -m benchmarks {{{','.join(BENCHMARKS)}}} [options]", file=sys.stderr)
        return 2
    module = importlib.import_module(BENCHMARKS[sys.argv[1]])
    return module.main(sys.argv[2:])


if __name__ == "__main__":
    raise SystemExit(main())
