"""Mistakes in the recipe of an ablation, and their answers."""

RECIPE = "ablate {0}/ablation.yaml"
STUDIES = f"{RECIPE} --set ablation.studies."

MISTAKES = {
    "an ablation that is quantized": (
        "quantize {0}/ablation.yaml",
        "a recipe with the section ablation is carried out by `normtweak ablate RECIPE`, not by "
        "quantize: run that, or remove the section.",
    ),
    "an ablation of a study that does not exist": (
        f"{STUDIES}losses=[mse]",
        "ablation.studies.losses is not a recipe key; did you mean ablation.studies.loss?",
    ),
    "an ablation of a loss that does not exist": (
        f"{STUDIES}loss=[mse,l1]",
        "ablation.studies.loss must be channel, mse or kl; found 'l1'.",
    ),
    "an ablation of a width that does not exist": (
        f"{STUDIES}bits=[2,5]",
        "ablation.studies.bits must be 8, 4, 3, 2, ternary or 1; found 5.",
    ),
    "an ablation of a single value": (
        f"{STUDIES}bits=[2]",
        "ablation.studies.bits needs two values to compare; found [2]: add one, or leave the study "
        "out by [].",
    ),
    "an ablation with a value twice": (
        f"{STUDIES}target=[local,local]",
        "ablation.studies.target must hold every value once; found ['local', 'local']: remove the "
        "copies.",
    ),
    "an ablation of too many iterations": (
        f"{STUDIES}iterations=[1,65]",
        "ablation.studies.iterations may hold numbers from 1 to 64; found 65: leave it out.",
    ),
    "an ablation of nothing": (
        f"{STUDIES}loss=[] --set ablation.studies.stage=[]",
        "ablation.studies must hold a study with two values or more; found none: leave out fewer.",
    ),
    "an ablation without seeds": (
        f"{RECIPE} --set ablation.seeds.loss=0", "ablation.seeds.loss must be at least 1; found 0.",
    ),
    "seeds of a study that is left out": (
        f"{RECIPE} --set ablation.seeds.bits=2",
        "ablation.seeds.bits is only read with values in ablation.studies.bits; found 2 and no "
        "values: remove it.",
    ),
    "a text that no study reads": (
        f"{RECIPE} --set ablation.text={{0}}/calibration.txt",
        "ablation.text is only read with text in ablation.studies.calibration; found []: remove "
        "ablation.text or add text.",
    ),
    "an ablation of a tweak that is switched off": (
        f"{RECIPE} --set norm_tweak.enabled=false",
        "ablation.studies.loss varies norm_tweak.loss, which is only read with norm_tweak.enabled "
        "true; found false: enable it, or leave the study out by [].",
    ),
    "an ablation of schedules without growth": (
        f"{STUDIES}schedule=[constant,linear] --set norm_tweak.lr_scale=0",
        "ablation.studies.schedule needs norm_tweak.lr_scale above 0, without which every schedule "
        "is constant; found 0: raise it, or leave the study out by [].",
    ),
    "an ablation of stages without propagation": (
        f"{RECIPE} --set quantization.propagation.alpha=0",
        "ablation.studies.stage needs quantization.propagation.alpha above 0 for the stages from "
        "propagation on; found 0: raise it, or leave the study out by [].",
    ),
    "an ablation with a gate": (
        f"{RECIPE} --set gate.max_kl=0.1",
        "gate is not read by normtweak ablate, whose cells are compared and not registered: remove "
        "it.",
    ),
    "an ablation with named tasks": (
        f"{RECIPE} --set evaluation.tasks=[piqa]",
        "evaluation.tasks is not read by normtweak ablate, which compares cells on a text; found "
        "['piqa']: remove it, or score an export with normtweak evaluate.",
    ),
    "an ablation with an infinite rate": (
        f"{RECIPE} --set norm_tweak.lr=.inf", "norm_tweak.lr must be a finite number; found inf.",
    ),
    "an ablation in a format of ternary models": (
        f"{RECIPE} --set export.format=bitnet",
        "export.format bitnet is a format of ternary models: run normtweak ternary, or use auto, "
        "compressed-tensors, gptq or gguf.",
    ),
    "an ablation with a group size that does not divide": (
        f"{RECIPE} --set quantization.group_size=48",
        "quantization.group_size must divide every input width; 48 does not divide 128 of "
        "model.layers.0.mlp.down_proj. Choose a divisor, or null for whole rows.",
    ),
    "a cell that its format cannot hold": (
        f"{STUDIES}bits=[2,4] --set export.format=gptq --set quantization.group_size=16",
        "export.format: gptq at 4 bits needs quantization.group_size to be one of 32, 64, 128, "
        "256; it is 16. Choose one of them, or use compressed-tensors.",
    ),
    "an ablation of sources without a text": (
        f"{STUDIES}calibration=[text,random] --set calibration.source=random --set "
        "calibration.path=null",
        "ablation.text is required for the value text of ablation.studies.calibration; found none "
        "for {0}/model: give a .txt or .jsonl file, or leave out text.",
    ),
    "an ablation with a text that is not there": (
        f"{STUDIES}calibration=[text,random] --set ablation.text={{0}}/absent.txt",
        "ablation.text: text file {0}/absent.txt does not exist: give the path of a .txt or .jsonl "
        "file.",
    ),
}  # fmt: skip
