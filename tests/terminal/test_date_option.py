"""--date: what a chat template takes for today, alike in both runtimes, and part of what rows depend on."""

from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from paths import ABACUS

from edge_steer.commands.main import main
from edge_steer.core.backend import EngineOptions, Message
from edge_steer.core.errors import RequestError
from edge_steer.llama.engine import Engine
from edge_steer.models.load import Runtime, load
from edge_steer.reference.model import Reference

MESSAGES: list[Message] = [{"role": "user", "content": "Mia"}]
# As Llama and SmolLM write the date.
TEMPLATE = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{ date_string }}, {{ strftime_now('%d-%B-%Y') }}: {{ messages[0].content }}"
)


def test_both_runtimes_take_the_date_for_today() -> None:
    options = EngineOptions(context=256, threads=1, template=TEMPLATE, date="2024-07-06")
    sources: list[tuple[Path, Runtime]] = [(ABACUS, "llama"), (ABACUS, "torch"), (ABACUS / "abacus-F16.gguf", "torch")]
    for source, runtime in sources:
        with load(source, runtime=runtime, options=options) as model:
            assert isinstance(model, Engine | Reference)
            assert model.chat(MESSAGES) == model.encode("06 Jul 2024, 06-July-2024: Mia", start=False)
            assert model.provenance.backend["date"] == "2024-07-06"


def test_without_a_date_it_is_today() -> None:
    with load(ABACUS, options=EngineOptions(context=256, threads=1, template=TEMPLATE)) as model:
        today = datetime.now()
        assert model.chat(MESSAGES) == model.encode(f"{today:%d %b %Y}, {today:%d-%B-%Y}: Mia", start=False)
        assert "date" not in model.provenance.backend


@pytest.mark.parametrize("date", ["2024-13-01", "today", ""])
def test_another_date_is_refused(date: str) -> None:
    with pytest.raises(RequestError, match=f"the date '{date}' is no day such as 2024-07-26"):
        EngineOptions(date=date)
    result = CliRunner().invoke(main, ["run", str(ABACUS), "hi", "--date", date])
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
