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
    "no exponent to search by": (
        "--set quantization.exponents=[]",
        "quantization.exponents must be a list of one to eight numbers from 1 to 16; found [].",
    ),
    "an effort that does not exist": (
        "--set effort=most", "effort must be fast, standard, best or long; found 'most'.",
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
        "it, or set null for 256.",
    ),
    "an evaluation window longer than the context": (
        "--set evaluation.perplexity.length=257",
        "evaluation.perplexity.length must be at most the model's context of 256 tokens; found "
        "257: lower it.",
    ),
    "activations of another width": (
        "--set quantization.activation_bits=4",
        "quantization.activation_bits must be 8; found 4.",
    ),
    "activations that no reader rounds beside zero points": (
        "--set quantization.activation_bits=8",
        "quantization.activation_bits 8 needs symmetric: true: readers unpack a weight with zero "
        "points while they load it, and then round no activations; found symmetric: false.",
    ),
    "activations in a format that rounds none": (
        "--set quantization.activation_bits=8 --set quantization.symmetric=true "
        "--set export.format=gptq --set quantization.bits=8",
        "export.format: gptq holds no rounded activations; quantization.activation_bits is 8. Use "
        "compressed-tensors, or set it to null.",
    ),
    "a gate that nothing passes": (
        "--set gate.max_kl=-0.1",
        "gate.max_kl must be greater than 0; found -0.1.",
    ),
    "a gate that everything fails": (
        "--set gate.min_top1_agreement=90",
        "gate.min_top1_agreement must be at most 1; found 90.",
    ),
    "an alias of MLflow's own to be promoted to": (
        "--set registry.promote_to=latest",
        "registry.promote_to must be neither latest nor v and a number, which MLflow keeps for "
        "itself; found 'latest'.",
    ),
    "levels that the grid does not hold": (
        "--set quantization.levels=ternary",
        "quantization.levels ternary needs bits: 2 and symmetric: true, which hold its levels; "
        "found bits: 2 and symmetric: false.",
    ),
    "ternary keys": (
        "--set ternary.steps=8",
        "a recipe with the section ternary is carried out by `normtweak ternary RECIPE`, not by "
        "quantize: run that, or remove the section.",
    ),
    "evaluation tasks": (
        "--set evaluation.tasks=[quiz]",
        "evaluation.tasks must be lambada_openai, hellaswag, piqa, winogrande, arc_easy, "
        "arc_challenge, openbookqa or boolq; found 'quiz'.",
    ),
    "a task twice": (
        "--set evaluation.tasks=[piqa,piqa]",
        "evaluation.tasks must name each task once; found ['piqa', 'piqa'].",
    ),
    "items that are not there": (
        "--set evaluation.tasks=[piqa] --set evaluation.data={0}/items",
        "evaluation.data must hold the items of piqa as {0}/items/piqa/*.jsonl; there is no such "
        "file: save the data set's evaluation split there, one JSON object a line.",
    ),
    "a gate on a task that is not evaluated": (
        "--set gate.max_accuracy_drop.piqa=0.02",
        "gate.max_accuracy_drop must name evaluated tasks; piqa is not in evaluation.tasks, which "
        "is []: add it there.",
    ),
    "a gate on no task at all": (
        "--set gate.max_accuracy_drop.quiz=0.02",
        "gate.max_accuracy_drop must be lambada_openai, hellaswag, piqa, winogrande, arc_easy, "
        "arc_challenge, openbookqa or boolq; found 'quiz'.",
    ),
    "evaluation data": (
        "--set evaluation.data=x",
        "evaluation.data is read by named tasks alone; found no tasks: name tasks or leave it out.",
    ),
    "bitnet": (
        "--set export.format=bitnet",
        "export.format bitnet is a format of ternary models: run normtweak ternary, or use auto, "
        "compressed-tensors, gptq or gguf.",
    ),
    "gguf": (
        "--set export.format=gguf --set quantization.group_size=16",
        "export.format: gguf needs a model and a grid that llama.cpp holds to the bit; groups must "
        "be whole blocks of 32, and quantization.group_size is 16. Change that, use "
        "compressed-tensors, or let it hold what is nearest with export.inexact: allow.",
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
        "reference:neox; no folder is called '{0}/absent': check the path.",
    ),
    "a reference model that does not exist": (
        "--set model.source=reference:gpt",
        "a reference model must be one of llama, neox; got 'gpt'.",
    ),
    "a model without blocks": (
        "--set model.source={0}/no-blocks",
        "the model must be a stack of numbered blocks; its weight files name none: choose a "
        "decoder-only transformer.",
    ),
    "a model without safetensors": (
        "--set model.source={0}/pickled",
        "{0}/pickled must hold safetensors weights; it holds only pickled ones, which are never "
        "opened here. Save the model again with save_pretrained.",
    ),
    "a model in eight bits": (
        "--set model.source={0}/eight-bits",
        "every weight must be stored as F16, BF16, F32, F64; 1 of {0}/eight-bits is not, "
        "model.layers.0.mlp.up_proj.weight (I8) first: the model is quantized. Give the float "
        "model it was made from.",
    ),
    "a mixture of experts": (
        "--set model.source={0}/experts",
        "a mixture of experts must store each matrix of each expert as a tensor of its own, "
        "without biases, as Mixtral and Qwen3-MoE do (...experts.0.w1.weight); {0}/experts has "
        "num_local_experts: 8, which is not supported yet. Choose another model.",
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
        "{0}/torn-words/tokenizer.json line 1 must be JSON; it is not valid JSON: Expecting ':' "
        f"delimiter: {SAVE_TOKENIZER}",
    ),
    "a tokenizer that is empty": (
        "--set model.source={0}/no-words",
        "{0}/no-words/tokenizer.json must hold a model; it has none: " + SAVE_TOKENIZER,
    ),
    "settings of a tokenizer that are none": (
        "--set model.source={0}/odd-words",
        "{0}/odd-words/tokenizer_config.json must be a JSON object; it is a list: "
        f"{SAVE_TOKENIZER}",
    ),
    "a tokenizer with its own code": (
        "--set model.source={0}/coded-words",
        "a tokenizer must run on the code in transformers; {0}/coded-words/tokenizer_config.json "
        "has auto_map: words.Words, code of its own, which is never executed here. Convert the "
        "tokenizer to a tokenizer.json that opens without trust_remote_code and remove the entry, "
        "or choose another model.",
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
        "model.revision is for hub ids; {0}/model is none: leave the revision out.",
    ),
    "a device that does not exist": (
        "--set model.device=tpu", "model.device must be auto, cpu, cuda or cuda:N; found 'tpu'.",
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
