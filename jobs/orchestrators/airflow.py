"""HtcRunOperator: a run as a task of Apache Airflow 3."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from jobs.orchestrators.htc_command import THIS_HTC, HtcCommand, HtcRunFailed, read_spec


class HtcRunOperator(BaseOperator):  # type: ignore[misc]
    """Does one run, on Airflow's worker or on a Ray cluster; its result is the task's XCom.

    A retry resumes the run, because its name is the DAG run's. Exit code 2 (wrong spec or input) and a run over its
    error budget fail without a retry; exit code 3 (complete, but the input has changed since) succeeds with a note. A
    task that is killed or times out stops its run in order.
    """

    template_fields: ClassVar[Sequence[str]] = ("spec", "run", "address", "arguments", "environment", "folder")
    template_fields_renderers: ClassVar[Mapping[str, str]] = {"spec": "yaml"}
    ui_color = "#e8f0e4"

    def __init__(
        self,
        *,
        spec: Mapping[str, Any] | str,
        run: str = "{{ dag.dag_id }}-{{ run_id }}",
        address: str | None = None,
        command: Sequence[str] = THIS_HTC,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        folder: str | None = None,
        **task: Any,
    ) -> None:
        """All of `spec`, the text of the file that it names, and `run` are templates.

        Args:
            spec: a job spec as a dict, or the path of a YAML file on Airflow's worker.
            run: the run's name; what a name cannot hold becomes a dash.
            address: URL of a Ray cluster's dashboard, to which the run is submitted; by default it runs on the worker.
            command: how `htc` is called, such as ["/opt/htc/bin/htc"]; by default the one of this environment.
            arguments: further flags of `htc run` or `htc submit`.
            environment: variables in addition to the worker's, such as the storage's credentials.
            folder: where `htc` runs; local paths of the spec are relative to it.
            task: arguments of every operator: task_id, retries, outlets, ...
        """
        super().__init__(**task)
        self.spec = spec
        self.run = run
        self.address = address
        self.command = command
        self.arguments = arguments
        self.environment = environment
        self.folder = folder
        self._running: HtcCommand | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        """Do the run; return its result."""
        try:
            spec = read_spec(self.spec, lambda text: str(self.render_template(text, context)))
            self._running = HtcCommand(
                spec,
                self.run,
                address=self.address,
                command=self.command,
                arguments=self.arguments,
                environment=self.environment or {},
                folder=self.folder,
                on_line=self.log.info,
            )
            result = self._running.execute()
        except HtcRunFailed as failure:
            if failure.result is not None:
                context["ti"].xcom_push(key="failed_run", value=failure.result.to_dict())
            if failure.is_retriable:
                raise AirflowException(str(failure)) from failure
            raise AirflowFailException(str(failure)) from failure
        if result.note:
            self.log.warning("%s", result.note)
        return result.to_dict()

    def on_kill(self) -> None:
        """Stop the run; what it has committed stays, and the next attempt resumes it."""
        if self._running is not None:
            self._running.stop()
