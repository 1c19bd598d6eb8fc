"""Which architectures llama.cpp can steer, read from the model graphs of the installed version's sources.

Takes no model: it reads the C++ and holds the tables of edge_steer/core/architectures.py against it. An architecture is
plain if in its graph every block adds the control vector to the sum that ends the block, names the result l_out and
hands on just that. Every other one must be in UNSTEERABLE or, where a person has read it and found it right, in READ.
One that can be steered is in HALF_GELU if its graph has a GELU; and GGUF_NAMES must name every causal language model of
transformers as llama.cpp's converter does. The sources are fetched once by pip into the cache folder.

    python benchmarks/steerable.py          exits 1 and says what does not agree
    python benchmarks/steerable.py --all    lists every architecture
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from llama_tools import source

from edge_steer.core.architectures import HALF_GELU, UNSTEERABLE, gguf_name

READ = {  # not plain by the rule, and right all the same
    "bitnet": "the sum is named l_out before and after the control vector, which is one node without one",
    "gemma4": "the sum is scaled by the block's own scalar, as in Hugging Face's block",
    "gptneox": "two kinds of block, each with the control vector at its end",
    "qwen3tts": "as qwen3vl",
    "qwen3vl": "after l_out only features of images are added",
    "qwen3vlmoe": "as qwen3vl",
}
NOT_MODELS = {"(unknown)", "gptj"}  # names llama.cpp has no graph for

_GELU = re.compile(r"\bLLM_FFN_(?:GELU|GEGLU)\b|\bggml_(?:gelu|geglu)(?:_split)?\(")
_VECTOR = re.compile(r"(\w+) = build_cvec\((\w+), (\w+)\); ")
_LOOP = re.compile(r"for \((?:int|uint32_t) (?:il|i) = 0; (?:il|i) < n_layer; \+\+(?:il|i)\)$")


@dataclass(frozen=True)
class Graph:
    """A graph as the sources have it: whether it keeps a cache, what is not plain in it, whether it has a GELU."""

    cached: bool
    odd: tuple[str, ...]
    gelu: bool


@click.command()
@click.option("--all", "every", is_flag=True, help="List every architecture.")
def main(every: bool) -> None:
    """Hold the table of the package against llama.cpp's sources."""
    graphs = read_graphs(source() / "src")
    if every:
        for name, graph in sorted(graphs.items()):
            click.echo(f"{name:18} {UNSTEERABLE.get(name) or READ.get(name) or 'plain'}  {'; '.join(graph.odd)}")
    wrong = [*disagreements(graphs), *misnamed(source())]
    for line in wrong:
        click.echo(line)
    refused = len(set(UNSTEERABLE) & set(graphs))
    click.echo(f"{len(graphs)} architectures, {refused} refused, {len(wrong)} disagreements")
    sys.exit(bool(wrong))


def disagreements(graphs: dict[str, Graph]) -> Iterator[str]:
    """One line for each architecture whose graph does not go with the tables."""
    for name in sorted(set(UNSTEERABLE) - set(graphs)):
        yield f"{name}: refused, but llama.cpp has no such architecture"
    for name, graph in sorted(graphs.items()):
        doubts = [*graph.odd, *([] if graph.cached else ["llama.cpp keeps no cache for it"])]
        if doubts and name not in UNSTEERABLE and name not in READ:
            yield f"{name}: {'; '.join(doubts)}"
        if not doubts and name in READ:
            yield f"{name}: listed as read, but it is plain"
        if name not in UNSTEERABLE and graph.gelu != (name in HALF_GELU):
            yield f"{name}: it has {'a' if graph.gelu else 'no'} GELU"


def misnamed(sources: Path) -> Iterator[str]:
    """One line for each model_type of transformers that llama.cpp's converter names otherwise than `gguf_name`.

    Of several models in one, transformers' name of the text model counts.
    """
    sys.path[:0] = [str(sources), str(sources / "gguf-py")]  # the converter has a gguf of its own
    import conversion
    import gguf
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    conversion.load_all_models()
    known = conversion.ModelBase._model_classes[conversion.ModelType.TEXT]
    for model_type, found in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()):
        classes = [found] if isinstance(found, str) else found
        names = {gguf.MODEL_ARCH_NAMES[known[one].model_arch] for one in classes if one in known}
        if not names or names == {gguf_name(model_type)}:
            continue
        if AutoConfig.for_model(model_type).get_text_config(decoder=True).model_type == model_type:
            yield f"{model_type}: llama.cpp's converter names it {', '.join(sorted(names))}"


