"""Paths and files that no command can use, and their answers."""

LONG = "x" * 300
SHOWN = f"'{LONG[:79]}…"
TAKES = "must be a path that the file system takes and this user may look at; found "
TOO_LONG = f"{TAKES}{SHOWN}: File name too long: check the path."
HOME = (
    "must begin with the home folder of a user there is; found '~nosuchuser/{1}': write the path "
    "out, or ./~nosuchuser/{1} for a folder of that name."
)
DIGITS = "9" * 5000
ROW = '{"text": "a text"}\n'

# Files that these mistakes need, by name.
FILES = {
    "calibration.half.jsonl": ROW + '{"text": "half \\ud800"}\n',
    "digits.jsonl": ROW + ROW + '{"text": "x", "n": ' + DIGITS + "}\n",
    "deep.jsonl": "[" * 100_000,
    "deep.yaml": "name: " + "[" * 5000,
    "digits.yaml": f"name: a\nseed: {DIGITS}\n",
    "date.yaml": "name: a\nseed: 2026-13-45\n",
    "list-key.yaml": "name: a\n? [b, c]\n: d\n",
    "many.yaml": "name: a\n" + "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 8)
    ),
    "itself.yaml": "name: a\nseed: &a [*a]\n",
    "marked.yaml": "\ufeffseed: 1\n",
}  # fmt: skip

OPTIONS = {
    "a model in the home of nobody": (
        "--set model.source=~nosuchuser/model",
        "model.source must begin with the home folder of a user there is; found "
        "'~nosuchuser/model': write the path out, or ./~nosuchuser/model for a folder of that "
        "name.",
    ),
    "a model of a name that is too long": (
        f"--set model.source={LONG}", f"model.source {TOO_LONG}",
    ),
    "a calibration text of a name that is too long": (
        f"--set calibration.path={LONG}", f"calibration.path {TOO_LONG}",
    ),
    "an evaluation text in the home of nobody": (
        "--set evaluation.perplexity.path=~nosuchuser/t.txt",
        "evaluation.perplexity.path must begin with the home folder of a user there is; found "
        "'~nosuchuser/t.txt': write the path out, or ./~nosuchuser/t.txt for a folder of that "
        "name.",
    ),
    "a data set of a name that is too long": (
        f"--set calibration.source=dataset --set calibration.path={LONG}",
        f"calibration.path {TOO_LONG}",
    ),
    "items in a folder of a name that is too long": (
        f"--set evaluation.tasks=[piqa] --set evaluation.data={LONG}",
        f"evaluation.data {TOO_LONG}",
    ),
    "a result of a name that is too long": (f"--result {LONG}", f"--result {TOO_LONG}"),
    "a text with half a character": (
        "--set calibration.path={0}/calibration.half.jsonl",
        "calibration.path: {0}/calibration.half.jsonl line 2 must be one JSON object; it holds "
        "half of a surrogate pair, which is no character, in 'half \\ud800': check the file.",
    ),
    "a text with a number that is too long": (
        "--set evaluation.perplexity.path={0}/digits.jsonl",
        "evaluation.perplexity.path: {0}/digits.jsonl line 3 must be one JSON object; it has a "
        "number of more than 4300 digits: check the file.",
    ),
    "a text that is nested too deeply": (
        "--set calibration.path={0}/deep.jsonl",
        "calibration.path: {0}/deep.jsonl line 1 must be one JSON object; it is nested too deeply "
        "to be read: check the file.",
    ),
    "an option with a number that is too long": (
        f"--set seed={DIGITS}",
        f"--set seed: the value must be YAML; '{DIGITS[:79]}… is not, line 1: Exceeds the limit "
        "(4300 digits) for integer string conversion: value has 5000 digits: correct it.",
    ),
    "an option that is nested too deeply": (
        f"--set seed={'[' * 5000}",
        f"--set seed: the value must be YAML; '{'[' * 79}… is not, it is nested too deeply: "
        "correct it.",
    ),
    "an option of half a character": (
        "--set seed=\udce9",
        "--set seed: the value must be YAML; '\\udce9' is not, character 1: special characters are "
        "not allowed: correct it.",
    ),
    "an option of too many sections": (
        f"--set {'a.' * 2000}b=1",
        f"--set must name a recipe key; found '{('a.' * 2000)[:79]}….",
    ),
    "a number that is not finite in a list": (
        "--set calibration.languages=[.nan]", "calibration.languages must be a finite number; "
        "found nan.",
    ),
    "a tokenizer with a byte-order mark": (
        "--set model.source={0}/marked-words",
        "{0}/marked-words/tokenizer_config.json must begin with its text, for transformers reads "
        "it; it begins with a byte-order mark: save it as UTF-8 without one.",
    ),
    "a value that is very long": (
        f"--set seed={LONG}", f"seed must be a whole number; found {SHOWN}.",
    ),
}  # fmt: skip

