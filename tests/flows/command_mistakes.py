"""Mistakes at the commands themselves and in the places they write to, and their answers."""

from tests.flows.ablation_mistakes import MISTAKES as OF_ABLATIONS

COMMANDS = {
    "no command": (
        "", "a command is needed, such as `normtweak quantize`; see normtweak --help.",
    ),
    "a misspelt command": ("quantise x", "quantise is not a command; did you mean quantize?"),
    "no recipe": (
        "quantize",
        "the following arguments are required: RECIPE|MODEL; see `normtweak quantize --help`.",
    ),
    "a missing recipe": (
        "quantize {0}/absent.yaml",
        "the recipe must be a YAML file; {0}/absent.yaml does not exist: check the path.",
    ),
    "a recipe that is a folder": (
        "plan {0}",
        "the recipe must be a YAML file; '{0}' is none: check the path, or say the width that a "
        "model is to have, such as `normtweak quantize {0} --bits 4`.",
    ),
    "a recipe that is empty": (
        "quantize {0}/empty.txt",
        "the recipe must map keys to values; {0}/empty.txt is empty: write at least `name: ...`.",
    ),
    "a recipe that is no YAML": (
        "quantize {0}/torn.yaml",
        "the recipe must be YAML; {0}/torn.yaml is not, line 2: expected the node content, but "
        "found '<stream end>': correct the file.",
    ),
    "a key written twice": (
        "quantize {0}/twice.yaml",
        "the recipe must be YAML; {0}/twice.yaml is not, line 3: the key seed is written twice: "
        "correct the file.",
    ),
    "a recipe that is not UTF-8": (
        "quantize {0}/latin.txt",
        "the recipe {0}/latin.txt must be UTF-8; byte 3 is not: convert the file.",
    ),
    "a recipe without a name": (
        "quantize {0}/nameless.yaml", "name is required; the recipe has none: add it.",
    ),
    "verify without an export": (
        "verify {0}/model",
        "an export folder holds normtweak.json; {0}/model does not. Give the folder that an export "
        "was written to.",
    ),
    "verify without a folder": (
        "verify {0}/absent",
        "an export folder holds normtweak.json; {0}/absent does not. Give the folder that an "
        "export was written to.",
    ),
    "a reference model of another name": (
        "reference train gpt",
        "argument NAME: invalid choice: 'gpt' (choose from 'llama', 'neox'); see `normtweak "
        "reference train --help`.",
    ),
    "a port that does not exist": (
        "ui --mlflow-port 70000",
        "argument --mlflow-port: must be a port from 1 to 65535; found '70000'; see `normtweak ui "
        "--help`.",
    ),
    "a study of a language model": (
        "polynomial {0}/recipe.yaml",
        "calibration is not a recipe key; did you mean evaluations? evaluation is not a recipe "
        "key; did you mean evaluations? (1 more.)",
    ),
    "a schedule longer than the training": (
        "ternary {0}/ternary.yaml --set ternary.warmup=1.5",
        "ternary.warmup must be a share of training, from 0 to 1; found 1.5: a schedule longer "
        "than the training never reaches lambda 1.",
    ),
    "a lambda above one": (
        "ternary {0}/ternary.yaml --set ternary.lambda_start=1.5",
        "ternary.lambda_start must be from 0 to 1; found 1.5.",
    ),
    "an unknown schedule": (
        "ternary {0}/ternary.yaml --set ternary.schedule=steps",
        "ternary.schedule must be linear, cosine, sigmoid or exponential; found 'steps'.",
    ),
    "ternary rows that fill no byte": (
        "ternary {0}/ternary.yaml --set model.source={0}/odd-rows",
        "export.format: bitnet packs 4 rows into a byte, so that every output width must be a "
        "multiple of 4; model.layers.0.mlp.gate_proj has 130 outputs (and 64 inputs). Leave it "
        "float, or choose another model.",
    ),
    "ternary without rounded activations": (
        "ternary {0}/ternary.yaml --set ternary.activation_bits=null",
        "ternary.activation_bits must be 8, since readers of bitnet always round activations to 8 "
        "bits; found null: remove it.",
    ),
    "a ternary recipe with a section of quantize": (
        "ternary {0}/recipe.yaml",
        "calibration is not read by normtweak ternary, whose training has its own section "
        "(ternary, with ternary.data for the text): remove it.",
    ),
    "a ternary model in another format": (
        "ternary {0}/ternary.yaml --set export.format=gptq",
        "export.format of a ternary model must be bitnet; it is gptq, which holds no rounded "
        "activations. Use auto or bitnet.",
    ),
    "ternary data without its path": (
        "ternary {0}/ternary.yaml --set ternary.data.path=null",
        "ternary.data.path is required with source text; found none.",
    ),
    "ternary data that is not there": (
        "ternary {0}/ternary.yaml --set ternary.data.path={0}/absent.txt",
        "ternary.data.path: text file {0}/absent.txt does not exist: give the path of a .txt or "
        ".jsonl file.",
    ),
    "a key that another key switches off": (
        "ternary {0}/ternary.yaml --set ternary.overlap=0.3",
        "ternary.overlap is only read with scope layerwise; found 0.3: remove it.",
    ),
    "a misspelt ternary key": (
        "ternary {0}/ternary.yaml --set ternary.step=8",
        "ternary.step is not a recipe key; did you mean ternary.steps?",
    ),
    "a study with a misspelt key": (
        "polynomial conf/polynomial-small.yaml --set grid.bit=[8]",
        "grid.bit is not a recipe key; did you mean grid.bits?",
    ),
    "a study whose result has no folder": (
        "polynomial conf/polynomial-small.yaml --result {0}/absent/result.json",
        "--result needs an existing folder; {0}/absent does not exist: create it or choose "
        "another.",
    ),
    "no steps": (
        "reference train llama --steps 0", "--steps must be at least 1; found 0: raise it.",
    ),
    "a reference below a file": (
        "reference train llama --out {0}/empty.txt/x",
        "--out must be a folder you may write to; {0}/empty.txt/x cannot be made: {0}/empty.txt "
        "is a file.",
    ),
    "a promotion of no version": (
        "promote tiny",
        "a registered version is written models:/NAME/VERSION, such as models:/my-model/3; found "
        "'tiny'.",
    ),
    "a promotion of an alias": (
        "promote models:/tiny@candidate",
        "a registered version is written models:/NAME/VERSION, such as models:/my-model/3; found "
        "'models:/tiny@candidate'.",
    ),
    "a rollback of an alias of MLflow's own": (
        "rollback tiny --alias v3",
        "--alias must be letters, digits, '_' and '-', and neither latest nor v and a number; "
        "found 'v3': choose another.",
    ),
    "a rebuild of no version": (
        "rebuild tiny",
        "a registered version is written models:/NAME/VERSION or models:/NAME@ALIAS, such as "
        "models:/my-model/3; found 'tiny'.",
    ),
    "a rebuild without a registry": (
        "rebuild models:/tiny/1",
        "a rebuild needs the registry that holds the version; there is none at "
        "{0}/state/mlflow.db: set NORMTWEAK_HOME or MLFLOW_TRACKING_URI to where it is.",
    ),
    "a rebuild whose result has no folder": (
        "rebuild models:/tiny@champion --result {0}/absent/result.json",
        "--result needs an existing folder; {0}/absent does not exist: create it or choose "
        "another.",
    ),
    "a plan of a model that is not here": (
        "plan {0}/recipe.yaml --set model.source=nobody/nothing-of-this-name",
        "a plan writes nothing, so the model must be here; nobody/nothing-of-this-name is not in "
        "the hub cache: run `hf download nobody/nothing-of-this-name` first.",
    ),
}  # fmt: skip
COMMANDS |= OF_ABLATIONS
COMMANDS["the command sweep"] = (
    "sweep x --task y",
    "normtweak sweep is not built yet; built are quantize, ternary, finetune, plan, polynomial, "
    "ablate, evaluate, compare, verify, sign, promote, rollback, register, push, rebuild, status, "
    "clean, "
    "reference, ui, serve.",
)

PLACES = {
    "a state root below a file": (
        "{0}/empty.txt/state", None,
        "All state is kept under {0}/empty.txt/state, but {0}/empty.txt is a file, not a folder; "
        "choose a folder you may write to with NORMTWEAK_HOME.",
    ),
    "a disk that is too small": (
        "{0}/state", 20_000_000,
        "this run may write 33.9 MB under {0}/state, 33.6 MB of it databases, logs and reports; "
        "its disk has 20.0 MB free: make room (`normtweak clean`), or set NORMTWEAK_HOME to a "
        "larger disk.",
    ),
}  # fmt: skip
