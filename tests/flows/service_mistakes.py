"""Variables that name servers no command can work with, and the answers of each command."""

TRACKING, ENGINE = "MLFLOW_TRACKING_URI", "PREFECT_API_URL"
DEAD = {TRACKING: "http://127.0.0.1:9"}
NO_REGISTRY = (
    "MLFLOW_TRACKING_URI must be the address of an MLflow server that answers; http://127.0.0.1:9 "
    "does not (Connection refused): start that server, correct the address, or unset "
    "MLFLOW_TRACKING_URI, and versions are registered under NORMTWEAK_HOME."
)
DEAD_ENGINE = {ENGINE: "http://127.0.0.1:9/api"}
NO_ENGINE = (
    "PREFECT_API_URL must be the address of a Prefect server that answers; "
    "http://127.0.0.1:9/api does not (Connection refused): start that server, correct the "
    "address, or unset PREFECT_API_URL, and the run starts a server of its own."
)
READING = "models:/tiny/1"  # what an evaluation needs the registry for
FORM = (
    "MLFLOW_TRACKING_URI must be an address such as http://localhost:5000 or "
    "sqlite:////folder/mlflow.db; found "
)
ENGINE_FORM = "PREFECT_API_URL must be an address such as http://127.0.0.1:4200/api; found "
SCHEMES = (
    "write one of http://, https://, sqlite://, postgresql://, mysql://, mssql://, databricks://, "
    "databricks-uc://, uc://."
)
QUANTIZE = "quantize {0}/recipe.yaml"

REGISTRY_COMMANDS = [
    QUANTIZE,
    "ternary {0}/ternary.yaml",
    "ablate {0}/ablation.yaml",
    f"evaluate {READING} --text {{0}}/evaluation.txt",
    f"evaluate reference:llama --against {READING}",
    f"compare reference:llama {READING}",
    f"promote {READING}",
    "rollback tiny",
    f"rebuild {READING}",
    "serve",
    "ui",
]
ENGINE_COMMANDS = [
    QUANTIZE,
    "ternary {0}/ternary.yaml",
    "ablate {0}/ablation.yaml",
    "evaluate reference:llama",
    "compare reference:llama reference:neox",
    "polynomial conf/polynomial-small.yaml",
    "serve",
    "ui",
]


def refused(value: str, remedy: str, form: str = FORM, why: str = "") -> str:
    return f"{form}{value!r}{why}: {remedy}"


