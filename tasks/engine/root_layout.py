"""What this product writes directly under the state root: one list, which `normtweak clean` reads.

Whoever writes there takes the name from here.
"""

# Made again by the next run that needs it.
RECORDS, ARTEFACTS, EXPORTS, REBUILDS = "results", "artifacts", "exports", "rebuilds"
EVALUATIONS, ABLATIONS, POLYNOMIAL = "evaluations", "ablations", "polynomial"  # tables and pages
REFERENCE = "reference"  # resumable trainings of the reference models
LOGS, MLFLOW_LOG = "logs", "mlflow.log"
EVENTS, OLDER_EVENTS = "events.jsonl", "events-older.jsonl"
HASHES = "hashes.jsonl"  # of files that were read whole, as long as they are the same
MADE_AGAIN = (
    RECORDS, ARTEFACTS, EXPORTS, EVALUATIONS, ABLATIONS, POLYNOMIAL, REFERENCE, LOGS, MLFLOW_LOG,
    EVENTS, OLDER_EVENTS, HASHES, REBUILDS,
)  # fmt: skip

# Records of what was: nothing makes them again.
PREFECT, MLARTIFACTS, MLFLOW_DATABASE, LOCKS = "prefect", "mlartifacts", "mlflow.db", "locks"
WAITING = "waiting"  # finished models that the registry has not taken
KEPT = (PREFECT, MLARTIFACTS, MLFLOW_DATABASE, LOCKS, WAITING)
