"""From configuration to sources, while the broker's process still has the starter's rights."""

from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

from bailiwick.broker.configuration import CredentialConfiguration, EnvironmentCredential, FileCredential
from bailiwick.broker.sources.environment import EnvironmentSource, read_variables
from bailiwick.broker.sources.file import FileSource
from bailiwick.broker.sources.port import CredentialSource


def from_configuration(
    credentials: Mapping[str, CredentialConfiguration], *, directory: Path, environment_descriptor: int | None
) -> dict[str, CredentialSource]:
    """Called in the broker's process before its uid is dropped. Relative paths start at `directory`. What is missing is told when it is asked for, so
    that one credential does not keep the rest from starting."""
    wanted = {credential.variable for credential in credentials.values() if isinstance(credential, EnvironmentCredential)}
    variables = read_variables(environment_descriptor, wanted) if wanted and environment_descriptor is not None else {}
    sources: dict[str, CredentialSource] = {}
    for name, credential in credentials.items():
        match credential:
            case EnvironmentCredential(variable=variable):
                sources[name] = EnvironmentSource(name, variable, variables.get(variable))
            case FileCredential(path=path):
                source = FileSource(name, directory / path)
                source.open()
                sources[name] = source
            case never:
                assert_never(never)
    return sources