COMMANDS = {
    # The path holds the words of a key of quantize.
    "ternary data of a name like a key": (
        "ternary {0}/ternary.yaml --set ternary.data.path={0}/calibration.path.txt",
        "ternary.data.path: text file {0}/calibration.path.txt does not exist: give the path of a "
        ".txt or .jsonl file.",
    ),
    "ternary data of half a character in a file of a name like a section": (
        "ternary {0}/ternary.yaml --set ternary.data.path={0}/calibration.half.jsonl",
        "ternary.data.path: {0}/calibration.half.jsonl line 2 must be one JSON object; it holds "
        "half of a surrogate pair, which is no character, in 'half \\ud800': check the file.",
    ),
    "ternary data in scripts that there are not": (
        "ternary {0}/ternary.yaml --set ternary.data.languages=calibration.x",
        "ternary.data.languages must be auto, null or a list of scripts; found 'calibration.x'.",
    ),
    "a text to evaluate on of a name like a key": (
        "evaluate reference:llama --text {0}/evaluation.perplexity.path.txt",
        "--text: text file {0}/evaluation.perplexity.path.txt does not exist: give the path of a "
        ".txt or .jsonl file.",
    ),
    "items to evaluate on in a folder of a name like a key": (
        "evaluate reference:llama --tasks piqa --data {0}/evaluation.data",
        "--data must hold the items of piqa as {0}/evaluation.data/piqa/*.jsonl; there is no such "
        "file: save the data set's evaluation split there, one JSON object a line.",
    ),
    "a float type to evaluate in that there is not": (
        "evaluate reference:llama --dtype int8",
        "--dtype must be auto, float32, bfloat16 or float16; found 'int8'.",
    ),
    "a text to compare on in the home of nobody": (
        "compare reference:llama reference:neox --text ~nosuchuser/t.txt",
        f"--text {HOME.replace('{1}', 't.txt')}",
    ),
    "a recipe of a name that is too long": (f"quantize {LONG}", f"RECIPE {TOO_LONG}"),
    "an export in the home of nobody": (
        "verify ~nosuchuser/x", f"EXPORT_DIR {HOME.replace('{1}', 'x')}",
    ),
    "a reference below a name that is too long": (
        f"reference train llama --out {LONG}", f"--out {TOO_LONG}",
    ),
    "a recipe of a name that is no text": (
        "quantize caf\udce9.yaml",
        "RECIPE must be a path of UTF-8 characters; found 'caf\\udce9.yaml': rename it.",
    ),
    "a recipe that is nested too deeply": (
        "quantize {0}/deep.yaml",
        "the recipe must be YAML; {0}/deep.yaml is not, it is nested too deeply: correct the file.",
    ),
    "a recipe with a number that is too long": (
        "quantize {0}/digits.yaml",
        "the recipe must be YAML; {0}/digits.yaml is not, line 2: Exceeds the limit (4300 digits) "
        "for integer string conversion: value has 5000 digits: correct the file.",
    ),
    "a recipe with a day that no month has": (
        "plan {0}/date.yaml",
        "the recipe must be YAML; {0}/date.yaml is not, line 2: month must be in 1..12: correct "
        "the file.",
    ),
    "a recipe whose key is a list": (
        "quantize {0}/list-key.yaml",
        "the recipe must be YAML; {0}/list-key.yaml is not, line 2: a key must be a word: correct "
        "the file.",
    ),
    "a recipe whose aliases grow without end": (
        "quantize {0}/many.yaml",
        "the recipe must be YAML; {0}/many.yaml is not, with its aliases it holds more than 10,000 "
        "values: write them out.",
    ),
    "a recipe that holds itself": (
        "ternary {0}/itself.yaml",
        "the recipe must be YAML; {0}/itself.yaml is not, line 2: found unconstructable recursive "
        "node: correct the file.",
    ),
    "a recipe with a byte-order mark that lacks its name": (
        "quantize {0}/marked.yaml", "name is required; the recipe has none: add it.",
    ),
}  # fmt: skip

PLACES = {
    "a state root in the home of nobody": (
        "~nosuchuser/state", None, f"NORMTWEAK_HOME {HOME.replace('{1}', 'state')}",
    ),
    "a state root of a name that is too long": (LONG, None, f"NORMTWEAK_HOME {TOO_LONG}"),
}  # fmt: skip
