"""Every mistake the command line answers, with its sentence; {0} is the folder of the test."""

NEAR = "is not a recipe key; did you mean"
GIVE_TEXT = "give a file with at least one document."
SAVE_BOTH = "save model and tokenizer into it with save_pretrained."
SAVE_TOKENIZER = "save the tokenizer again with save_pretrained."

# name: (arguments behind `quantize recipe.yaml`, or a whole command line; the sentence)
OPTIONS = {
    "a wrong key": ("--set quantization.bit=3", f"quantization.bit {NEAR} quantization.bits?"),
    "a wrong section": ("--set quantisation.bits=3", f"quantisation {NEAR} quantization?"),
    "a key in the wrong section": ("--set bits=3", f"bits {NEAR} quantization.bits?"),
    "a wrong type": ("--set seed=soon", "seed must be a whole number; found 'soon'."),
    "a value for a section": (
        "--set model=llama",
        "model must be a section with keys such as source, revision, dtype, device; found 'llama'.",
    ),
    "a width that does not exist": (
        "--set quantization.bits=5", "quantization.bits must be 2, 3, 4 or 8; found 5.",
    ),
    "a value out of range": (
        "--set quantization.percdamp=1.5", "quantization.percdamp must be less than 1; found 1.5.",
    ),
    "a group size of -1": (
        "--set quantization.group_size=-1",
        "quantization.group_size must be a number of columns of at least 1, or null for whole rows;"
        " found -1.",
    ),
    "an infinite rate": (
        "--set final_tune.lr=.inf", "final_tune.lr must be a finite number; found inf.",
    ),
    "an alias with a dot": (
        "--set registry.alias=v1.2",
        "registry.alias must be letters, digits, dashes and underscores; found 'v1.2'.",
    ),
    "an alias that MLflow keeps": (
        "--set registry.alias=V7",
        "registry.alias must be neither latest nor v and a number, which MLflow keeps for itself; "
        "found 'V7'.",
    ),
    "two mistakes": (
        "--set seed=-1 --set final_tune.steps=0",
        "seed must be at least 0; found -1. final_tune.steps must be at least 1; found 0.",
    ),
    "three mistakes": (
        "--set seed=-1 --set final_tune.steps=0 --set norm_tweak.loss=l1",
        "seed must be at least 0; found -1. norm_tweak.loss must be channel, mse or kl; found 'l1'."
        " (1 more.)",
    ),
    "no value": (
        "--set quantization.bits",
        "--set takes KEY=VALUE, such as quantization.bits=3; found 'quantization.bits'.",
    ),
    "a group size that does not divide": (
        "--set quantization.group_size=48",
        "quantization.group_size must divide every input width; 48 does not divide 128 of "
        "model.layers.0.mlp.down_proj. Choose a divisor, or null for whole rows.",
    ),
    "a format that cannot hold the width": (
        "--set export.format=gptq --set quantization.bits=4 --set quantization.group_size=null",
        "export.format: gptq at 4 bits needs groups; quantization.group_size is null, which "
        "its reader cannot run on a CPU. Set group_size, or use compressed-tensors.",
    ),
    "a window longer than the context": (
        "--set calibration.length=512",
        "calibration.length must be at most the model's context of 256 tokens; found 512: lower "
        "it, or set null for 256",
    ),
    "an evaluation window longer than the context": (
        "--set evaluation.perplexity.length=257",
        "evaluation.perplexity.length must be at most the model's context of 256 tokens; found "
        "257: lower it.",
    ),
    "activations": (
        "--set quantization.activation_bits=8",
        "quantization.activation_bits is not built yet; found 8: remove it or leave it at null.",
    ),
    "a gate": (
        "--set gate.max_kl=0.1",
        "gate.max_kl is not built yet; found 0.1: remove it or leave it at null.",
    ),
    "another gate": (
        "--set gate.max_perplexity_ratio=1.1",
        "gate.max_perplexity_ratio is not built yet; found 1.1: remove it or leave it at null.",
    ),
    "a third gate": (
        "--set gate.min_top1_agreement=0.9",
        "gate.min_top1_agreement is not built yet; found 0.9: remove it or leave it at null.",
    ),
    "the alias that a gate would move": (
        "--set registry.promote_to=null",
        "registry.promote_to is not built yet; found None: remove it or leave it at champion.",
    ),
    "levels that the grid does not hold": (
        "--set quantization.levels=ternary",
        "quantization.levels ternary needs bits: 2 and symmetric: true, which hold its levels; "
        "found bits: 2 and symmetric: false.",
    ),
    "ternary keys": (
        "--set ternary.steps=8",
        "a recipe with a ternary section is carried out by `normtweak ternary RECIPE`, not by "
        "quantize: run that, or remove the section.",
    ),
    "evaluation tasks": (
        "--set evaluation.tasks=[piqa]",
        "evaluation.tasks is not built yet; found ['piqa']: remove it or leave it at [].",
    ),
    "evaluation data": (
        "--set evaluation.data=x",
        "evaluation.data is not built yet; found 'x': remove it or leave it at null.",
    ),
    "bitnet": (
        "--set export.format=bitnet",
        "export.format bitnet is a format of ternary models: run normtweak ternary, or use auto, "
        "compressed-tensors or gptq.",
    ),
    "gguf": (
        "--set export.format=gguf",
        "export.format gguf is a format of ternary models: run normtweak ternary, or use auto, "
        "compressed-tensors or gptq.",
    ),
    "a missing text": (
        "--set calibration.path={0}/absent.txt",
        "calibration.path: text file {0}/absent.txt does not exist: give the path of a .txt or "
        ".jsonl file.",
    ),
    "an empty text": (
        "--set evaluation.perplexity.path={0}/empty.txt",
        f"evaluation.perplexity.path: text file {{0}}/empty.txt holds no text: {GIVE_TEXT}",
    ),
    "a text that is not UTF-8": (
        "--set calibration.path={0}/latin.txt",
        "calibration.path: text file {0}/latin.txt must be UTF-8; byte 3 is not: convert the file.",
    ),
    "a text without the field": (
        "--set calibration.path={0}/other.jsonl",
        'calibration.path: {0}/other.jsonl line 1 must be an object with a string field "text"; '
        "found body.",
    ),
    "a text of another kind": (
        "--set calibration.path={0}/recipe.yaml",
        "calibration.path: a text file must end in .txt or .jsonl; found {0}/recipe.yaml.",
    ),
    "a missing data set": (
        "--set calibration.source=dataset --set calibration.path={0}/absent.parquet",
        "calibration.path must be a file, a folder or a hub data set; {0}/absent.parquet does not "
        "exist: check the path.",
    ),
    "no evaluation text": (
        "--set evaluation.perplexity.path=null",
        "evaluation.perplexity.path is required for a model that ships no held-out text; found "
        "none for {0}/model: give a .txt or .jsonl file.",
    ),
    "a missing model": (
        "--set model.source={0}/absent",
        "model.source must be a folder, a hub id such as owner/name, or reference:llama | "
        "reference:neox; no folder is called '{0}/absent'. Check the path.",
    ),
    "a reference model that does not exist": (
        "--set model.source=reference:gpt",
        "a reference model must be one of llama, neox; got 'gpt'.",
    ),
    "a model without blocks": (
        "--set model.source={0}/no-blocks",
        "the model must be a stack of numbered blocks; its weight files name none: choose a "
        "decoder-only transformer",
    ),
    "a model without safetensors": (
        "--set model.source={0}/pickled",
        "{0}/pickled must hold safetensors weights; it holds only pickled ones, which are never "
        "opened here. Save the model again with save_pretrained.",
    ),
    "a mixture of experts": (
        "--set model.source={0}/experts",
        "mixture-of-experts models are not supported yet; {0}/experts has num_local_experts: 8. "
        "Choose a dense model.",
    ),
    "a model without a tokenizer": (
        "--set model.source={0}/speechless",
        "a model folder must hold its tokenizer and name its architecture; {0}/speechless lacks "
        "tokenizer_config.json, tokenizer.json (or vocab.json and merges.txt): "
        f"{SAVE_BOTH}",
    ),
    "a tokenizer without a vocabulary": (
        "--set model.source={0}/wordless",
        "a model folder must hold its tokenizer and name its architecture; {0}/wordless lacks "
        f"tokenizer.json (or vocab.json and merges.txt): {SAVE_BOTH}",
    ),
    "a tokenizer without its settings": (
        "--set model.source={0}/unsettled",
        "a model folder must hold its tokenizer and name its architecture; {0}/unsettled lacks "
        f"tokenizer_config.json: {SAVE_BOTH}",
    ),
    "a torn tokenizer": (
        "--set model.source={0}/torn-words",
        "{0}/torn-words/tokenizer.json must be a JSON object with model; Expecting ':' delimiter: "
        f"line 1 column 19 (char 18): {SAVE_TOKENIZER}",
    ),
    "a tokenizer that is empty": (
        "--set model.source={0}/no-words",
        "{0}/no-words/tokenizer.json must be a JSON object with model; it has no model: "
        f"{SAVE_TOKENIZER}",
    ),
    "settings of a tokenizer that are none": (
        "--set model.source={0}/odd-words",
        "{0}/odd-words/tokenizer_config.json must be a JSON object; it is something else: "
        f"{SAVE_TOKENIZER}",
    ),
    "a model that does not say what it is": (
        "--set model.source={0}/nameless",
        "a model folder must hold its tokenizer and name its architecture; {0}/nameless lacks "
        f"architectures in config.json: {SAVE_BOTH}",
    ),
    "a quantized model": (
        "--set model.source={0}/packed",
        "the model must be a float model; {0}/packed is already quantized (gptq). Give the model "
        "it was made from.",
    ),
    "a torn model": (
        "--set model.source={0}/torn",
        "{0}/torn/model.safetensors must be a complete safetensors file; its header describes "
        "355592 bytes and it has 300000. Fetch or save the model again.",
    ),
    "a revision of a folder": (
        "--set model.revision=main",
        "model.revision is for hub ids; {0}/model is none. Leave the revision out.",
    ),
    "a device that does not exist": (
        "--set model.device=tpu", "model.device must be auto, cpu, cuda or cuda:N; got 'tpu'.",
    ),
    "a result that is a folder": (
        "--result {0}", "--result must name a file; {0} is a folder: add a file name.",
    ),
    "a result in a folder that is absent": (
        "--result {0}/absent/r.json",
        "--result needs an existing folder; {0}/absent does not exist: create it or choose "
        "another.",
    ),
    "a result below a file": (
        "--result {0}/empty.txt/r.json",
        "--result needs an existing folder; {0}/empty.txt is a file: create it or choose another.",
    ),
    "an unknown option": (
        "--fast", "unrecognized arguments: --fast; see `normtweak --help`.",
    ),
}  # fmt: skip