def read_graphs(sources: Path) -> dict[str, Graph]:
    """llama.cpp's name of every architecture -> its graph."""
    listed = _plain_text(sources / "llama-arch.cpp").partition("LLM_ARCH_NAMES = {")[2].partition("};")[0]
    names = dict(re.findall(r'\{ *(LLM_ARCH_\w+), *"([^"]+)" *\}', listed))
    model = _plain_text(sources / "llama-model.cpp")
    classes = {
        constant: found
        for cases, found in re.findall(r"((?:case LLM_ARCH_\w+: )+)return new (llama_model_\w+)\(params\);", model)
        for constant in re.findall(r"LLM_ARCH_\w+", cases)
    }
    uncached = set(re.findall(r"LLM_ARCH_\w+", model.partition("::create_memory(")[2].partition("res = nullptr")[0]))
    borrowed = _borrowed(sources / "models" / "models.h")
    graphs = {}
    for constant, name in names.items():
        if constant not in classes and name not in NOT_MODELS:
            raise click.ClickException(f"the sources are not as this script knows them: {name} has no model class")
        if constant in classes:
            written = borrowed.get(classes[constant], classes[constant]).removeprefix("llama_model_")
            path = sources / "models" / f"{written.replace('_', '-')}.cpp"
            code = _plain_text(path) if path.is_file() else ""
            odd = tuple(_odd(code)) if code else ("it has no graph",)
            graphs[name] = Graph(constant not in uncached, odd, bool(_GELU.search(code)))
    return graphs


def _odd(code: str) -> Iterator[str]:
    """What is not plain in the graphs of one file."""
    vectors = list(_VECTOR.finditer(code))
    if not vectors:
        yield "it takes no control vector"
        return
    if len(vectors) > 1:
        yield f"it takes a control vector at {len(vectors)} places"
    if code.count('"l_out"') > len(vectors):
        yield "more nodes are named l_out"
    for found in vectors:
        summed, taken, layer = found.groups()
        named = f'cb({summed}, "l_out", {layer}); '
        after = code[found.end() :]
        if summed != taken or not after.startswith(named):
            yield f"after the control vector: {after[:60]}"
        elif not re.match(rf"(inpL = {summed}; \}}|return {summed}; \}}|\}} )", after[len(named) :]):
            yield f"after l_out: {after[len(named) :][:60]}"
        before = re.sub(r'(cb\(\w+, "\w+", \w+\); )+$', "", code[: found.start()])
        last = before.rstrip("; ").rpartition(";")[2].lstrip("} ")
        if not before.endswith("; ") or not re.match(rf"{summed} = ggml_add\(ctx0, ", last):
            yield f"before the control vector: {last[-60:] if before.endswith('; ') else 'a branch'}"
        openers = _openers(code[: found.start()])
        if not (len(openers) == 1 or (len(openers) == 2 and _LOOP.search(openers[1]))):
            yield f"the control vector is under: {openers[-1][-60:]}"


def _openers(code: str) -> list[str]:
    """What stands before each brace that is open at the end of the code, the outermost first."""
    opened: list[int] = []
    for at, character in enumerate(code):
        if character == "{":
            opened.append(at)
        elif character == "}" and opened:
            opened.pop()
    return [_statement(code[:at].rstrip()) for at in opened]


def _statement(code: str) -> str:
    """The end of the code, from where its last statement begins."""
    loop = code.rfind("for (")
    return code[loop:] if loop >= 0 and "{" not in code[loop:] else re.split(r"[;}{] ", code)[-1]


def _borrowed(header: Path) -> dict[str, str]:
    """Model class -> the model class whose graph it runs, where that is not its own."""
    found = {}
    a_class = r"struct (llama_model_\w+) : public (llama_model_\w+) \{(.*?) \};(?= struct|$)"
    for name, parent, body in re.findall(a_class, _plain_text(header)):
        alias = re.search(r"using graph = (llama_model_\w+)::graph", body)
        if alias:
            found[name] = alias[1]
        elif "struct graph" not in body:
            found[name] = parent
    return found


def _plain_text(path: Path) -> str:
    """The code on one line, single-spaced, without comments."""
    code = path.read_text(encoding="utf-8")
    code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", code, flags=re.DOTALL)
    return re.sub(r"\s+", " ", code)


if __name__ == "__main__":
    main()
