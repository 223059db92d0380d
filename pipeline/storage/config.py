"""The spec's `storage` section: how remote stores are reached."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from pipeline.settings import AutoCount, Section
from pipeline.storage.addresses import address_problem, credential_in, secrets_in
from pipeline.storage.options import check_options


def _without_credentials(uri: str) -> str:
    # The spec is copied into run.json, and its uris into every row.
    if credential_in(uri):
        raise ValueError(
            "credentials are not written into a spec; take them out of the URL, and set them in the environment "
            "or a profile"
        )
    if secrets := secrets_in(uri):
        raise ValueError(
            f"{secrets[0]} is a secret, and secrets are not written into a spec; take it out of the URL, or fetch the "
            "file and name the copy"
        )
    if problem := address_problem(uri):
        raise ValueError(problem)
    return uri


Uri = Annotated[str, AfterValidator(_without_credentials)]


class StorageSection(Section):
    """How remote storage is reached; credentials come from the environment only.

    endpoint_url: of S3 and Google Cloud Storage; for one of them alone, `options: {s3: {endpoint_url: ...}}`.
    options: by scheme, further options of its fsspec file system, see `pipeline.storage.options`.
    read_concurrency: the most concurrent reads in each process; a store that asks for fewer requests gets fewer.
    hedge_reads: whether a read that takes unusually long is sent a second time.
    patience_s: how long, in seconds, requests to a store that answered before are retried while it is unreachable.
    """

    endpoint_url: Uri | None = Field(
        default=None, min_length=1, description='a URL such as "http://127.0.0.1:8333", or null'
    )
    anonymous: bool = Field(default=False, description="true or false")
    read_concurrency: AutoCount = Field(default="auto", description='"auto" or a whole number, at least 1')
    hedge_reads: bool = Field(default=True, description="true or false")
    patience_s: float = Field(default=60.0, ge=0, le=86_400, description="a number of seconds from 0 to 86400")
    options: Annotated[dict[str, dict[str, Any]], BeforeValidator(check_options)] = Field(
        default={}, description="sections by scheme, such as {s3: {requester_pays: true}}"
    )
