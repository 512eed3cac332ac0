"""Runs one benchmark: ``python -m benchmarks NAME [options]``; ``--help`` lists them."""

import ast
import importlib
import sys
from pathlib import Path

BENCHMARKS = {
    "confidence": "benchmarks.confidence",
    "camera": "benchmarks.camera",
    "choice": "benchmarks.choice",
    "clip_questions": "benchmarks.clip_questions",
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
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(f"usage: python -m benchmarks NAME [options]\n\n{listing()}")
        return 0
    if len(sys.argv) < 2 or sys.argv[1] not in BENCHMARKS:
        wrong = "".join(f"{name}: no such benchmark\n" for name in sys.argv[1:2])
        print(f"{wrong}usage: python -m benchmarks NAME [options]\n\n{listing()}", file=sys.stderr)
        return 2
    module = importlib.import_module(BENCHMARKS[sys.argv[1]])
    return module.main(sys.argv[2:])


def listing() -> str:
    """Tell in a line what each benchmark measures: the first of its module, which is not opened."""
    folder, lines = Path(__file__).parent, []
    for name, module in sorted(BENCHMARKS.items()):
        source = (folder / f"{module.rpartition('.')[2]}.py").read_text(encoding="utf-8")
        about = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
        lines.append(f"  {name:14} {about}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
