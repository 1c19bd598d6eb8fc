from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from edge_steer.core.errors import ModelError
from edge_steer.llama.chat_template import render

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is 1 < 2? 'ja' \N{LESS-THAN OR EQUAL TO}"},
    {"role": "assistant", "content": " So it is. "},
    {"role": "user", "content": "And 2 < 1?"},
]
TEMPLATES = {
    "marks": "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m.content | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    "blocks": "{%- for m in messages -%}\n    {% if m.role == 'system' %}\n        {% continue %}\n    {% endif %}\n"
    "  {{ m.role + ':' }} {{ m.content }}\n{% endfor %}\n{%- if add_generation_prompt %}\n  answer:\n{% endif %}",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}",
    "tags": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "space": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{% endfor %}",
}


KEEPING = ("marks", "blocks", "tags")  # the last message as it is, so that it can be gone on with


@pytest.mark.parametrize(
    ("name", "answer"), [*((name, True) for name in TEMPLATES), *((name, False) for name in KEEPING)]
)
def test_the_text_is_the_one_transformers_gives(name: str, answer: bool) -> None:
    options: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
    (expected,), _ = render_jinja_template(
        [TURNS],
        chat_template=TEMPLATES[name],
        add_generation_prompt=answer,
        continue_final_message=not answer,
        **options,
    )
    assert render(TEMPLATES[name], TURNS, bos="<s>", eos="</s>", answer=answer) == expected


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for %}", "refuses these messages: "),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_template_that_refuses_or_is_broken_is_told_in_one_line(template: str, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        render(template, TURNS, bos="", eos="")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="leaves out or changes the last message"):
        render("{{ messages[0].content }}", TURNS, bos="", eos="", answer=False)
