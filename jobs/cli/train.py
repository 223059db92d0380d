"""Train."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from jobs.cli.app import app
from jobs.cli.flag_groups import AlsoFlag, with_flag_groups


@dataclass(frozen=True)
class DataSetFlags:
    """Flags on the data set."""

    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="Folder of the images. [default: images/ beside the JSON file, else its own]",
        ),
    ] = None
    val: Annotated[
        str | None,
        typer.Option("--val", metavar="JSON", help="Score with these images. [default: val.json beside train.json]"),
    ] = None
    val_share: Annotated[
        float | None,
        typer.Option(
            "--val-share",
            metavar="F",
            min=0,
            max=0.9,
            help="Hold out this share of the images, each class by its share. [default: 0.1 without --val]",
        ),
    ] = None


@dataclass(frozen=True)
class NetworkFlags:
    """Flags on the network."""

    initial: Annotated[
        str | None,
        typer.Option(
            "--from",
            "--initial",
            metavar="WEIGHTS",
            help="Begin with these weights: demo (bundled), coco (published), imagenet, none, or a file.",
        ),
    ] = None
    preset: Annotated[
        str | None,
        typer.Option("--model", metavar="PRESET", help="Network preset. [default: that of the weights]"),
    ] = None
    short_side: Annotated[
        int | None, typer.Option("--short-side", metavar="PX", help="Image size in training. [default: the preset's]")
    ] = None
    long_side: Annotated[
        int | None, typer.Option("--long-side", metavar="PX", help="Its upper limit. [default: the preset's]")
    ] = None
    frozen_stages: Annotated[
        int | None,
        typer.Option("--frozen-stages", metavar="N", help="Backbone stages that keep their weights; -1: none."),
    ] = None


@dataclass(frozen=True)
class ScheduleFlags:
    """Flags on how long and how fast is trained."""

    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", help="Passes over the images; may grow on resuming.")
    ] = None
    patience: Annotated[
        int | None, typer.Option("--patience", metavar="N", help="End after N evaluations without a better score.")
    ] = None
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", help="Images at once, per worker. [default: 4]")
    ] = None
    accumulate: Annotated[
        int | None, typer.Option("--accumulate", metavar="N", help="Batches per step. [default: 1]")
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", metavar="F", help="For all images of a step together.")
    ] = None
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"] | None,
        typer.Option("--precision", help="Arithmetic: auto is mixed precision on a GPU, fp32 on a CPU."),
    ] = None


@dataclass(frozen=True)
class VariationFlags:
    """Flags on how images are varied and chosen."""

    augment: Annotated[
        Literal["none", "light", "strong"] | None,
        typer.Option(
            "--random-changes", help="Random changes of the images. [default: light, with a spec file as it says]"
        ),
    ] = None
    class_balance: Annotated[
        float | None,
        typer.Option(
            "--class-balance",
            metavar="F",
            help="Repeat images for the sake of classes on fewer than this share of them, such as 0.3.",
        ),
    ] = None
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Random seed. [default: 0]")] = None


@app.command()
@with_flag_groups
def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="A folder with train.json and images/, a COCO JSON file, or a training spec (YAML)."
        ),
        AlsoFlag("--input"),
    ],
    output: Annotated[
        str | None,
        typer.Argument(metavar="OUTPUT", help="Folder for weights, checkpoint and metrics.", show_default=False),
        AlsoFlag("--output"),
    ] = None,
    *,
    data_set: DataSetFlags,
    network: NetworkFlags,
    schedule: ScheduleFlags,
    variation: VariationFlags,
    logger: Annotated[
        list[str] | None,
        typer.Option(
            "--logger",
            metavar="NAME",
            help="Send the metrics to tensorboard, mlflow or wandb as well; may be given several times.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Processes that train together. [default: 1]")
    ] = None,
    find_lr: Annotated[
        bool,
        typer.Option("--find-lr", help="Try rising learning rates for 100 steps, and suggest one; trains nothing."),
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Check the data, as `htc dataset check` does, and train nothing."),
    ] = False,
) -> None:
    """Train a network on images with COCO annotations.

    For a data set, settings are chosen by its size and kept in OUTPUT/spec.yaml; flags override them, as they do those
    of a spec file. Run the same command again to resume from the last checkpoint. best.safetensors and
    weights.safetensors, the last, are for --weights of run.
    """
    from jobs.running.train import TrainRequest, train_and_report

    overrides = {
        "model.initial": network.initial,
        "model.preset": network.preset,
        "model.short_side": network.short_side,
        "model.long_side": network.long_side,
        "model.frozen_stages": network.frozen_stages,
        "epochs": schedule.epochs,
        "patience": schedule.patience,
        "batch_size": schedule.batch_size,
        "accumulate": schedule.accumulate,
        "optimiser.learning_rate": schedule.learning_rate,
        "precision": schedule.precision,
        "class_balance": variation.class_balance,
        "seed": variation.seed,
        "loggers": logger or None,
        "workers": workers,
    }
    request = TrainRequest(
        data,
        output=output,
        images=data_set.images,
        val=data_set.val,
        val_share=data_set.val_share,
        augment=variation.augment,
        finds_rate=find_lr,
    )
    if check:
        from jobs.running.train_check import check_training_data

        raise typer.Exit(check_training_data(request, overrides))
    train_and_report(request, overrides)
