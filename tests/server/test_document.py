"""The document of `/openapi.json` is true: schemathesis makes requests from it, and compares the answers with it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from served import Service, Settings, create_app, wait_until

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

service = Service(Settings(name="tales", most_new_tokens=4, slots=4))
document = schemathesis.openapi.from_dict(create_app(service).openapi())
document.app = create_app(service)
operations = {operation.ok().label: operation.ok() for operation in document.get_all_operations()}


@pytest.mark.slow
@pytest.mark.parametrize("name", operations)
def test_answers_are_as_the_document_says(name, tales):
    if not service.is_ready:
        service.begin(tales)

    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operations[name].as_strategy())
    def check(case):
        # Not everything that the document allows is accepted: the limits of a server and of its model are not in it.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    check()
    wait_until(lambda: not service.places.taken)
