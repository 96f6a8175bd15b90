"""The command `peft-reprogram`: each subcommand reads its arguments and calls the package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Optional

import typer


app = typer.Typer(
    name="peft-reprogram",
    help="Robust adaptation of vision and text-image models as PEFT adapters.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# The flags of these are read by the commands themselves, which explain them too.
FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

Adapter = Annotated[str, typer.Argument(help="Folder or Hub repository of the adapter.", show_default=False)]
Folder = Annotated[Path, typer.Argument(help="Folder of the adapter.", show_default=False)]
Model = Annotated[Optional[str], typer.Option(help="Base model, where the adapter names none that is here.")]
Private = Annotated[Optional[bool], typer.Option("--private/--public", help="Whether a new repository is private.")]
License = Annotated[Optional[str], typer.Option(help="Licence of the adapter for the card, e.g. apache-2.0.")]


@app.command(context_settings=FORWARDED)
def train(context: typer.Context) -> None:
    """
    Train an adapter.

    Example: peft-reprogram train --model openai/clip-vit-base-patch32 --dataset uoft-cs/cifar10 --shots 16 --output_dir run
    """
    from .commands.exit import run
    from .commands.train import main

    run(main, context.args)


@app.command(context_settings=FORWARDED)
def evaluate(context: typer.Context) -> None:
    """
    Measure adapters on in-distribution, shifted, corrupted and out-of-distribution images.

    Example: peft-reprogram evaluate --adapter run --dataset uoft-cs/cifar10 --output run/evaluation.json
    """
    from .commands.evaluate import main
    from .commands.exit import run

    run(main, context.args)


@app.command(context_settings=FORWARDED)
def benchmark(context: typer.Context) -> None:
    """
    Compare ways to fine-tune on the same data and measures.

    Example: peft-reprogram benchmark --config bench.yaml --output_dir runs/bench
    """
    from .commands.benchmark import main
    from .commands.exit import run

    run(main, context.args)


@app.command()
def predict(
    adapter: Adapter,
    images: Annotated[list[str], typer.Argument(help="Image files or http(s) addresses.", show_default=False)],
    model: Model = None,
    revision: Annotated[Optional[str], typer.Option(help="Branch, tag or commit of the adapter.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at once.", min=1)] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with all probabilities.")] = False,
) -> None:
    """
    Classify images, and say which of them the adapter was not made for. Those that cannot be read are named on stderr.

    Example: peft-reprogram predict user/adapter photo.jpg other.png
    """
    with _explained_errors():
        from .data import UnreadableImageError
        from .hub import load_classifier
        from .hub.images import open_image

        predictor, failed = load_classifier(adapter, model=model, revision=revision), False
        for start in range(0, len(images), batch_size):
            opened: list[tuple[str, Any]] = []
            for image in images[start : start + batch_size]:
                try:
                    opened.append((image, open_image(image)))
                except UnreadableImageError as error:
                    typer.echo(f"error: {error}", err=True)
                    failed = True
            predictions: Any = predictor.predict([content for _, content in opened], batch_size=batch_size)
            for (image, _), prediction in zip(opened, predictions):
                if as_json:
                    typer.echo(json.dumps({"image": image, **asdict(prediction)}, ensure_ascii=False))
                else:
                    verdict = {None: "", True: "  out of distribution", False: "  in distribution"}[prediction.is_ood]
                    typer.echo(
                        f"{image}  {prediction.label}  {prediction.probability:.1%}  score {prediction.score:.4g}{verdict}"
                    )
        if failed:
            raise typer.Exit(1)


@app.command()
def push(
    folder: Folder,
    repo_id: Annotated[str, typer.Argument(help="Repository to publish to, e.g. user/adapter.", show_default=False)],
    base_model: Annotated[
        Optional[str], typer.Option(help="The base model's name on the Hub, if it was a folder.")
    ] = None,
    license: License = None,
    private: Private = None,
    revision: Annotated[Optional[str], typer.Option(help="Branch to commit to, created if needed.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str, typer.Option(help="Title of the commit.")] = "Upload adapter",
) -> None:
    """
    Publish an adapter with its card in one commit. Log in with `hf auth login` before, or set HF_TOKEN.

    Example: peft-reprogram push run user/adapter --license apache-2.0
    """
    with _explained_errors():
        from .hub import push_to_hub

        typer.echo(
            push_to_hub(
                folder,
                repo_id,
                base_model=base_model,
                license=license,
                private=private,
                revision=revision,
                create_pr=create_pr,
                commit_message=message,
            )
        )


@app.command()
def card(
    folder: Folder,
    repo_id: Annotated[Optional[str], typer.Option(help="Where it will be published.")] = None,
    license: License = None,
    results: Annotated[
        Optional[Path], typer.Option(help="Evaluation results; evaluation.json in the folder by default.")
    ] = None,
    model: Annotated[Optional[str], typer.Option(help="Name of the adapter in the results.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a card that is there.")] = False,
) -> None:
    """
    Write the model card into an adapter's folder, to be read and completed before it is pushed.

    Example: peft-reprogram card run --repo-id user/adapter --license apache-2.0
    """
    with _explained_errors():
        from .hub import make_card

        make_card(folder, repo_id=repo_id, license=license, results=results, model=model, overwrite=overwrite)
        typer.echo(folder / "README.md")


@app.command()
def doctor() -> None:
    """
    Say what in this environment is broken or missing.

    Example: peft-reprogram doctor
    """
    from .doctor import diagnose

    broken = 0
    for finding in diagnose():
        broken += finding.status == "broken"
        typer.echo(f"{finding.status:<7}{finding.what:<17}{finding.text}")
    if broken:
        raise typer.Exit(1)


@app.command()
def push_metrics(
    namespace: Annotated[str, typer.Argument(help="User or organisation.", show_default=False)],
    private: Private = None,
) -> None:
    """
    Publish the metrics as Spaces that `evaluate.load` finds.

    Example: peft-reprogram push-metrics user
    """
    with _explained_errors():
        from .hub import push_metrics as push

        for url in push(namespace.rstrip("/"), private=private):
            typer.echo(url)


@app.command("app")
def launch_app(
    adapter: Adapter,
    model: Model = None,
    revision: Annotated[Optional[str], typer.Option(help="Branch, tag or commit of the adapter.")] = None,
    port: Annotated[int, typer.Option(help="Port on this machine; 0 takes a free one.")] = 7860,
) -> None:
    """
    Try an adapter in the browser; needs `pip install 'peft-reprogram[app]'`.

    Example: peft-reprogram app user/adapter
    """
    with _explained_errors():
        from .app import build_app

        build_app(adapter, model=model, revision=revision).launch(server_port=port or None)


@contextmanager
def _explained_errors() -> Iterator[None]:
    """Mistakes are answered in one line; anything else keeps its traceback."""
    from .hub import PushError

    try:
        yield
    except (
        FileExistsError,
        FileNotFoundError,
        ImportError,
        PermissionError,
        PushError,
        TypeError,
        ValueError,
    ) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
