"""Every pipeline that is declared, and every stage of them once."""

from flows.ablate import ABLATE
from flows.compare import compared
from flows.evaluate import ALONE, BESIDE
from flows.finetune import FINETUNE
from flows.polynomial import POLYNOMIAL
from flows.quantize import QUANTIZE
from flows.ternary import TERNARY

PIPELINES = [QUANTIZE, TERNARY, FINETUNE, POLYNOMIAL, ABLATE, ALONE, BESIDE, compared(3)]
STAGES = list({id(stage): stage for one in PIPELINES for stage in one.stages}.values())
