"""Asks a trained model one question and shows its episode: thoughts aside, searches and answer.

    python3 infer.py --model_path checkpoints/search-r1-qwen3-0.6b-demo/final --prompt "Who ...?"

A front of ``searchrl ask``. A model inside a run is asked as it was trained, any other one as the
recipe qwen3-0.6b-grpo says. It searches the index that ``start_retriever.sh`` served last, which
needs no server, unless ``--retriever`` names one or the run searched elsewhere.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
SERVED = HERE / "indexes" / "served"
RECIPE = "qwen3-0.6b-grpo"


class Parser(argparse.ArgumentParser):
    """Refuses a wrong command line in one line."""

    def error(self, message: str) -> NoReturn:
        """End with code 2."""
        self.exit(2, f"error: {message}; see infer.py --help\n")


def parse() -> argparse.Namespace:
    """The command line, its path made whole."""
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model_path", type=Path, required=True, help="a checkpoint or a model")
    parser.add_argument("--prompt", required=True, help="the question")
    parser.add_argument("--retriever", metavar="URL", help="a server, as http://HOST:8000/retrieve")
    parser.add_argument("--device", help="where the model runs, as in cpu or cuda:0")
    parser.add_argument("--json", action="store_true", help="print the episode as JSON")
    arguments = parser.parse_args()
    arguments.model_path = arguments.model_path.absolute()
    if not arguments.model_path.is_dir():
        parser.error(
            f"--model_path {arguments.model_path}: no such directory; training makes "
            "checkpoints/NAME/final when it ends"
        )
    return arguments


def recipe_of(model: Path) -> str:
    """The recipe that a model of a run was trained by, or else the guide's."""
    run = model.resolve().parent.parent
    trained = model.resolve().parent.name == "checkpoints" and (run / "config.json").is_file()
    return str(run / "config.json") if trained else RECIPE


def command(arguments: argparse.Namespace) -> list[str]:
    """The arguments of ``searchrl``."""
    from searchrl.recipe_file import load_recipe

    recipe = recipe_of(arguments.model_path)
    asked = ["ask", arguments.prompt, "--recipe", recipe, "--searcher", str(arguments.model_path)]
    if arguments.device:
        asked += ["--set", f"searcher.device={arguments.device}"]
    if arguments.json:
        asked.append("--json")
    if arguments.retriever:
        return [*asked, "--set", f"retriever={{kind='http', url='{arguments.retriever}'}}"]
    searched = load_recipe(recipe).retriever
    local = searched.kind == "http" and searched.url.startswith("http://127.0.0.1:")
    return [*asked, "--index", str(SERVED)] if local and SERVED.is_dir() else asked


def main() -> None:
    """Hand over to ``searchrl ask``."""
    arguments = parse()
    try:
        from searchrl.cli.main import run
        from searchrl.errors import SearchRLError
    except ImportError:
        sys.stderr.write("error: searchrl is not installed here: source venv/bin/activate\n")
        sys.exit(2)
    os.chdir(HERE)
    try:
        sys.argv = ["searchrl", *command(arguments)]
    except SearchRLError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    run()


if __name__ == "__main__":
    main()