COMMANDS = {
    "no command": (
        "", "a command is needed, such as `normtweak quantize`; see normtweak --help.",
    ),
    "a misspelt command": ("quantise x", "quantise is not a command; did you mean quantize?"),
    "no recipe": (
        "quantize",
        "the following arguments are required: RECIPE; see `normtweak quantize --help`.",
    ),
    "a missing recipe": (
        "quantize {0}/absent.yaml",
        "the recipe must be a YAML file; {0}/absent.yaml does not exist: check the path.",
    ),
    "a recipe that is a folder": (
        "plan {0}", "the recipe must be a YAML file; {0} is a folder: check the path.",
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
        "the recipe must be UTF-8 text; byte 3 of {0}/latin.txt is not: convert the file.",
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
        "ternary.data.path is required with ternary.data.source=text; found none.",
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
    "a plan of a model that is not here": (
        "plan {0}/recipe.yaml --set model.source=nobody/nothing-of-this-name",
        "a plan writes nothing, so the model must be here; nobody/nothing-of-this-name is not in "
        "the hub cache: run `hf download nobody/nothing-of-this-name` first.",
    ),
}  # fmt: skip
for command in ("evaluate", "ablate", "sweep", "rebuild"):
    COMMANDS[f"the command {command}"] = (
        f"{command} x --task y",
        f"normtweak {command} is not built yet; built are quantize, ternary, finetune, plan, "
        "verify, polynomial, clean, reference, ui, serve.",
    )

PLACES = {
    "a state root below a file": (
        "{0}/empty.txt/state", None,
        "All state is kept under {0}/empty.txt/state, but {0}/empty.txt is a file, not a folder; "
        "choose a folder you may write to with NORMTWEAK_HOME.",
    ),
    "a disk that is too small": (
        "{0}/state", 20_000_000,
        "this run may write 33.9 MB under {0}/state; its disk has 20.0 MB free: make room "
        "(`normtweak clean`), lower calibration.samples or length, or set NORMTWEAK_HOME to a "
        "larger disk.",
    ),
}  # fmt: skip