# name: (command line, variables, sentence)
SERVICES = {
    **{f"a dead registry: {line}": (line, DEAD, NO_REGISTRY) for line in REGISTRY_COMMANDS},
    **{f"a dead engine: {line}": (line, DEAD_ENGINE, NO_ENGINE) for line in ENGINE_COMMANDS},
    "a registry without a scheme": (
        QUANTIZE, {TRACKING: "localhost:5000"},
        refused("localhost:5000", "write http://localhost:5000."),
    ),
    "a registry of numbers without a scheme": (
        "promote models:/tiny/1", {TRACKING: "127.0.0.1:5000/"},
        refused("127.0.0.1:5000/", "write http://127.0.0.1:5000."),
    ),
    "an engine without a scheme": (
        QUANTIZE, {ENGINE: "localhost:4200"},
        refused("localhost:4200", "write http://localhost:4200/api.", ENGINE_FORM),
    ),
    "a registry that is a folder": (
        QUANTIZE, {TRACKING: "/srv/mlruns"}, refused("/srv/mlruns", SCHEMES),
    ),
    "a registry of another scheme": (
        "ui", {TRACKING: "ftp://host/x"}, refused("ftp://host/x", SCHEMES),
    ),
    "a registry without a host": (
        QUANTIZE, {TRACKING: "http://"},
        refused("http://", "correct it.", why=", which names no host"),
    ),
    "a registry at a port that is none": (
        QUANTIZE, {TRACKING: "http://host:port"},
        refused("http://host:port", "correct it.",
                why=": Port could not be cast to integer value as 'port'"),
    ),
    "an engine at a port that is too large": (
        QUANTIZE, {ENGINE: "http://host:70000/api"},
        refused("http://host:70000/api", "correct it.", ENGINE_FORM, ": Port out of range 0-65535"),
    ),
    "an engine that is a file": (
        QUANTIZE, {ENGINE: "sqlite:///x.db"},
        refused("sqlite:///x.db", "write one of http://, https://.", ENGINE_FORM),
    ),
    "a registry whose folder is not there": (
        QUANTIZE, {TRACKING: "sqlite:////absent/mlflow.db"},
        "MLFLOW_TRACKING_URI must name a file in an existing folder; /absent of "
        "sqlite:////absent/mlflow.db is none: create it, or choose another place.",
    ),
    "a registry whose file is a folder": (
        QUANTIZE, {TRACKING: "sqlite:////proc"},
        "MLFLOW_TRACKING_URI must name a file that can be written; /proc of sqlite:////proc is "
        "none: choose another place.",
    ),
    "a registry that names no file": (
        QUANTIZE, {TRACKING: "sqlite://"},
        "MLFLOW_TRACKING_URI must be a path; found an empty text: name a file or a folder.",
    ),
    "a registry without its driver": (
        QUANTIZE, {TRACKING: "postgresql://u:secret@127.0.0.1:9/db"},
        "MLFLOW_TRACKING_URI needs the Python package psycopg2 for an address of postgresql; it is "
        "not installed: install it, or give the address of an MLflow server.",
    ),
    "a password in an address": (
        QUANTIZE, {TRACKING: "http://u:secret@127.0.0.1:9"},
        NO_REGISTRY.replace("http://127", "http://u:...@127"),
    ),
    "another registry beside the tracking server": (
        QUANTIZE, {"MLFLOW_REGISTRY_URI": "http://127.0.0.1:9", TRACKING: "sqlite:////tmp/m.db"},
        "MLFLOW_REGISTRY_URI must be that of MLFLOW_TRACKING_URI: versions lie where their runs "
        "are; found http://127.0.0.1:9, and sqlite:////tmp/m.db: unset MLFLOW_REGISTRY_URI.",
    ),
    "threads that are no number": (
        QUANTIZE, {"OMP_NUM_THREADS": "all"},
        "OMP_NUM_THREADS must be a number above 0; found 'all': correct it, or unset it.",
    ),
    "a time limit of nothing": (
        "ui", {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "0"},
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS must be a number above 0; found '0': "
        "correct it, or unset it.",
    ),
    "a SOCKS proxy": (
        QUANTIZE, {"ALL_PROXY": "socks5://127.0.0.1:9"},
        "ALL_PROXY needs the Python package socksio for a SOCKS proxy; it is not installed: "
        "install it, or unset the variable.",
    ),
    "a proxy of another kind": (
        QUANTIZE, {"http_proxy": "ftp://127.0.0.1:9"},
        "http_proxy must be the address of a proxy, http://, https:// or socks5://; found ftp://: "
        "correct it, or unset it.",
    ),
    "a cache of the hub in the home of nobody": (
        QUANTIZE, {"HF_HOME": "~nosuchuser/hf"},
        "HF_HOME must begin with the home folder of a user there is; found '~nosuchuser/hf': write "
        "the path out, or ./~nosuchuser/hf for a folder of that name.",
    ),
    "a cache of the hub that is a file": (
        QUANTIZE, {"HF_HUB_CACHE": "{0}/empty.txt/hub"},
        "HF_HUB_CACHE must be a folder, or one that can be made; {0}/empty.txt is a file: choose "
        "another, or unset HF_HUB_CACHE.",
    ),
    "a dead engine of a Prefect profile": (
        QUANTIZE, {"PREFECT_PROFILES_PATH": "{0}/profiles.toml"}, NO_ENGINE,
    ),
    "a Prefect profile that is no TOML": (
        QUANTIZE, {"PREFECT_PROFILES_PATH": "{0}/torn.yaml"},
        "{0}/torn.yaml must be the Prefect profiles, in TOML; Expected '=' after a key in a "
        "key/value pair (at line 1, column 5): correct the file.",
    ),
}  # fmt: skip

PROFILES = """active = "work"
[profiles.ephemeral]
PREFECT_SERVER_ALLOW_EPHEMERAL_MODE = "true"
[profiles.work]
PREFECT_API_URL = "http://127.0.0.1:9/api"
"""
