"""htc_asset: the tables of a job's runs as an asset of Dagster; run_step: one run inside an asset or op of your own."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster
from dagster import AssetExecutionContext, AssetsDefinition, Failure, MaterializeResult, MetadataValue
from jinja2 import Environment, StrictUndefined
from jinja2.exceptions import TemplateError

from jobs.orchestrators.htc_command import THIS_HTC, HtcCommand, HtcRunFailed, RunResult, read_spec


def htc_asset(
    name: str,
    spec: Mapping[str, Any] | str,
    *,
    run: str = "{{ asset }}-{{ partition_key or run_id }}",
    address: str | None = None,
    command: Sequence[str] = THIS_HTC,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    folder: str | None = None,
    **asset: Any,
) -> AssetsDefinition:
    """Return an asset that a run materializes, on Dagster's machine or on a Ray cluster.

    `spec`, the text of the file that it names, and `run` are Jinja templates with the variables `asset` (its name),
    `run_id`, `partition_key` (empty without partitions), and for partitions by time `start` and `end`. Retries by
    `retry_policy` resume the run. Wrong specs and runs over their error budget fail without a retry; a run that was
    complete and whose input has changed since succeeds, with a note in the metadata. Terminating the step stops its
    run in order.

    Args:
        name: the asset's.
        spec: a job spec as a dict, or the path of a YAML file.
        run: the run's name; what a name cannot hold becomes a dash.
        address: URL of a Ray cluster's dashboard, to which the run is submitted.
        command: how `htc` is called, such as ["/opt/htc/bin/htc"]; by default the one of this environment.
        arguments: further flags of `htc run` or `htc submit`.
        environment: variables in addition to this process's.
        folder: where `htc` runs; local paths of the spec are relative to it.
        asset: arguments of `dagster.asset`: key_prefix, partitions_def, deps, retry_policy, ...
    """

    @dagster.asset(name=name, kinds={"parquet"}, **asset)  # type: ignore[untyped-decorator]
    def segment(context: AssetExecutionContext) -> MaterializeResult[Any]:
        result = run_step(
            context,
            spec,
            run,
            address=address,
            command=command,
            arguments=arguments,
            environment=environment or {},
            folder=folder,
        )
        return MaterializeResult(metadata=metadata_of(result))

    definition: AssetsDefinition = segment
    return definition


def run_step(context: AssetExecutionContext, spec: Mapping[str, Any] | str, run: str, **options: Any) -> RunResult:
    """Do one run inside a step; `options` are `HtcCommand`'s.

    Raises:
        Failure: the run did not succeed; no retry is allowed where it could not help.
    """
    variables = _variables(context)
    step: HtcCommand | None = None
    try:
        tree = _rendered(read_spec(spec, lambda text: text), variables)
        step = HtcCommand(tree, _rendered(run, variables), on_line=context.log.info, **options)
        return step.execute()
    except HtcRunFailed as failure:
        known = metadata_of(failure.result) if failure.result is not None else {}
        raise Failure(str(failure), metadata=known, allow_retries=failure.is_retriable) from failure
    except TemplateError as error:
        raise Failure(f"The job spec's template cannot be filled in: {error}.", allow_retries=False) from error
    except BaseException:
        # Also Dagster's interrupt of a step that is terminated.
        if step is not None:
            step.stop()
        raise


def metadata_of(result: RunResult) -> dict[str, Any]:
    """Return a run's result as an asset's metadata."""
    known = result.to_dict()
    named: dict[str, Any] = {
        "statuses": MetadataValue.json,
        "link": MetadataValue.url,
        "output": MetadataValue.path,
        "reason": MetadataValue.text,
        "note": MetadataValue.text,
    }
    values = {key: named.get(key, lambda value: value)(value) for key, value in known.items() if key != "images_done"}
    if result.images_done is not None:
        # Dagster draws this one over time.
        values["dagster/row_count"] = result.images_done
    return values


def _variables(context: AssetExecutionContext) -> dict[str, Any]:
    key = context.partition_key if context.has_partition_key else ""
    variables: dict[str, Any] = {
        "asset": context.asset_key.path[-1],
        "run_id": context.run_id,
        "partition_key": key,
    }
    if key and isinstance(context.assets_def.partitions_def, dagster.TimeWindowPartitionsDefinition):
        window = context.partition_time_window
        variables |= {"start": window.start, "end": window.end}
    return variables


def _rendered(value: Any, variables: Mapping[str, Any]) -> Any:
    """Return a text, or all texts of a tree, with their templates filled in."""
    if isinstance(value, str):
        # No page is made of it, so that there is nothing to escape.
        return Environment(undefined=StrictUndefined, autoescape=False).from_string(value).render(variables)  # noqa: S701  # nosec B701
    if isinstance(value, Mapping):
        return {key: _rendered(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [_rendered(each, variables) for each in value]
    return value
